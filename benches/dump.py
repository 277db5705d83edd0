#!/usr/bin/env python3
"""How long a whole `dump` takes, from process start to the last byte, paired with the peers.

    benches/dump.py [--runs N] [--hangscope PATH]

Installs py-spy (PyPI) into target/peers, and austin (PyPI: austin-dist) into the sid root, whose newer
glibc it needs; a peer that cannot be had is left out and named. Needs GNU time (Debian: time). The runs of all tools are interleaved,
so that what else the machine does meets all of them; what counts is the ratio of the medians.

Targets: one thread 20 deep that is busy, one that sleeps, and 200 threads 30 deep that sleep, each on
the python3 that runs this script; and, for austin, which reads its own root only, on the sid root's 3.13.
"""
import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SID = os.environ.get("HANGSCOPE_SID", "/opt/hangscope/sid")

TARGET = """
import sys, threading, time
sys.setrecursionlimit(10000)
threads, depth, busy = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "busy"
def leaf():
    if busy:
        x = 0
        while True:
            x += 1
    threading.Event().wait()
# As many functions as frames: real stacks are not one function over and over.
code = "\\n".join(f"def f{i}(n):\\n    return f{i+1}(n)" for i in range(depth)) + f"\\ndef f{depth}(n):\\n    return leaf()"
scope = {"leaf": leaf}
exec(compile(code, __file__, "exec"), scope)
for _ in range(threads - 1):
    threading.Thread(target=scope["f0"], args=(0,), daemon=True).start()
# Ends with whoever started it.
threading.Thread(target=lambda: (sys.stdin.read(), __import__("os")._exit(0)), daemon=True).start()
print("READY", flush=True)
scope["f0"](0)
"""


def peers(args):
    venv = ROOT / "target" / "peers"
    tools = {"hangscope": [args.hangscope, "dump", "--no-findings", "--pid", "{pid}"]}
    if not (venv / "bin" / "py-spy").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "-q", "py-spy"], check=False)
    if (venv / "bin" / "py-spy").exists():
        tools["py-spy --nonblocking"] = [str(venv / "bin" / "py-spy"), "dump", "--nonblocking", "--pid", "{pid}"]
    else:
        print("py-spy could not be installed: left out", file=sys.stderr)
    austin = austin_in_sid(venv)
    if austin:
        tools["austin -w"] = ["chroot", SID, austin, "-w", "{pid}"]
    else:
        print(f"austin could not be had (it needs the sid root, {SID}): left out", file=sys.stderr)
    return tools


def austin_in_sid(venv):
    if not os.path.isdir(SID + "/usr"):
        return None
    subprocess.run([venv / "bin" / "pip", "install", "-q", "austin-dist"], check=False)
    found = [p for p in venv.rglob("austin") if p.is_file() and os.access(p, os.X_OK)]
    binary = next((p for p in found if p.read_bytes()[:4] == b"\x7fELF"), None)
    if not binary:
        return None
    shutil.copy(binary, SID + "/usr/local/bin/austin")
    return "/usr/local/bin/austin"


def run(command, pid):
    """Wall and CPU seconds of one run, and whether it printed a report. Into a file: a pipe would add the time
    that this interpreter takes to read it."""
    command = [c.format(pid=pid) for c in command]
    with tempfile.TemporaryFile() as out:
        actions = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)]
        began = time.perf_counter()
        child = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
        _, status, used = os.wait4(child, 0)
        took = time.perf_counter() - began
        return took, used.ru_utime + used.ru_stime, status == 0 and os.fstat(out.fileno()).st_size > 100


def peak_memory(command, pid):
    """MiB, as the kernel counted it; through GNU time, a small process of its own, since a child of
    this one would count the pages of this interpreter."""
    done = subprocess.run(
        ["/usr/bin/time", "-f", "%M", *(c.format(pid=pid) for c in command)], capture_output=True, text=True
    )
    return int(done.stderr.split()[-1]) / 1024


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--runs", type=int, default=30)
    ap.add_argument("--hangscope", default=str(ROOT / "target" / "release" / "hangscope"))
    args = ap.parse_args()
    tools = peers(args)
    here = [os.path.realpath(sys.executable)]
    # austin reads only what runs in its own root.
    at_home = {name: command for name, command in tools.items() if name != "austin -w"}
    cases = [
        ("1 thread, 20 deep, busy", 1, 20, "busy"),
        ("1 thread, 20 deep, asleep", 1, 20, "asleep"),
        ("1 thread, 200 deep, asleep", 1, 200, "asleep"),
        ("200 threads, 30 deep, asleep", 200, 30, "asleep"),
    ]
    for title, *case in cases:
        with Target(here, "", case) as pid:
            measure(title, at_home, pid, args.runs)
    if "austin -w" in tools:
        for title, *case in cases[:2]:
            with Target(["chroot", SID, "python3.13"], SID, case) as pid:
                measure(f"{title}, python3.13 in the sid root", tools, pid, args.runs)


class Target:
    """A target that stands ready, ended on leaving."""

    def __init__(self, python, root, case):
        self.file = tempfile.NamedTemporaryFile("w", suffix=".py", dir=root + "/tmp")
        self.file.write(TARGET)
        self.file.flush()
        name = self.file.name[len(root):]
        self.process = subprocess.Popen(
            [*python, name, *map(str, case)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        assert self.process.stdout.readline().strip() == "READY"
        return self.process.pid

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.file.close()


def measure(title, tools, pid, runs):
    took = {name: [] for name in tools}
    cpu = {name: [] for name in tools}
    failed = dict.fromkeys(tools, 0)
    for _ in range(runs):
        for name, command in tools.items():
            seconds, used, ok = run(command, pid)
            if ok:
                took[name].append(seconds)
                cpu[name].append(used)
            else:
                failed[name] += 1
    print(f"\n{title}")
    ours = statistics.median(took["hangscope"])
    for name, command in tools.items():
        if not took[name]:
            print(f"  {name:22} failed every time")
            continue
        median = statistics.median(took[name])
        print(
            f"  {name:22} {median * 1e3:8.2f} ms  (least {min(took[name]) * 1e3:7.2f})"
            f"  cpu {statistics.median(cpu[name]) * 1e3:7.2f} ms  {median / ours:6.2f} × hangscope"
            f"  peak {peak_memory(command, pid):5.1f} MiB  failed {failed[name]} of {runs}"
        )


if __name__ == "__main__":
    main()
