#!/bin/bash
# Build free-threaded CPythons (3.14t, 3.13t, 3.15t) inside a Debian sid chroot,
# from Debian's own source packages, as live targets for testing.
#
#   tools/build-free-threaded.sh SID_ROOT [VERSION...]
#   e.g. tools/build-free-threaded.sh /opt/hangscope/sid 3.14 3.13 3.15
#
# Result: SID_ROOT/opt/ft/3.1Xt/bin/python3.1Xt, unstripped (-g -O2).
# Needs root, and a network path to deb.debian.org. Safe to run again: a build
# that already passes its check is skipped, an interrupted one is resumed by make.
# JOBS=2 in the environment raises make's parallelism (default 1: shared machine).
set -euo pipefail

root=${1:?usage: $0 SID_ROOT [VERSION...]}
shift
[ $# -gt 0 ] || set -- 3.14 3.13 3.15
jobs=${JOBS:-1}
src=/usr/src/ft         # inside the chroot: sources and build trees

in_root() {
    # A clean environment: the host's PATH, PYTHON* or CFLAGS must not leak into
    # configure. C.UTF-8 because sid's minimal chroot has no other locale.
    # nice 19: the machine has two cores and others are using them.
    nice -n 19 chroot "$root" /usr/bin/env -i \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive "$@"
}

# The mirror reached from here is a frozen snapshot, so its Release file is past
# its Valid-Until date. Waive that one freshness check, for these commands only;
# signatures and hashes are still verified.
apt_get() { in_root apt-get -o Acquire::Check-Valid-Until=false -o Dpkg::Use-Pty=0 "$@"; }

# Does /opt/ft/<v>t work? Prints its version line; fails otherwise.
check() {
    in_root "/opt/ft/$1t/bin/python$1t" -c '
import sys
import ssl, ctypes, asyncio, multiprocessing, threading
print(sys._is_gil_enabled(), sys.version)
sys.exit(sys._is_gil_enabled())'
}

missing=()
for v in "$@"; do
    if check "$v" 2>/dev/null; then
        echo "== $v: already built"
    else
        missing+=("$v")
    fi
done
[ ${#missing[@]} -gt 0 ] || exit 0

# /proc: python's configure and test programs, and multiprocessing, want it.
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"

# Source packages are not in debootstrap's sources.list.
grep -q '^deb-src ' "$root/etc/apt/sources.list" ||
    echo 'deb-src http://deb.debian.org/debian sid main' >>"$root/etc/apt/sources.list"
apt_get update
# Only what the wanted modules need (ssl, ctypes, zlib), not the whole build-dep
# list: that pulls in Tk, X and the documentation tools.
apt_get install -y --no-install-recommends \
    gcc make libc6-dev dpkg-dev pkg-config libssl-dev zlib1g-dev libffi-dev

mkdir -p "$root$src"
unavailable=()
for v in "${missing[@]}"; do
    echo "== $v: source $(date -u +%T)"
    in_root mkdir -p "$src/$v"
    # The stamp is written last, so a half-unpacked tree is never built.
    if [ ! -e "$root$src/$v/unpacked" ]; then
        # The index may list several versions, and the mirror need not hold the
        # files of each (404): take the newest that can be had.
        # A Debian-patched tree. APT::Sandbox::User=root: _apt may not write here.
        # Status 3 means no version could be downloaded.
        rc=0
        in_root bash -c '
            set -euo pipefail
            cd "$1"; rm -rf tree ./*.dsc ./*.tar.*
            got=
            for ver in $(apt-cache showsrc --only-source "python$2" |
                         sed -n "s/^Version: //p" | sort -Vru); do
                if apt-get -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false \
                       source --download-only "python$2=$ver"; then
                    got=$ver
                    break
                fi
                rm -f ./*.dsc ./*.tar.*
            done
            [ -n "$got" ] || exit 3
            dpkg-source -x "python$2_$got.dsc" tree
            touch unpacked' bash "$src/$v" "$v" || rc=$?
        if [ $rc -eq 3 ]; then
            echo "== $v: the mirror serves no source package; skipped"
            unavailable+=("$v")
            continue
        fi
        [ $rc -eq 0 ] || exit $rc
    fi

    echo "== $v: build $(date -u +%T)"
    in_root bash -c '
        set -euo pipefail
        mkdir -p "$1/build"; cd "$1/build"
        # No --enable-optimizations (PGO): several times slower to build.
        [ -e Makefile ] || ../tree/configure --disable-gil --prefix="/opt/ft/$2t" \
            --without-ensurepip CFLAGS="-g -O2"
        make -j"$3"
        # altinstall: only versioned names (python3.1Xt).
        make altinstall' bash "$src/$v" "$v" "$jobs"

    check "$v"
    echo "== $v: done $(date -u +%T)"
done

if [ ${#unavailable[@]} -gt 0 ]; then
    echo "no source package to be had for: ${unavailable[*]}" >&2
    exit 3
fi
