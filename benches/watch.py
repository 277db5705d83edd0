#!/usr/bin/env python3
"""What watching costs: the watcher's CPU, its memory, and what the server loses.

    benches/watch.py [--seconds N] [--rounds N] [--hangscope PATH]

A uvicorn server (target/venvs/3.12, which the incident tests make) is measured idle and under load, each time alone
and watched, in turns, so that what else the machine does meets both. What counts are ratios: requests per second
watched over alone, the server's CPU per request watched over alone, and the watcher's CPU as a share of a core.
"""
import argparse
import concurrent.futures
import http.client
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def cpu(pid):
    """Seconds on a CPU, of all threads."""
    total = 0
    for tid in os.listdir(f"/proc/{pid}/task"):
        try:
            total += int(open(f"/proc/{pid}/task/{tid}/schedstat").read().split()[0])
        except FileNotFoundError:
            pass
    return total / 1e9


def rss(pid):
    return int(next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS")).split()[1])


def load(port, path, seconds):
    """Requests answered to four clients in this time."""
    done, until = [0] * 4, time.monotonic() + seconds

    def client(n):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.monotonic() < until:
            connection.request("GET", path)
            connection.getresponse().read()
            done[n] += 1

    with concurrent.futures.ThreadPoolExecutor(4) as clients:
        # A client that fails must not pass for a slow server.
        list(clients.map(client, range(4)))
    return sum(done)


def wait_for(port):
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)


def measure(args, server, port, path, watched):
    out = tempfile.TemporaryDirectory()
    watcher = None
    if watched:
        command = [args.hangscope, "watch", str(server.pid), "--out", out.name, "--metrics", "127.0.0.1:0"]
        watcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1.5)
    began, before = time.monotonic(), cpu(server.pid)
    own = cpu(watcher.pid) if watcher else 0
    if path:
        requests = load(port, path, args.seconds)
    else:
        requests = 0
        time.sleep(args.seconds)
    took = time.monotonic() - began
    result = {"rate": requests / took, "cpu": (cpu(server.pid) - before) / max(requests, 1)}
    if watcher:
        result["watcher"] = (cpu(watcher.pid) - own) / took
        result["rss"] = rss(watcher.pid)
        watcher.terminate()
        watcher.wait()
    out.cleanup()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hangscope", default=str(ROOT / "target/release/hangscope"))
    args = parser.parse_args()
    python = ROOT / "target/venvs/3.12/bin/python"
    if not python.exists():
        raise SystemExit(f"there is no {python}: cargo test --test incidents makes it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "uvicorn", "watched:app", "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen(command, cwd=ROOT / "fixtures/incidents")
    try:
        wait_for(port)
        for name, path in [("idle", None), ("busy, asynchronous", "/health"), ("busy, in threads", "/slow?seconds=0.001")]:
            alone, watched = [], []
            for _ in range(args.rounds):
                alone.append(measure(args, server, port, path, False))
                watched.append(measure(args, server, port, path, True))
            of = lambda results, key: statistics.median(result[key] for result in results)
            line = f"{name:20} watcher {100 * of(watched, 'watcher'):.2f} % of a core, {of(watched, 'rss') / 1024:.1f} MiB"
            if path:
                rate = of(watched, "rate") / of(alone, "rate")
                cost = of(watched, "cpu") / of(alone, "cpu")
                line += f"; requests/s watched:alone {rate:.3f} ({of(alone, 'rate'):.0f}/s alone), server CPU per request {cost:.3f}"
            print(line, flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
