#!/usr/bin/env bash
# Makes the Debian sid root that the tests use: Python 3.13, 3.14 and 3.15 of today, with another glibc
# and another root than the machine's own, so that it also stands in for a container.
#
#   sudo tools/sid-root.sh [DIR]        DIR defaults to $HANGSCOPE_SID or /opt/hangscope/sid
#
# Does nothing where it is there already. Needs Debian (debootstrap), root and the network.
set -euo pipefail

dir=${1:-${HANGSCOPE_SID:-/opt/hangscope/sid}}
# The debug twins (python3.13d …) test Py_DEBUG builds, the headers tools/offsets.py.
packages=python3.13,python3.14,python3.15,python3.13-dbg,python3.14-dbg,python3.15-dbg
headers="python3.13-dev python3.14-dev python3.15-dev"

if ! command -v debootstrap >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq debootstrap
fi
# debootstrap keeps a directory of its own until it is done: one that was cut short goes on.
if ! [ -x "$dir/usr/bin/python3.15" ] || [ -d "$dir/debootstrap" ]; then
    mkdir -p "$dir"
    debootstrap --variant=minbase --include="$packages" sid "$dir"
fi
# Some of what these do needs /proc; and the programs under test want it, too.
mountpoint -q "$dir/proc" || mount -t proc proc "$dir/proc"
if ! [ -d "$dir/usr/include/python3.15/internal" ]; then
    # A clock or a mirror may be off by days; nothing here is worth an attack.
    chroot "$dir" apt-get -o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false update -qq
    # shellcheck disable=SC2086
    chroot "$dir" apt-get install -y -qq --no-install-recommends $headers
fi
echo "$dir: $(chroot "$dir" python3.13 -V), $(chroot "$dir" python3.14 -V), $(chroot "$dir" python3.15 -V)"
