#!/usr/bin/env python3
"""What a recording costs, and how much of it is true: `record` and the peers on the same process, in one run.

    benches/record.py [--rounds N] [--seconds S] [--rates 1000,100] [--hangscope PATH]

Installs py-spy, austin-dist and austin-python (PyPI) into target/peers; Tachyon is the `profiling.sampling` of the
sid root's python3.15. A peer that cannot be had is left out and named. The rounds of all tools are interleaved, so
that what else the machine does meets all of them; what counts is the ratio of the medians.

The target is fixtures/programs/chains.py, one thread that goes down two call chains without a common function, on
the sid root's 3.15, and again on its 3.13, which is the newest that austin reads. Of each tool:

CPU per sample      from the scheduler's account of all its threads, half a second after it began to sample until half
                    a second before its end, so that neither start nor the writing of the file counts. Samples are those
                    that it took, good or not
impossible          stacks that name both chains, or leave a link of one out
dropped             samples that it says it could not take or read, and those that it missed at the rate asked for
slowdown            turns of the target per second, beside those just before and after without a tool
system calls        per sample: the kernel's count (perf's raw_syscalls:sys_enter) of two recordings of different length,
                    subtracted. Not `strace -c`, which stops a tool in every call: whoever sits on the target's CPU
                    loses it thereby and has to read again

The floor is a timer loop in C that does nothing, on the CPU of the target's thread.
"""
import argparse
import os
import pathlib
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SID = os.environ.get("HANGSCOPE_SID", "/opt/hangscope/sid")
SHARED = "/tmp/hangscope-bench-record"  # below the sid root, which the peers there can read and write
PEERS = ROOT / "target" / "peers"
# Other work on the machine hardly meets what runs so.
# (Between sessions it is their group's nice that counts: Documentation/scheduler/sched-autogroup, in man 7 sched.)
FIRST = 'echo -20 >/proc/self/autogroup; exec nice -n -20 "$@"'
AHEAD = ["setsid", "sh", "-c", FIRST, "ahead"] if os.geteuid() == 0 else []

FLOOR = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
/* floor PID RATE SECONDS: wakes on the CPU of the thread, and sleeps again. */
int main(int argc, char **argv) {
    char path[64], line[1024];
    long rate = atol(argv[2]), ticks = rate * atof(argv[3]);
    struct sched_param ahead = {.sched_priority = 1};
    struct timespec at;
    sched_setscheduler(0, SCHED_FIFO, &ahead);
    prctl(PR_SET_TIMERSLACK, 1);
    snprintf(path, sizeof path, "/proc/%s/stat", argv[1]);
    clock_gettime(CLOCK_MONOTONIC, &at);
    for (long tick = 0; tick < ticks; tick++) {
        if (tick % 100 == 0) {
            FILE *stat = fopen(path, "r");
            if (!stat || !fgets(line, sizeof line, stat)) return 1;
            fclose(stat);
            char *field = strrchr(line, ')');
            for (int n = 0; n < 37; n++) field = strchr(field + 1, ' ');
            cpu_set_t only;
            CPU_ZERO(&only);
            CPU_SET(atoi(field), &only);
            sched_setaffinity(0, sizeof only, &only);
        }
        at.tv_nsec += 1000000000 / rate;
        if (at.tv_nsec >= 1000000000) at.tv_nsec -= 1000000000, at.tv_sec++;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, 0);
    }
    printf("%ld samples in %s s\n", ticks, argv[3]);
}
"""


class Tool:
    """How a profiler is started, and what it says of its samples."""

    def __init__(self, name, command, counts, stacks=None):
        self.name, self.command, self.counts, self.stacks = name, command, counts, stacks

    def start(self, pid, rate, seconds, out, prefix=()):
        """At this rate; `None`: as fast as it goes."""
        fastest = {"hangscope": "max", "Tachyon": 1_000_000}.get(self.name)
        words = {"pid": pid, "rate": rate or fastest, "seconds": seconds, "us": 1_000_000 // (rate or 1_000_000)}
        words |= {"out": out, "inside": str(out).removeprefix(SID)}
        command = [*prefix, *(str(c).format(**words) for c in self.command)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def tools(args):
    if not (PEERS / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
    missing = [p for p, f in [("py-spy", "py-spy"), ("austin-dist", "austin"), ("austin-python", "mojo2austin")]
               if not (PEERS / "bin" / f).exists()]
    if missing:
        subprocess.run([PEERS / "bin" / "pip", "install", "-q", *missing], check=False)

    def number(pattern, text):
        found = re.search(pattern, text)
        return float(found[1]) if found else 0.0

    def hangscope(text, rate, seconds):
        taken = number(r"(\d+) samples in", text)
        return taken, number(r"(\d+) of \d+ stacks", text) + max(0, rate * seconds - taken)

    def tachyon(text, rate, seconds):
        taken = number(r"Captured (\d+) samples", text)
        return taken, taken * number(r"Error rate: ([\d.]+)", text) / 100 + max(0, rate * seconds - taken)

    def py_spy(text, rate, seconds):
        good, failed = number(r"Samples: (\d+)", text), number(r"Errors: (\d+)", text)
        return good + failed, failed + max(0, rate * seconds - good - failed)

    def austin(text, rate, seconds):
        plain = re.sub(r"\x1b\[[\d;]*m", "", text)
        taken = number(r"Error rate[ .]*\d+/(\d+)", plain)
        return taken, number(r"Error rate[ .]*(\d+)/", plain) + max(0, rate * seconds - taken)

    def mojo(out):
        text = out.with_suffix(".txt")
        subprocess.run([PEERS / "bin" / "python", PEERS / "bin" / "mojo2austin", out, text], check=False)
        # It weighs stacks in microseconds.
        return ((stack, count // 1000) for stack, count in folded(text))

    all_tools = [
        Tool("hangscope", [args.hangscope, "record", "-r", "{rate}", "-d", "{seconds}", "-f", "folded", "-o", "{out}",
                           "-p", "{pid}"], hangscope, folded),
        Tool("Tachyon", ["chroot", SID, "python3.15", "-m", "profiling.sampling", "attach", "--collapsed", "-r", "{rate}",
                         "-d", "{seconds}", "-o", "{inside}", "{pid}"], tachyon, folded),
        Tool("py-spy --nonblocking", [PEERS / "bin" / "py-spy", "record", "--nonblocking", "-f", "raw", "-r", "{rate}",
                                      "-d", "{seconds}", "-o", "{out}", "-p", "{pid}"], py_spy, folded),
    ]
    if args.pause:
        all_tools += [
            Tool("hangscope --pause", [*all_tools[0].command, "--pause"], hangscope, folded),
            Tool("py-spy", [c for c in all_tools[2].command if c != "--nonblocking"], py_spy, folded),
        ]
    if shutil.which(PEERS / "bin" / "austin"):
        shutil.copy(PEERS / "bin" / "austin", SID + SHARED + "/austin")
        all_tools.append(Tool("austin", ["chroot", SID, SHARED + "/austin", "-i", "{us}us", "-x", "{seconds}", "-p", "{pid}",
                                         "-o", "{inside}"], austin, mojo))
    source = pathlib.Path(SID + SHARED) / "floor.c"
    source.write_text(FLOOR)
    binary = source.with_suffix("")
    if subprocess.run(["cc", "-O2", "-o", binary, source], check=False).returncode == 0:
        all_tools.append(Tool("empty timer loop", [binary, "{pid}", "{rate}", "{seconds}"], hangscope))
    return all_tools


def folded(path):
    """Frames from the outermost on, and how often."""
    for line in path.read_text().splitlines() if path.exists() else []:
        stack, _, count = line.rpartition(" ")
        if stack and count.isdigit():
            yield stack, int(count)


def impossible(stacks):
    """Of how many samples of the chains, how many were never there."""
    wrong = total = 0
    for stack, count in stacks:
        links = re.findall(r"(left|right)_(\d+)\b", stack)
        if ("run" not in stack) or count <= 0:
            continue
        total += count
        chains = {chain for chain, _ in links}
        if len(chains) > 1 or [int(n) for _, n in links] != list(range(len(links))):
            wrong += count
    return wrong, total


def highest(python, depth, args, found):
    """As fast as it goes: what is good of it, by the second and by the CPU time that it took."""
    found = [t for t in found if t.name in ("hangscope", "Tachyon")]
    rows = {t.name: [] for t in found}
    out = pathlib.Path(SID + SHARED) / "out"
    with Target(python, depth) as target:
        for _ in range(args.rounds):
            for tool in found:
                out.unlink(missing_ok=True)
                process = tool.start(target.pid, None, args.seconds, out, AHEAD)
                time.sleep(1.0)
                cpu, began = cpu_of(process.pid), time.monotonic()
                time.sleep(args.seconds - 1.5)
                share = (cpu_of(process.pid) - cpu) / (time.monotonic() - began)
                said = process.communicate(timeout=600)[0]
                taken, lost = tool.counts(said, 0, args.seconds)
                if not taken:
                    print(f"  {tool.name} failed: {said[-300:]}")
                    continue
                wrong, judged = impossible(folded(out))
                rows[tool.name].append({"good": (taken - lost) / args.seconds, "failed": lost / taken, "share": share,
                                        "wrong": wrong / max(judged, 1), "judged": judged})
    print(f"\n{python}, {depth} deep, as fast as it goes")
    for name, runs in rows.items():
        if runs:
            judged = sum(r["judged"] for r in runs)
            wrong = sum(r["wrong"] * r["judged"] for r in runs) / judged
            print(f"  {name:20}{median(runs, 'good'):9.0f} good per second  failed {median(runs, 'failed'):6.2%}  "
                  f"impossible {wrong:8.4%} of {judged:8}  {median(runs, 'share'):5.0%} of one CPU", flush=True)


def cpu_of(pid):
    """Seconds on a CPU, of all threads of a process."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            total += int(pathlib.Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
        except OSError:
            pass
    return total / 1e9


class Target:
    def __init__(self, python, depth):
        self.turns_file = pathlib.Path(SID + SHARED) / f"turns-{python}-{depth}"
        program = SHARED + "/chains.py"
        shutil.copy(ROOT / "fixtures" / "programs" / "chains.py", SID + program)
        self.process = subprocess.Popen(
            [*AHEAD, "chroot", SID, python, program, str(depth), "0", str(self.turns_file).removeprefix(SID)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )

    def __enter__(self):
        assert self.process.stdout.readline().startswith("READY")
        self.pid = self.process.pid
        while self.turns() == 0:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def turns(self):
        try:
            return struct.unpack("Q", self.turns_file.read_bytes())[0]
        except (OSError, struct.error):
            return 0

    def speed(self, seconds):
        """Turns per second, by the clock."""
        turns, began = self.turns(), time.monotonic()
        time.sleep(seconds)
        return (self.turns() - turns) / (time.monotonic() - began)


def one(tool, target, rate, seconds):
    """One recording: what it cost and what it holds. `None` if the tool does not work here."""
    out = pathlib.Path(SID + SHARED) / "out"
    for left in (out, out.with_suffix(".txt")):
        left.unlink(missing_ok=True)
    before = target.speed(0.5)
    process = tool.start(target.pid, rate, seconds, out, AHEAD)
    # It has begun once it has slept at deadlines: half a second is enough for all but Tachyon's imports.
    time.sleep(1.0)
    try:
        cpu, began = cpu_of(process.pid), time.monotonic()
        speed = target.speed(seconds - 1.5)
        cpu, took = cpu_of(process.pid) - cpu, time.monotonic() - began
    except OSError:
        return None
    finally:
        said = process.communicate(timeout=600)[0]
    taken, lost = tool.counts(said, rate, seconds)
    after = target.speed(0.5)
    if not taken:  # austin's exit code is not 0 when its time is over
        return None
    wrong, judged = impossible(tool.stacks(out)) if tool.stacks else (0, 0)
    return {
        "cpu": cpu / took / (taken / seconds) * 1e6,
        "rate": taken / seconds,
        "lost": lost / max(taken, rate * seconds),
        "wrong": wrong,
        "judged": judged,
        "slower": statistics.mean([before, after]) / speed,
    }


def system_calls(tool, target, rate):
    """Per sample: the difference of two recordings of different length. `None` without perf and its right to count."""
    if not shutil.which("perf"):
        return None
    counts = []
    for seconds in (1, 3):
        with tempfile.NamedTemporaryFile("r") as table:
            out = pathlib.Path(SID + SHARED) / "out"
            process = tool.start(target.pid, rate, seconds, out, ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-o", table.name])
            said = process.communicate(timeout=600)[0]
            total = re.search(r"^(\d+),,raw_syscalls", table.read(), re.M)
            taken = tool.counts(said, rate, seconds)[0]
            if not total or not taken:
                return None
            counts.append((int(total[1]), taken))
    (calls_a, samples_a), (calls_b, samples_b) = counts
    return (calls_b - calls_a) / (samples_b - samples_a) if samples_b > samples_a else None


def measure(python, depth, rate, args, found):
    with Target(python, depth) as target:
        results = {tool.name: [] for tool in found}
        for _ in range(args.rounds):
            for tool in found:
                if tool.name == "Tachyon" and python != "python3.15":
                    continue
                if tool.name == "austin" and python == "python3.15":
                    continue
                result = one(tool, target, rate, args.seconds)
                if result:
                    results[tool.name].append(result)
        calls = {}
        if args.calls and rate == 1000:
            calls = {t.name: system_calls(t, target, rate) for t in found if results[t.name]}
    print(f"\n{python}, {depth} deep, {rate} per second")
    ours = median(results["hangscope"], "cpu")
    for name, runs in results.items():
        if not runs:
            continue
        judged = sum(r["judged"] for r in runs)
        wrong = f"{sum(r['wrong'] for r in runs) / judged:8.3%} of {judged:6}" if judged else " " * 18
        per_sample = f"{calls[name]:7.1f}" if calls.get(name) else "      –"
        print(
            f"  {name:20} cpu {median(runs, 'cpu'):7.1f} µs per sample {median(runs, 'cpu') / ours:6.2f} × "
            f" {median(runs, 'rate'):6.0f}/s  impossible {wrong}  dropped {median(runs, 'lost'):6.2%}"
            f"  target {median(runs, 'slower'):5.3f} × slower  {per_sample} system calls",
            flush=True,
        )


def median(runs, key):
    return statistics.median(run[key] for run in runs)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--seconds", type=int, default=4)
    ap.add_argument("--rates", default="1000,100")
    ap.add_argument("--depths", default="20,200")
    ap.add_argument("--pythons", default="python3.15,python3.13")
    ap.add_argument("--pause", action="store_true", help="also --pause and py-spy's default, which stop the target")
    ap.add_argument("--highest", action="store_true", help="as fast as it goes, and nothing else")
    ap.add_argument("--no-calls", dest="calls", action="store_false")
    ap.add_argument("--hangscope", default=str(ROOT / "target" / "release" / "hangscope"))
    args = ap.parse_args()
    if not os.path.isdir(SID + "/usr"):
        sys.exit(f"{SID} is not there: tools/ says how it is made")
    os.makedirs(SID + SHARED, exist_ok=True)
    try:
        found = tools(args)
        print("measured:", ", ".join(tool.name for tool in found))
        for python in args.pythons.split(","):
            for depth in map(int, args.depths.split(",") if args.highest else []):
                highest(python, depth, args, found)
            for rate in map(int, [] if args.highest else args.rates.split(",")):
                for depth in map(int, args.depths.split(",")):
                    measure(python, depth, rate, args, found)
    finally:
        shutil.rmtree(SID + SHARED)


if __name__ == "__main__":
    main()
