"""The kernel's reports: each kind is known by its first line, and gets its title."""

from __future__ import annotations

import re

import pytest
from pyvirt.harness.judge import splat
from pyvirt.harness.judge.classifier import Classifier
from pyvirt.harness.judge.splat import HEADS, Splat
from pyvirt.harness.judge.verdict import Verdict

from ..kernel_log import BOOT, oops, stamped, warning

HUNG, OOPSED, PANICKED, WARNED = Verdict.HUNG, Verdict.OOPSED, Verdict.PANICKED, Verdict.WARNED

# The first line, its kind, the title.
SAMPLES = [
    ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b", PANICKED,
     "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b"),
    ("Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)", PANICKED,
     "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"),
    ("VFS: Unable to mount root fs via NFS, trying floppy.", PANICKED,
     "VFS: Unable to mount root fs via NFS, trying floppy"),
    ("Oops: 0002 [#1] PREEMPT SMP NOPTI", OOPSED, "Oops"),
    ("Oops: general protection fault, probably for non-canonical address 0xdead01: 0000 [#1] SMP",
     OOPSED, "Oops: general protection fault"),
    ("general protection fault, maybe for address 0x8: 0000 [#1] PREEMPT SMP", OOPSED,
     "general protection fault"),
    ("invalid opcode: 0000 [#2] PREEMPT SMP", OOPSED, "invalid opcode"),
    ("divide error: 0000 [#1] SMP", OOPSED, "divide error"),
    ("stack segment: 0000 [#1] SMP", OOPSED, "stack segment"),
    ("kernel stack overflow (double-fault): 0000 [#1] SMP", OOPSED,
     "kernel stack overflow (double-fault)"),
    ("BUG: kernel NULL pointer dereference, address: 0000000000000008", OOPSED,
     "BUG: kernel NULL pointer dereference"),
    ("BUG: unable to handle page fault for address: ffffc90000010000", OOPSED,
     "BUG: unable to handle page fault"),
    ("BUG: unable to handle kernel paging request at ffffffffdeadbeef", OOPSED,
     "BUG: unable to handle kernel paging request"),
    ("BUG: TASK stack guard page was hit at 00000000c3a2d3b1 (stack is 00000000a..00000000b)",
     OOPSED, "BUG: TASK stack guard page was hit"),
    ("kernel BUG at drivers/misc/lkdtm/bugs.c:78!", OOPSED,
     "kernel BUG at drivers/misc/lkdtm/bugs.c:78!"),
    ("traps: PANIC: double fault, error_code: 0x0", OOPSED, "PANIC: double fault, error_code: 0x0"),
    ("Unhandled fault: imprecise external abort (0x1406) at 0x00000000b6f2d000", OOPSED,
     "Unhandled fault: imprecise external abort (0x1406)"),
    ("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:81]", HUNG,
     "BUG: soft lockup - CPU stuck! [sh]"),
    ("BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 34s!", HUNG,
     "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck!"),
    ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 1", HUNG,
     "Watchdog detected hard LOCKUP on cpu"),
    ("watchdog: Watchdog detected hard LOCKUP on cpu 0", HUNG,
     "Watchdog detected hard LOCKUP on cpu"),
    ("rcu: INFO: rcu_preempt self-detected stall on CPU", HUNG,
     "INFO: rcu_preempt self-detected stall on CPU"),
    ("rcu: INFO: rcu_sched detected stalls on CPUs/tasks:", HUNG,
     "INFO: rcu_sched detected stalls on CPUs/tasks"),
    ("rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-.... } 21 jiffies", HUNG,
     "INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-.... } 21 jiffies"),
    ("INFO: task sh:81 blocked for more than 120 seconds.", HUNG, "INFO: task sh blocked"),
    ("BUG: KASAN: slab-use-after-free in frob+0x1a/0x30 [mod]", WARNED,
     "BUG: KASAN: slab-use-after-free in frob"),
    ("BUG: KCSAN: data-race in frob+0x1/0x2 / unfrob+0x3/0x4", WARNED,
     "BUG: KCSAN: data-race in frob / unfrob"),
    ("BUG: KMSAN: uninit-value in frob+0x1/0x2", WARNED, "BUG: KMSAN: uninit-value in frob"),
    ("UBSAN: array-index-out-of-bounds in lib/frob.c:12:3", WARNED,
     "UBSAN: array-index-out-of-bounds in lib/frob.c:12:3"),
    ("BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580", WARNED,
     "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580"),
    ("BUG: scheduling while atomic: sh/81/0x00000002", WARNED, "BUG: scheduling while atomic: sh"),
    ("BUG: Bad page state in process sh  pfn:03e5f", WARNED, "BUG: Bad page state in process sh"),
    ("BUG: recent printk recursion!", WARNED, "BUG: recent printk recursion!"),
    ("WARNING: CPU: 0 PID: 77 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110", WARNED,
     "WARNING: at lib/refcount.c:28 refcount_warn_saturate"),
    ("WARNING: lib/refcount.c:28 at refcount_warn_saturate+0xba/0x110, CPU#0: sh/77", WARNED,
     "WARNING: lib/refcount.c:28 at refcount_warn_saturate"),
    ("WARNING: possible circular locking dependency detected", WARNED,
     "WARNING: possible circular locking dependency detected"),
    ("WARNING: suspicious RCU usage", WARNED, "WARNING: suspicious RCU usage"),
    ("WARNING: inconsistent lock state", WARNED, "WARNING: inconsistent lock state"),
    ("WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected", WARNED,
     "WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected"),
    ("INFO: possible deadlock", WARNED, "INFO: possible deadlock"),
    ("INFO: trying to register non-static key.", WARNED, "INFO: trying to register non-static key"),
    ("kmemleak: unreferenced object 0xffff888003c8e000 (size 32):", WARNED,
     "unreferenced object (size 32)"),
    ("ref_tracker: eth0@00000000c3a2d3b1 has 1/1 users at", WARNED,
     "ref_tracker: eth0 has 1/1 users at"),
    ("Out of memory: Killed process 1 (init) total-vm:1024kB, anon-rss:512kB", WARNED,
     "Out of memory: Killed process (init) total-vm:1024kB, anon-rss:512kB"),
]  # fmt: skip

NEWS = [
    "WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks!",
    "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
    "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.2 msecs",
    "DEBUG: nothing",
    "frob: DEBUG: nothing",
    "traps: sh[81] general protection fault ip:46f1ab sp:7ffd2c1e6b38 error:0 in busybox[401000]",
    "traps: sh[81] trap invalid opcode ip:46f1ab sp:7ffd2c1e6b38 error:0 in busybox[401000]",
    "Out of memory: Killed process 99 (hog) total-vm:1024kB, anon-rss:512kB",
    "Kernel command line: panic=-1 oops=panic",
    "---[ end Kernel panic - not syncing: sysrq triggered crash ]---",
    "Debugging: BUG: of a program",
]


def found(log: bytes) -> list[Splat]:
    splats: list[Splat] = []
    classifier = Classifier(splats.append)
    classifier.feed(log, 0.0)
    classifier.finish()
    return splats


@pytest.mark.parametrize(("line", "kind", "title"), SAMPLES, ids=[s[0][:40] for s in SAMPLES])
@pytest.mark.parametrize("has_stamps", [True, False])
def test_a_head_and_its_title(line: str, kind: Verdict, title: str, has_stamps: bool) -> None:
    text = BOOT + line + "\n"
    (one,) = found(stamped(text) if has_stamps else text.encode())
    assert (one.kind, one.title) == (kind, title)
    assert one.lines[0].endswith(line)


def test_every_row_of_the_table_has_a_sample() -> None:
    starts = [re.compile(head.start) for head in HEADS]
    messages = [
        re.sub(r"^(?:rcu|NMI watchdog|watchdog|traps|kmemleak): ", "", s[0]) for s in SAMPLES
    ]
    firsts = {
        next(number for number, start in enumerate(starts) if start.match(message))
        for message in messages
    }
    assert firsts == set(range(len(HEADS)))


@pytest.mark.parametrize("name", splat._EXCEPTIONS.split("|"))
def test_every_exception(name: str) -> None:
    (one,) = found(stamped(BOOT + f"{name}: 0000 [#1] SMP\n"))
    assert (one.kind, one.title) == (OOPSED, name)


@pytest.mark.parametrize("line", NEWS)
@pytest.mark.parametrize("has_stamps", [True, False])
def test_what_is_no_report(line: str, has_stamps: bool) -> None:
    text = BOOT + line + "\n"
    assert found(stamped(text) if has_stamps else text.encode()) == []


def test_the_place_is_in_the_title() -> None:
    (one,) = found(stamped(BOOT + oops("frob")))
    assert one.title == "BUG: kernel NULL pointer dereference in frob"
    (one,) = found(stamped(BOOT + warning("frob")))
    assert one.title == "WARNING: at drivers/frob.c:91 frob"


def test_a_fingerprint_is_of_kind_and_place() -> None:
    def of(text: str) -> str:
        (one,) = found(stamped(BOOT + text))
        return one.fingerprint

    first = of(warning("frob"))
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert of(warning("frob", pid=99).replace("+0x12", "+0x16")) == first
    assert of(warning("frob").replace("frob+0x12", "frob.isra.0+0x12")) == first
    assert of(warning("other")) != first
    assert of(oops("frob")) != first


def test_only_five_functions_count() -> None:
    lines = [f" f{number}+0x1/0x2" for number in range(6)]
    other = [*lines[:5], " g+0x1/0x2"]
    assert splat.fingerprint(WARNED, "", lines) == splat.fingerprint(WARNED, "", other)
    assert splat.fingerprint(WARNED, "", lines) != splat.fingerprint(WARNED, "", other[1:])
    # Without functions it is the title's.
    assert splat.fingerprint(WARNED, "a", []) != splat.fingerprint(WARNED, "b", [])
    # The kernel does not stand for those with a question mark.
    assert splat.fingerprint(WARNED, "", [" ? g+0x1/0x2", *lines]) == splat.fingerprint(
        WARNED, "", lines
    )
