#!/usr/bin/env python3
"""Whether a profile is the truth: the shares of stacks beside those of an oracle that stops the thread for each sample.

    benches/accuracy.py [--rounds N] [--seconds S] [--python P] [--work recursion,leaves] [--hangscope PATH]

The programs are those of fixtures/programs/workloads.py, which do the same all the time. What is told of each tool is
how much of all time is in other stacks (by function) than the oracle says: half the sum of the differences, in percent.
"chance" is the same between two halves of the oracle's own samples of as many; nobody can be better. The rounds of all
tools are interleaved.
"""
import argparse
import collections
import os
import pathlib
import shutil
import subprocess

import record

def function(frame):
    """The name without file and line: `f (file:1)` of hangscope and py-spy, `file:f:1` of Tachyon."""
    parts = frame.split(":")
    if " (" not in frame and len(parts) >= 3:
        return parts[-2].rpartition(".")[2]
    return frame.split(" (")[0].rpartition(".")[2]


def shares(stacks):
    found = collections.Counter()
    for stack, count in stacks:
        names = [function(f) for f in stack.split(";")]
        # Tachyon's roots are threads; what is below the program's own functions is not everybody's.
        begin = next((i for i, name in enumerate(names) if name in ROOTS), None)
        if begin is not None:
            found[";".join(names[begin:])] += count
    return found


ROOTS = {"recursion", "leaves", "generators", "encode", "first", "second", "third", "naps"}


def distance(one, other):
    a, b = sum(one.values()) or 1, sum(other.values()) or 1
    return sum(abs(one[s] / a - other[s] / b) for s in set(one) | set(other)) / 2


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=4)
    ap.add_argument("--seconds", type=int, default=2)
    ap.add_argument("--rate", type=int, default=1000)
    ap.add_argument("--python", default="python3.15")
    ap.add_argument("--work", default="recursion,leaves,generators,json,threads,sleeper")
    ap.add_argument("--hangscope", default=str(record.ROOT / "target" / "release" / "hangscope"))
    args = ap.parse_args()
    args.pause = True
    os.makedirs(record.SID + record.SHARED, exist_ok=True)
    tools = [t for t in record.tools(args) if t.name not in ("austin", "empty timer loop", "py-spy")]
    if args.python != "python3.15":
        tools = [t for t in tools if t.name != "Tachyon"]
    out = pathlib.Path(record.SID + record.SHARED) / "out"
    shutil.copy(record.ROOT / "fixtures/programs/workloads.py", record.SID + record.SHARED)
    try:
        for work in args.work.split(","):
            target = subprocess.Popen(
                [*record.AHEAD, "chroot", record.SID, args.python, record.SHARED + "/workloads.py", work],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            target.stdout.readline()
            runs = [(t.name, t, args.rate) for t in tools] + [("hangscope -r max", tools[0], None)]
            found = {name: collections.Counter() for name, _, _ in runs}
            halves = [collections.Counter(), collections.Counter()]
            for turn in range(args.rounds):
                for name, tool, rate in runs:
                    out.unlink(missing_ok=True)
                    tool.start(target.pid, rate, args.seconds, out, record.AHEAD).communicate(timeout=100)
                    here = shares(record.folded(out))
                    found[name] += here
                    if name == "hangscope --pause":
                        halves[turn % 2] += here
            target.kill()
            target.wait()
            oracle = found.pop("hangscope --pause")
            line = "  ".join(f"{name} {distance(got, oracle):.1%}" for name, got in found.items() if got)
            print(f"{args.python} {work:11} {len(oracle):4} stacks: chance {distance(*halves):.1%}  {line}", flush=True)
    finally:
        shutil.rmtree(record.SID + record.SHARED, ignore_errors=True)


if __name__ == "__main__":
    main()
