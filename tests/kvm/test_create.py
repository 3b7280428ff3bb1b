"""Making a machine, and failing to: whatever goes wrong, nothing stays open (see conftest.py)."""

from __future__ import annotations

import _thread
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyvirt.errors import BackendError, ConfigError, KvmError, PyvirtError
from pyvirt.vmm import kvm
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.execution import ENDED
from pyvirt.vmm.groundwork import Groundwork
from pyvirt.vmm.log import Log
from pyvirt.vmm.machine import Machine

from .conftest import Make
from .support import MEMORY

CREATION = (
    *("GET_API_VERSION", "CHECK_EXTENSION", "CREATE_VM", "SET_IDENTITY_MAP_ADDR", "SET_TSS_ADDR"),
    *("GET_SUPPORTED_CPUID", "GET_VCPU_MMAP_SIZE", "CREATE_VCPU", "GET_TSC_KHZ", "SET_CPUID2"),
    *("SET_FPU", "SET_MSRS", "GET_LAPIC", "SET_LAPIC"),
)
SLOW = ("CREATE_IRQCHIP", "CREATE_PIT2", "SET_USER_MEMORY_REGION")  # which a thread in C calls
NOBODY = 65534
LOADING = ("GET_SREGS", "SET_SREGS", "SET_REGS")


def ignore(_: str) -> None:
    """Take a stage's mark."""


def create(*, vcpus: int = 1, device: str = kvm.DEVICE) -> Machine:
    config = MachineConfig("/nonexistent/kernel", vcpus=vcpus, memory=MEMORY)
    return Machine(config, Log(), ignore, device)


def replace_by_unknown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the ioctl `name` be one that KVM does not have."""
    unknown = kvm.Ioctl(f"KVM_{name}")
    unknown.number = 0
    monkeypatch.setattr(kvm, name, unknown)


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Let the ioctl `name` work until its call number `call` (from 1), which gets ENOSPC."""
    ioctl, calls = getattr(kvm, name), []

    def counted(fd: int, *arguments: object) -> int:
        calls.append(fd)
        if len(calls) == call:
            raise KvmError(ioctl.name, errno.ENOSPC)
        return int(ioctl(fd, *arguments))

    monkeypatch.setattr(kvm, name, counted)


def test_close_without_start_gives_everything_back_and_may_be_repeated(machine: Make) -> None:
    guest = machine("spin", vcpus=2)
    line = guest.interrupt_line(5)
    guest.close()
    assert guest.state == ENDED
    assert guest.end is not None
    assert guest.end.reason == "host"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(line.fd)
    guest.close()


@pytest.mark.any_kvm
@pytest.mark.parametrize("name", CREATION)
def test_a_failing_ioctl_leaves_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fail_at(monkeypatch, name, 1)
    with pytest.raises(KvmError, match=f"^KVM_{name}: No space left on device$"):
        create()


@pytest.mark.any_kvm
@pytest.mark.parametrize("name", SLOW)
def test_an_ioctl_that_fails_on_the_thread_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replace_by_unknown(monkeypatch, name)
    with pytest.raises(KvmError, match=f"^KVM_{name}: Inappropriate ioctl for device$"):
        create()


@pytest.mark.any_kvm
def test_groundwork_that_nobody_takes_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MachineConfig("", memory=MEMORY)
    with Groundwork(config, Log()):
        pass
    replace_by_unknown(monkeypatch, "CREATE_IRQCHIP")
    with Groundwork(config, Log()) as groundwork:
        kvm_fd, memory, making = groundwork.take()
    making.close()
    memory.close()
    os.close(kvm_fd)


@pytest.mark.any_kvm
@pytest.mark.parametrize("name", ["CREATE_VCPU", "SET_CPUID2", "SET_LAPIC"])
def test_a_failure_at_a_later_vcpu_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fail_at(monkeypatch, name, 3)
    with pytest.raises(KvmError):
        create(vcpus=4)


@pytest.mark.any_kvm
@pytest.mark.parametrize("name", LOADING)
def test_a_failure_while_loading_is_an_error(
    machine: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fail_at(monkeypatch, name, 1)
    with pytest.raises(KvmError, match=f"^KVM_{name}: "):
        machine("spin")


def test_a_vcpu_whose_run_area_cannot_be_mapped_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kvm, "GET_VCPU_MMAP_SIZE", lambda _: 0)
    with pytest.raises(BackendError, match=r"^vCPU 0: Invalid argument$"):
        create()


def test_an_interrupt_line_that_fails_leaves_nothing(
    machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = machine("spin")
    with monkeypatch.context() as patch:
        fail_at(patch, "IRQFD", 1)
        with pytest.raises(KvmError, match=r"^KVM_IRQFD: "):
            guest.interrupt_line(5)


@pytest.mark.any_kvm
def test_a_thread_that_cannot_start_is_no_obstacle_to_closing(
    machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = machine("spin", vcpus=2)
    start = _thread.start_new_thread

    def refuse_second(function: Callable[..., object], arguments: tuple[Any, ...]) -> int:
        if arguments[0].index == 1:
            raise RuntimeError("can't start new thread")
        return start(function, arguments)

    monkeypatch.setattr(_thread, "start_new_thread", refuse_second)
    with pytest.raises(PyvirtError, match=r"^vCPU 1: can't start new thread; raise ulimit -u$"):
        guest.start()
    guest.close()


@pytest.mark.any_kvm
def test_a_kvm_without_permission_is_named_with_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "kvm"
    path.touch(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(PyvirtError, match=f"^{path}: no permission; .* group kvm"):
            create(device=str(path))
    finally:
        os.seteuid(user)


@pytest.mark.any_kvm
@pytest.mark.parametrize("path", ["/nonexistent/kvm", "/dev/null", "/etc/passwd"])
def test_a_device_that_is_no_kvm_leaves_nothing(path: str) -> None:
    with pytest.raises(PyvirtError, match=f"{path}: |KVM_GET_API_VERSION: "):
        create(device=path)


def test_more_vcpus_than_kvm_has_are_refused_by_name() -> None:
    fd = kvm.open_device()
    limit = kvm.extension(fd, "KVM_CAP_MAX_VCPUS")
    os.close(fd)
    with pytest.raises(ConfigError, match=f"^-smp {limit + 1}: this KVM runs at most {limit}"):
        create(vcpus=limit + 1)


@pytest.mark.any_kvm
def test_a_capability_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    extension = kvm.extension

    def without_irqfd(fd: int, name: str) -> int:
        return 0 if name == "KVM_CAP_IRQFD" else extension(fd, name)

    monkeypatch.setattr(kvm, "extension", without_irqfd)
    with pytest.raises(PyvirtError, match=r"lacks KVM_CAP_IRQFD \(.*; run pyvirt doctor"):
        create()


@pytest.mark.any_kvm
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "not a kernel"),
        (b"\x7fELF", "truncated"),
        (b"no kernel at all" * 100, "not a kernel"),
    ],
)
def test_a_bad_kernel_leaves_nothing(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "kernel"
    if content is not None:
        path.write_bytes(content)
    machine = Machine(MachineConfig(str(path), memory=MEMORY), Log(), ignore)
    try:
        with pytest.raises(ConfigError, match=f"^-kernel {path}: .*{message}"):
            machine.load()
    finally:
        machine.close()


def test_the_most_vcpus_can_be_made(machine: Make) -> None:
    guest = machine("spin", vcpus=254)
    assert len(guest.vcpus) == 254
