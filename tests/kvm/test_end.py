"""How a guest ends itself, and how it is ended: reason, exit status, and what the log says."""

from __future__ import annotations

import re

import pytest
from pyvirt.errors import KvmError
from pyvirt.vmm import kvm, layout
from pyvirt.vmm.execution import ENDED
from pyvirt.vmm.vcpu import Vcpu

from .conftest import Make
from .support import MAILBOX, Guest, exceptions_fail

OUT_8, OUT_16, OUT_32, WRITE_8 = 4, 5, 6, 11  # operations of script.S
DEBUG_EXIT, SLEEP_CONTROL, RESET, I8042, BOOT_TIMER = 0xF4, 0x600, 0x602, 0x64, 0x505
RESET_VECTOR = 0xFFF0

_GENERAL = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"
_ROWS = (
    *(["rax", "rbx", "rcx", "rdx"], ["rsi", "rdi", "rbp", "rsp"], ["r8", "r9", "r10", "r11"]),
    *(["r12", "r13", "r14", "r15"], ["rip", "rflags"], ["cr0", "cr2", "cr3", "cr4", "efer"]),
    *(["cs"], ["ss"], ["tr"], ["gdt"], ["idt"]),
)


def write_ports(guest: Guest, *writes: tuple[int, int, int]) -> tuple[str, int]:
    """Let the guest write ports (operation, port, value), then end by itself; return its end."""
    words: list[int] = []
    for operation, port, value in writes:
        words += (operation, port, value, 0)
    guest.write_words(MAILBOX, *words, 0)
    return guest.run()


def done(guest: Guest, count: int) -> list[int]:
    """Return which of the first `count` writes the guest got past."""
    return guest.read_words(MAILBOX, 4 * count)[3::4]


@pytest.mark.parametrize("value", [0, 1, 42, 255])
def test_debug_exit_gives_its_value(machine: Make, value: int) -> None:
    guest = machine("script")
    ended = write_ports(guest, (OUT_8, DEBUG_EXIT, value), (OUT_8, DEBUG_EXIT, value ^ 0x80))
    assert ended == ("debug-exit", value)
    assert guest.state == ENDED
    assert guest.log_text() == ""


@pytest.mark.any_kvm
@pytest.mark.parametrize(("operation", "value"), [(OUT_16, 0x1234), (OUT_32, 0x89AB_CD34)])
def test_a_wide_debug_exit_gives_its_lowest_byte(machine: Make, operation: int, value: int) -> None:
    assert write_ports(machine("script"), (operation, DEBUG_EXIT, value)) == ("debug-exit", 0x34)


def test_a_guest_without_ports_writes_to_memory(machine: Make) -> None:
    guest = machine("script")
    assert write_ports(guest, (WRITE_8, layout.DEBUG_EXIT_MMIO, 7)) == ("debug-exit", 7)


def test_no_instruction_runs_after_the_one_that_ends_it(machine: Make) -> None:
    """The write itself is complete: the instruction behind it would have been next."""
    guest = machine("script")
    write_ports(guest, (OUT_8, BOOT_TIMER, 0), (OUT_8, DEBUG_EXIT, 3), (OUT_8, BOOT_TIMER, 1))
    assert done(guest, 3) == [1, 0, 0]
    assert "init" not in guest.marks


@pytest.mark.parametrize(
    ("port", "value", "reason"),
    [
        (SLEEP_CONTROL, 0x34, "guest-shutdown"),
        (RESET, 1, "guest-reset"),
        (I8042, 0xFE, "guest-reset"),
    ],
)
def test_power_registers_end_the_guest(machine: Make, port: int, value: int, reason: str) -> None:
    guest = machine("script")
    assert write_ports(guest, (OUT_8, port, value), (OUT_8, DEBUG_EXIT, 9)) == (reason, 0)
    assert done(guest, 2) == [0, 0]
    assert guest.marks[-1] == "end"


@pytest.mark.any_kvm
@pytest.mark.parametrize(
    ("port", "value"),
    [
        (SLEEP_CONTROL, 0x14),  # S5 without SLP_EN
        (SLEEP_CONTROL, 0x30),  # S4
        (SLEEP_CONTROL + 1, 0x34),  # the status register
        (RESET, 0),
        (RESET, 2),
        (I8042, 0xAA),  # controller self-test
        (BOOT_TIMER, 0),
    ],
)
def test_other_values_do_not_end_the_guest(machine: Make, port: int, value: int) -> None:
    guest = machine("script")
    assert write_ports(guest, (OUT_8, port, value), (OUT_8, DEBUG_EXIT, 9)) == ("debug-exit", 9)
    assert done(guest, 2) == [1, 0]


@pytest.mark.any_kvm
def test_boot_timer_marks_init_once_the_guest_says_so(machine: Make) -> None:
    guest = machine("script")
    assert guest.marks == ["vm-ready", "kernel-loaded"]
    write_ports(guest, (OUT_8, BOOT_TIMER, 1))
    assert guest.marks == ["vm-ready", "kernel-loaded", "init", "end"]


def registers_in(dump: list[str]) -> dict[str, int]:
    """Check that a register dump has the rows it should; return the general registers."""
    assert [re.findall(r"\b([a-z]\w+)\s+[0-9a-f]{16}\b", row) for row in dump[:6]] == list(
        _ROWS[:6]
    )
    assert [row.split()[0] for row in dump[6:]] == [names[0] for names in _ROWS[6:]]
    pairs = re.findall(r"\b([a-z]\w+)\s+([0-9a-f]{16})\b", "\n".join(dump[:5]))
    assert [name for name, _ in pairs] == _GENERAL.split()
    return {name: int(value, 16) for name, value in pairs}


def test_a_triple_fault_is_told_with_the_registers(machine: Make) -> None:
    guest = machine("triple_fault")
    assert guest.run() == ("triple-fault", 1)
    first, *dump = guest.log_text().splitlines()
    assert first == "pyvirt: vCPU 0: the guest triple-faulted"
    if dump[-1].startswith("(at reset: "):
        assert not exceptions_fail()  # this is a real KVM, on an AMD processor
        assert registers_in(dump[:-1])["rip"] == RESET_VECTOR
        return
    registers = registers_in(dump)
    assert registers["rax"] == 0x1122_3344_5566_7788
    assert registers["r15"] == 0xFEED_FACE
    assert 0x10_0000 <= registers["rip"] < 0x10_1000


def test_an_exception_reaches_its_handler_where_the_probe_says_so(machine: Make) -> None:
    guest = machine("breakpoint")
    failure = exceptions_fail()
    ended = guest.run()
    if failure:
        assert ended == ("crash", 1)
        first, *dump = guest.log_text().splitlines()
        assert first == f"pyvirt: vCPU 0: {failure}"
        registers_in(dump)
    else:
        assert ended == ("debug-exit", 77)
        assert guest.log_text() == ""


@pytest.mark.any_kvm
@pytest.mark.parametrize("registers_fail", [False, True])
def test_a_failing_kvm_run_ends_the_machine(
    machine: Make, monkeypatch: pytest.MonkeyPatch, registers_fail: bool
) -> None:
    """A VM that KVM has given up fails every ioctl, the one for its registers too."""

    def fail(*_: object) -> int:
        raise KvmError("KVM_RUN", 5)

    guest = machine("spin")
    monkeypatch.setattr(Vcpu, "run", fail)
    if registers_fail:
        monkeypatch.setattr(kvm, "GET_REGS", fail)
    assert guest.run() == ("crash", 1)
    first, *dump = guest.log_text().splitlines()
    assert first == "pyvirt: vCPU 0: KVM_RUN: Input/output error"
    assert len(dump) == (1 if registers_fail else len(_ROWS))
