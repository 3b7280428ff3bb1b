"""The probe: quick, the same each time, and right about this KVM."""

from __future__ import annotations

import errno
import os

import pytest
from pyvirt.errors import KvmError
from pyvirt.vmm import kvm, probe
from pyvirt.vmm.memory import GuestMemory

from .conftest import Make
from .support import exceptions_fail
from .test_create import SLOW, replace_by_unknown


def test_the_verdict_is_one_line_and_always_the_same() -> None:
    verdicts = {exceptions_fail() for _ in range(10)}
    assert len(verdicts) == 1
    assert "\n" not in verdicts.pop()


def test_the_verdict_is_what_a_machine_meets(machine: Make) -> None:
    assert (machine("breakpoint").run()[0] == "debug-exit") == (exceptions_fail() == "")


def test_a_guest_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_PROGRAM", bytes.fromhex("ebfe"))  # jmp to itself
    monkeypatch.setattr(probe, "_SECONDS", 0.1)
    assert exceptions_fail() == "the probe guest hangs in its first exception"


def test_a_handler_that_is_left_out_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A KVM that forgets the exception and goes on would do this."""
    monkeypatch.setattr(probe, "_PROGRAM", bytes.fromhex("90 b002 e6f4 f4"))
    assert exceptions_fail() != ""


@pytest.mark.any_kvm
@pytest.mark.parametrize(
    "name", ["CREATE_VM", "CREATE_IRQCHIP", "CREATE_VCPU", "SET_USER_MEMORY_REGION", "SET_SREGS"]
)
def test_a_kvm_that_cannot_even_do_that_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object) -> int:
        raise KvmError(f"KVM_{name}", errno.ENOMEM)

    if name in SLOW:
        replace_by_unknown(monkeypatch, name)
    else:
        monkeypatch.setattr(kvm, name, fail)
    with pytest.raises(KvmError, match=f"^KVM_{name}: "):
        exceptions_fail()


@pytest.mark.any_kvm
def test_no_memory_for_the_probe_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(GuestMemory, "__init__", fail)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        exceptions_fail()
