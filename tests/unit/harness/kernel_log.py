"""A kernel's log for tests: messages, and reports in the shapes that Linux gives them."""

from __future__ import annotations

BOOT = """\
Linux version 6.1.0-test (builder@nowhere) (gcc 12.2.0) #1 SMP PREEMPT
Command line: console=ttyS0 nokaslr
BIOS-provided physical RAM map:
BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable
"""
REGISTERS = """\
RIP: 0010:{place}+0x12/0x40
Code: 0f 1f 44 00 00 55 48 89 e5 <0f> 0b 5d c3
RSP: 0018:ffffc9000004bdf8 EFLAGS: 00010246
RAX: 0000000000000000 RBX: 0000000000000002 RCX: 0000000000000000
CR2: 0000000000000000 CR3: 0000000003d5a000 CR4: 00000000000006b0
"""
TRACE = """\
Call Trace:
 <TASK>
 ? asm_exc_invalid_op+0x16/0x20
 {place}_caller+0x1d/0x30
 vfs_write+0xb5/0x290
 ksys_write+0x5f/0xe0
 do_syscall_64+0x5b/0xc0
 entry_SYSCALL_64_after_hwframe+0x64/0xce
RIP: 0033:0x46f1ab
RSP: 002b:00007ffd2c1e6b38 EFLAGS: 00000246 ORIG_RAX: 0000000000000001
 </TASK>
"""
COMMON = "CPU: 1 PID: 81 Comm: sh Not tainted 6.1.0-test #1\nHardware name: pyvirt\n"


def warning(place: str = "frob", pid: int = 81) -> str:
    return (
        "------------[ cut here ]------------\n"
        f"WARNING: CPU: 1 PID: {pid} at drivers/frob.c:91 {place}+0x12/0x40 [frob]\n"
        "Modules linked in: frob\n"
        + COMMON
        + REGISTERS.format(place=place)
        + TRACE.format(place=place)
        + "---[ end trace 0000000000000000 ]---\n"
    )


def oops(place: str = "frob") -> str:
    return (
        "BUG: kernel NULL pointer dereference, address: 0000000000000008\n"
        "#PF: supervisor write access in kernel mode\n"
        "#PF: error_code(0x0002) - not-present page\n"
        "PGD 0 P4D 0 \n"
        "Oops: 0002 [#1] PREEMPT SMP NOPTI\n"
        + COMMON
        + REGISTERS.format(place=place)
        + TRACE.format(place=place)
        + "Modules linked in:\nCR2: 0000000000000008\n---[ end trace 0000000000000000 ]---\n"
        + REGISTERS.format(place=place)
    )


def panic(reason: str = "sysrq triggered crash", *, ends: bool = True) -> str:
    return (
        f"Kernel panic - not syncing: {reason}\n"
        + COMMON
        + TRACE.format(place="panicker")
        + "Kernel Offset: disabled\n"
        + (f"---[ end Kernel panic - not syncing: {reason} ]---\n" if ends else "")
    )


def kasan(place: str = "frob") -> str:
    rule = "=" * 66 + "\n"
    return (
        rule
        + f"BUG: KASAN: slab-use-after-free in {place}+0x1a/0x30 [frob]\n"
        + "Read of size 8 at addr ffff888003c8e000 by task sh/81\n\n"
        + COMMON
        + TRACE.format(place=place)
        + "\nAllocated by task 81:\n kasan_save_stack+0x1e/0x40\n"
        + "Memory state around the buggy address:\n"
        + ">ffff888003c8e000: fa fb fb fb fb fb fb fb\n                   ^\n"
        + rule
    )


def lockdep() -> str:
    rule = "=" * 54 + "\n"
    return (
        rule
        + "WARNING: possible circular locking dependency detected\n6.1.0-test #1 Not tainted\n"
        + "-" * 54
        + "\nsh/81 is trying to acquire lock:\nffffffff82a4b0c0 (a){+.+.}-{3:3}, at: frob+0x1/0x2\n"
        + "\nstack backtrace:\n"
        + COMMON
        + TRACE.format(place="frob")
    )


def stall(head: str) -> str:
    return head + "\n" + COMMON + REGISTERS.format(place="spins") + TRACE.format(place="spins")


def stamped(text: str, start: float = 1.0, *, caller: str = "", level: str = "") -> bytes:
    """Return a log of these messages, as a serial console shows it."""
    lines = text.splitlines()
    return "".join(
        f"{level}[{start + number / 1000:12.6f}]{caller} {line}\r\n"
        for number, line in enumerate(lines)
    ).encode()
