#!/usr/bin/env python3
"""What findings cost: a whole `dump` of 8 threads, paired with `dump --no-findings` of the same process.

    benches/findings.py [--runs N] [--hangscope PATH]

The limit is 1.5 times the plain dump. Each program is one where something has to be searched for; the pairs are
interleaved, and the ratio is that of the medians.
"""
import argparse
import os
import pathlib
import statistics
import subprocess
import sys

from dump import ROOT, run

# Each makes the function that seven threads run, 20 frames deep; the main thread joins one.
PROGRAMS = {
    "idle workers of a queue": "work = queue.Queue()\ndef leaf(i): work.get()",
    "sleep": "def leaf(i): time.sleep(1000)",
    "one holds a lock, the others want it": (
        "lock = threading.Lock()\n"
        "def leaf(i):\n"
        "    with lock:\n"
        "        time.sleep(1000)"
    ),
    "events that nobody sets": "def leaf(i): threading.Event().wait()",
    "a condition that nobody notifies": (
        "condition = threading.Condition()\n"
        "def leaf(i):\n"
        "    with condition: condition.wait()"
    ),
    "futures of a pool that is busy": (
        "pool = concurrent.futures.ThreadPoolExecutor(1)\n"
        "def leaf(i): pool.submit(time.sleep, 1000).result()"
    ),
    "recv from a local peer": (
        "def leaf(i):\n"
        "    left, right = socket.socketpair()\n"
        "    left.recv(1)"
    ),
}
PROGRAM = """
import concurrent.futures, queue, signal, socket, threading, time
# Ends by itself; a thread that reads standard input would make it a wait for a pipe.
signal.alarm(300)
{setup}
def deep(i, n=20):
    return deep(i, n - 1) if n else leaf(i)
threads = [threading.Thread(target=deep, args=(i,), daemon=True) for i in range(7)]
for thread in threads:
    thread.start()
print("READY", flush=True)
threads[0].join()
"""


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--runs", type=int, default=30)
    ap.add_argument("--hangscope", default=str(ROOT / "target" / "release" / "hangscope"))
    ap.add_argument("--python", default=sys.executable)
    args = ap.parse_args()
    plain = [args.hangscope, "dump", "--no-findings", "--pid", "{pid}"]
    full = [args.hangscope, "dump", "--pid", "{pid}"]
    for title, setup in PROGRAMS.items():
        target = subprocess.Popen(
            [os.path.realpath(args.python), "-c", PROGRAM.format(setup=setup)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )
        try:
            assert target.stdout.readline().strip() == "READY"
            took = [[], []]
            for _ in range(args.runs):
                for which, command in enumerate((plain, full)):
                    seconds, _, ok = run(command, target.pid)
                    assert ok, command
                    took[which].append(seconds)
            before, after = map(statistics.median, took)
            print(f"{title:40} {before * 1e3:6.2f} ms plain  {after * 1e3:6.2f} ms with findings  {after / before:5.2f} ×")
        finally:
            target.kill()
            target.wait()


if __name__ == "__main__":
    main()
