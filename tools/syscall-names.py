#!/usr/bin/env python3
"""Regenerates src/target/syscall_names.rs from the installed kernel headers (linux-libc-dev) with cc.

aarch64 has no table of its own: it uses asm-generic/unistd.h with the switches below
(arch/arm64/include/uapi/asm/unistd.h). Numbers from 424 on are the same on all architectures.
"""
import re, subprocess, sys

ARM64 = "RENAMEAT NEW_STAT SET_GET_RLIMIT TIME32_SYSCALLS SYS_CLONE3 MEMFD_SECRET".split()
X86 = "#include <asm/unistd_64.h>\n"
A64 = "".join(f"#define __ARCH_WANT_{w}\n" for w in ARM64) + "#include <asm-generic/unistd.h>\n"
# Newer than the headers of Debian 12 (6.1); include/uapi/asm-generic/unistd.h of 6.17.
NEWER = {451: "cachestat", 452: "fchmodat2", 454: "futex_wake", 455: "futex_wait", 456: "futex_requeue",
         457: "statmount", 458: "listmount", 459: "lsm_get_self_attr", 460: "lsm_set_self_attr",
         461: "lsm_list_modules", 462: "mseal", 463: "setxattrat", 464: "getxattrat", 465: "listxattrat",
         466: "removexattrat", 467: "open_tree_attr", 468: "file_getattr", 469: "file_setattr"}


def table(source):
    macros = subprocess.run(["cc", "-E", "-dM", "-"], input=source, text=True, check=True, capture_output=True).stdout
    names = re.findall(r"#define (__NR_\w+) ", macros)
    wanted = source + "".join(f"@ {n[5:]} {n}\n" for n in names if n not in ("__NR_syscalls", "__NR_arch_specific_syscall"))
    text = subprocess.run(["cc", "-E", "-P", "-"], input=wanted, text=True, check=True, capture_output=True).stdout
    found = dict(NEWER)
    for line in text.splitlines():
        if m := re.match(r"@ (\w+) (\d+)$", line):
            found[int(m[2])] = m[1]
    return found


def rust(name, entries):
    entries = [f'({n}, "{entries[n]}")' for n in sorted(entries)]
    body = ",\n".join("    " + ", ".join(entries[i:i + 5]) for i in range(0, len(entries), 5))
    return f"pub(super) const {name}: &[(u16, &str)] = &[\n{body},\n];\n"


out = sys.argv[1] if len(sys.argv) > 1 else "src/target/syscall_names.rs"
with open(out, "w") as f:
    f.write("//! System call numbers and their names, sorted by number. Written by tools/syscall-names.py.\n\n")
    f.write("#[rustfmt::skip]\n" + rust("X86_64", table(X86)) + "\n#[rustfmt::skip]\n" + rust("AARCH64", table(A64)))
