"""What a boot costs in exits: each kind, port, address and register, by the kernel's own count.

KVM's trace events are counted by histograms in the kernel while one guest boots and ends, and
nothing else runs on KVM. Ports that KVM serves itself (PIT, PIC, port 0x61) are among the ports
too; what goes on to the monitor is the table of user space.
"""

from __future__ import annotations

import re
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pyvirt.harness.guest import initramfs, kernel
from pyvirt.harness.guest.tool import run

from ..part import Part, Place, Round, Row, Table, Turn
from ..peers import PYVIRT, QEMU, present
from ..peers.peer import BZIMAGE, ELF, Guest, Peer, image
from .boot import SCRIPT, boot

TRACING = Path("/sys/kernel/tracing")
MOUNT_SECONDS = 10.0
# linux/kvm.h
USER = {
    0: "unknown",
    2: "port",
    5: "HLT",
    6: "MMIO",
    8: "shutdown",
    10: "signal",
    24: "system event",
}
# The kernel's uapi/asm/svm.h and uapi/asm/vmx.h
SVM = {
    **{0x40 + number: f"exception {number}" for number in range(32)},
    **{number: f"read of CR{number}" for number in range(16)},
    **{0x10 + number: f"write of CR{number}" for number in range(16)},
    **{0x20 + number: f"DR{number % 16}" for number in range(32)},
    0x60: "interrupt",
    0x61: "NMI",
    0x64: "interrupt window",
    0x65: "write of CR0",
    0x6E: "RDTSC",
    0x72: "CPUID",
    0x77: "PAUSE",
    0x78: "HLT",
    0x79: "INVLPG",
    0x7B: "port",
    0x7C: "MSR",
    0x7F: "shutdown",
    0x81: "VMMCALL",
    0x89: "WBINVD",
    0x8D: "XSETBV",
    0x400: "page fault of the guest's memory, or MMIO",
}
VMX = {
    0: "exception",
    1: "interrupt",
    2: "shutdown",
    7: "interrupt window",
    10: "CPUID",
    12: "HLT",
    18: "VMCALL",
    28: "control register",
    29: "DR",
    30: "port",
    31: "read of MSR",
    32: "write of MSR",
    40: "PAUSE",
    48: "page fault of the guest's memory",
    49: "MMIO",
    52: "preemption timer",
    54: "WBINVD",
    55: "XSETBV",
}
PORTS = (
    (range(0x20, 0x22), "PIC"),
    (range(0x40, 0x44), "PIT"),
    (range(0x60, 0x61), "keyboard controller"),
    (range(0x61, 0x62), "PIT's gate"),
    (range(0x64, 0x65), "keyboard controller"),
    (range(0x70, 0x72), "RTC"),
    (range(0x80, 0x81), "POST"),
    (range(0xA0, 0xA2), "PIC"),
    (range(0x2E8, 0x2F0), "COM4"),
    (range(0x2F8, 0x300), "COM2"),
    (range(0x3E8, 0x3F0), "COM3"),
    (range(0x3F8, 0x400), "COM1"),
    (range(0x510, 0x51C), "fw_cfg"),
    (range(0xCF8, 0xD00), "PCI"),
)
EVENTS = {
    "kvm_exit": "exit_reason",
    "kvm_userspace_exit": "reason",
    "kvm_pio": "port,rw",
    "kvm_mmio": "gpa,type",
    "kvm_msr": "ecx,write",
    "kvm_cpuid": "function",
}
COUNT = Row("", "", 0, less=True)
LEAST = 5  # of what has a row in the report
REASONS, TO_USER, PORT, ADDRESS, REGISTER, LEAF = (
    Table(name=name, compare=(), found=COUNT, least=LEAST)
    for name in ("Exits", "Exits to user space", "Ports", "Addresses", "Registers", "CPUID leaves")
)
TIME = Row("processor time", "s", 3, less=True)
TOTALS = Table(
    (TIME, Row("exits", "", 0, less=True), Row("exits to user space", "", 0, less=True)),
    compare=((f"{PYVIRT}, {ELF}", f"{QEMU}, {ELF}"), (f"{PYVIRT}, {ELF}", f"{PYVIRT}, {BZIMAGE}")),
)
_LINE = re.compile(r"^\{ (.*) \} hitcount: +(\d+)", re.MULTILINE)


def parse(text: str) -> Iterator[tuple[dict[str, int], int]]:
    """Yield the keys and the count of each line of a histogram."""
    for line in _LINE.finditer(text):
        words = (pair.split(":") for pair in line[1].split(", "))
        yield {name.strip(): int(value) for name, value in words}, int(line[2])


def port(number: int) -> str:
    """Return a port in words."""
    what = next((name for ports, name in PORTS if number in ports), "")
    return f"{number:#05x} {what}".rstrip()


@contextmanager
def histograms() -> Iterator[None]:
    """Have the events counted, from nothing."""
    if not (TRACING / "events").exists():
        run(["mount", "-t", "tracefs", "tracefs", str(TRACING)], timeout=MOUNT_SECONDS)
    triggers = {
        TRACING / "events/kvm" / event: f"hist:keys={keys}" for event, keys in EVENTS.items()
    }
    try:
        for place, words in triggers.items():
            (place / "trigger").write_text(words, encoding="ascii")
        yield
    finally:
        for place, words in triggers.items():
            (place / "trigger").write_text(f"!{words}", encoding="ascii")


def counted(read: Callable[[str], str], reasons: Mapping[int, str]) -> dict[str, list[float]]:
    """Return the rows of one boot; `read` returns an event's histogram."""
    found: Counter[str] = Counter()

    def add(table: Table, name: str, count: int) -> None:
        found[table.key(Row(name))] += count

    for keys, count in parse(read("kvm_exit")):
        reason = keys["exit_reason"]
        add(REASONS, reasons.get(reason, f"reason {reason:#x}"), count)
        found["exits"] += count
    for keys, count in parse(read("kvm_userspace_exit")):
        add(TO_USER, USER.get(keys["reason"], f"reason {keys['reason']}"), count)
        found["exits to user space"] += count
    for keys, count in parse(read("kvm_pio")):
        add(PORT, f"{port(keys['port'])}, {'write' if keys['rw'] else 'read'}", count)
    for keys, count in parse(read("kvm_mmio")):
        # 0 is a read that nobody in the kernel has answered yet, and counts as the read it becomes.
        if keys["type"]:
            page, kind = keys["gpa"] >> 12 << 12, "write" if keys["type"] == 2 else "read"
            add(ADDRESS, f"page {page:#x}, {kind}", count)
    for keys, count in parse(read("kvm_msr")):
        add(REGISTER, f"{keys['ecx']:#x}, {'write' if keys['write'] else 'read'}", count)
    for keys, count in parse(read("kvm_cpuid")):
        add(LEAF, f"{keys['function']:#x}", count)
    return {name: [float(count)] for name, count in found.items()}


def ready() -> Callable[[Turn], Round]:
    """Return what boots each monitor with each format once, and counts."""
    micro = kernel.find("micro")
    guest = Guest(image(micro), str(initramfs.build(micro, script=SCRIPT)))
    reasons = SVM if Path("/sys/module/kvm_amd").exists() else VMX

    def count(peer: Peer, kind: str) -> dict[str, list[float]]:
        with histograms():
            before = spent()
            boot(peer, guest, kind)
            took = spent() - before
            found = counted(
                lambda event: (TRACING / "events/kvm" / event / "hist").read_text(), reasons
            )
        return {TIME.name: [took], **found}

    def measure(turn: Turn) -> Round:
        boots = {
            f"{one.name}, {kind}": (one, kind) for one in present(turn) for kind in one.formats
        }
        return {name: count(*boots[name]) for name in turn.order(boots)}

    return measure


def spent() -> float:
    """Return the processor time of all processes that have been waited for, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


PART = Part(
    name="account",
    title="What a boot costs in exits",
    what="The boot of above, once more, under KVM's own trace events: exits of the processor by "
    "reason, those that go on to the monitor, and by port, address and register what they were "
    f"for, if there were {LEAST} or more. Ports that KVM serves itself (PIT, PIC) are among the "
    "ports; reads of MMIO that a memory slot serves are no exits. Processor time is the monitor's "
    "and the guest's together.",
    place=Place.COUNTED,
    rounds=3,
    at_once=None,
    warm_up=1,
    seconds=1100,
    ready=ready,
    tables=(TOTALS, REASONS, TO_USER, PORT, ADDRESS, REGISTER, LEAF),
)
