"""A small web shop that gets stuck, for `hangscope demo`. Standard library only.

Orders go from the request handler through a queue of one place to a billing thread. Billing waits for
an approval that never comes; so the queue fills, and the handler's next `put` blocks the thread that
runs the event loop: from then on nobody is served. The heartbeat goes on, which misleads people.
"""
import asyncio
import os
import queue
import sys
import threading
import time

orders = queue.Queue(maxsize=1)
approved = threading.Event()


def billing():
    while True:
        order = orders.get()
        approved.wait()
        print("billed", order)
        orders.task_done()


def heartbeat():
    while True:
        time.sleep(0.5)


async def place_order(path):
    orders.put({"path": path, "at": time.time()})
    return "accepted"


async def serve(reader, writer):
    method, path, _ = (await reader.readline()).decode().split()
    body = await place_order(path)
    writer.write(f"HTTP/1.0 200 OK\r\n\r\n{method} {path}: {body}\n".encode())
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print("READY", server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def end_with_parent():
    sys.stdin.read()
    os._exit(0)


for work in (billing, heartbeat, end_with_parent):
    threading.Thread(target=work, name=work.__name__.replace("_", "-"), daemon=True).start()
asyncio.run(main())
