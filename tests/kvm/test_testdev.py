"""QEMU's pc-testdev, part for part, as a guest sees it; and a machine without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pyvirt.vmm.config import MachineConfig

from .conftest import Make
from .support import MAILBOX, Guest
from .test_run import command, run

TESTDEV = ("-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4")
VECTOR, PIN_REMOTE_IRR, LEVEL = 0x76, 1 << 14, 1 << 15
PENDING = 1 << VECTOR % 32
ONES = (1 << 32) - 1


def test_register_memory_page_and_lines(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    guest = Guest(
        MachineConfig(str(kernel("testdev")), memory=128 << 20, testdev=True), tmp_path / "l"
    )
    try:
        guest.load()
        assert guest.run() == ("debug-exit", 0)
        register, parts, slow, flushed, line, vectors = guest.read_words(MAILBOX, 6)
    finally:
        guest.close()
    assert register == 0xCCBB_AA11
    assert (parts & ONES, parts >> 32) == (0xAA, 0xCCBB)
    assert slow == 0x5544_EE22
    assert flushed == 0x5555
    assert line == VECTOR | LEVEL | PIN_REMOTE_IRR
    assert (vectors & ONES, vectors >> 32) == (0, PENDING)


@pytest.mark.any_kvm
def test_what_is_kept_goes_at_a_reset(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    config = MachineConfig(str(kernel("halt")), memory=128 << 20, testdev=True)
    guest = Guest(config, tmp_path / "log")
    try:
        guest.load()
        devices = [device for _, _, device in (*guest.bus._devices[0], *guest.bus._devices[1])]
        kept = [device for device in devices if type(device).__name__ == "SlowMemory"]
        for device in kept:
            device.write(0, 4, 0x1234)
        guest.start()
        guest.reset()
        assert [device.read(0, 4) for device in kept] == [0, 0, 0]
    finally:
        guest.close()


@pytest.mark.any_kvm
def test_none_unless_asked_for(machine: Make) -> None:
    guest = machine("script")
    bases = {base for base, _, _ in (*guest.bus._devices[0], *guest.bus._devices[1])}
    assert not bases & {0xE0, 0xE4, 0xE8, 0x2000, 0xFF00_0000}


@pytest.mark.any_kvm
def test_on_the_command_line(kernel: Callable[[str], Path]) -> None:
    status, out, err = run(*command(kernel("testdev"), *TESTDEV))
    assert (status, out, err) == (0, b"", "")


@pytest.mark.any_kvm
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pc-testdev,chardev=x", "no such member as chardev"),
        ("isa-debug-exit,iobase=0x501", "iobase is 0xf4 here; give that"),
        ("isa-debug-exit,iosize=x", "iosize is 0x4 here"),
    ],
)
def test_what_is_not_here(words: str, message: str, kernel: Callable[[str], Path]) -> None:
    status, _, err = run(*command(kernel("testdev"), "-device", words))
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
