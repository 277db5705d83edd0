#!/usr/bin/env python3
"""What a target loses while it is recorded: hangscope and py-spy on the same process, in one run.

    benches/slowdown.py [--pairs N] [--rates 100,1000] [--hangscope PATH]

The target (fixtures/programs/chains.py) counts its own turns in a mapped file. Each figure is the turns per second of
a stretch of time with a tool, over the mean of the stretches just before and just after without one; the tools take
turns. What is told is the median of these and its 95 % interval, from the order of the values (binomial). As root,
target and tools run at nice -20, so that other work on the machine hardly meets them.
"""
import argparse
import math
import os
import statistics
import subprocess
import time

import record


def interval(values):
    """Of the median, 95 %: by rank."""
    ordered = sorted(values)
    half = 0.98 * math.sqrt(len(ordered))
    low = max(0, math.floor(len(ordered) / 2 - half))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half))
    return ordered[low], ordered[high]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--pairs", type=int, default=20)
    ap.add_argument("--rates", default="100,1000")
    ap.add_argument("--depths", default="20,200")
    ap.add_argument("--window", type=float, default=0.6, help="seconds")
    ap.add_argument("--python", default="python3.15")
    ap.add_argument("--hangscope", default=str(record.ROOT / "target" / "release" / "hangscope"))
    args = ap.parse_args()
    args.pause = True
    os.makedirs(record.SID + record.SHARED, exist_ok=True)
    names = ["hangscope", "Tachyon", "py-spy", "py-spy --nonblocking"]
    found = [t for t in record.tools(args) if t.name in names]
    out = record.pathlib.Path(record.SID + record.SHARED) / "out"
    try:
        for depth in map(int, args.depths.split(",")):
            for rate in map(int, args.rates.split(",")):
                losses = {tool.name: [] for tool in found}
                losses["nothing"] = []
                with record.Target(args.python, depth) as target:
                    for _ in range(args.pairs):
                        for tool in [*found, None]:
                            before = target.speed(args.window)
                            seconds = math.ceil(args.window + 1.0)
                            process = tool and tool.start(target.pid, rate, seconds, out, record.AHEAD)
                            # By then all have begun.
                            time.sleep(0.9)
                            during = target.speed(args.window)
                            if process:
                                process.communicate(timeout=60)
                            after = target.speed(args.window)
                            name = tool.name if tool else "nothing"
                            losses[name].append(1 - during / statistics.mean([before, after]))
                print(f"{args.python}, {depth} deep, {rate} per second: the target loses", flush=True)
                for name, values in losses.items():
                    low, high = interval(values)
                    print(f"  {name:22}{statistics.median(values):8.2%}   {low:.2%} to {high:.2%}", flush=True)
    finally:
        record.shutil.rmtree(record.SID + record.SHARED)


if __name__ == "__main__":
    main()
