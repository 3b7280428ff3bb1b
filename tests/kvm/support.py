"""What the tests of this folder share: a machine that ends in time, and what tiny guests say.

The numbers are those of guests/guest.h.
"""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pyvirt.devices.virtio.device import Device
from pyvirt.native import ffi, lib
from pyvirt.vmm import kvm, probe
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.core import Core
from pyvirt.vmm.end import End
from pyvirt.vmm.log import Log
from pyvirt.vmm.machine import Machine

GUESTS = Path(__file__).parent / "guests"
MAILBOX = 0x20_0000
BUFFER = 0x20_1000
PORT = 0x1000
MMIO = 0xD000_0000
MEMORY = 128 << 20
# How long anything may take before a test gives up; KVM may be emulated, on a busy machine.
PATIENCE = 100.0 if os.environ.get("PYVIRT_LAB") else 30.0
_LINK = "-Wl,-N,--build-id=none,-z,noexecstack,--no-warn-rwx-segments"


def build(source: Path, target: Path, at: int = 0x10_0000) -> Path:
    """Assemble a guest and link it to an address, into an ELF kernel."""
    link = f"{_LINK},-Ttext={at:#x}"
    command = ["gcc", "-nostdlib", "-static", "-no-pie", link, "-o", str(target), str(source)]
    subprocess.run(command, check=True, timeout=PATIENCE)
    return target


def exceptions_fail() -> str:
    """Return what the probe says of this host's KVM: "" when it is a real one."""
    fd = kvm.open_device()
    try:
        return probe.exception_failure(fd)
    finally:
        os.close(fd)


def wait_readable(fd: int, what: str) -> None:
    """Wait until a descriptor can be read; fail when it cannot in time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(PATIENCE * 1000), f"{what}: not within {PATIENCE:.0f} s"


class Stats(NamedTuple):
    """A vCPU's counters (struct pv_vcpu_stats)."""

    exits: dict[int, int]  # by reason, those that are not 0
    cold: int
    unclaimed: int
    first_run_ns: int


class Guest(Machine):
    """A machine whose guest is one of guests/*.S; keeps its log and the stages it marked."""

    def __init__(
        self,
        config: MachineConfig,
        log: Path,
        virtio: Iterable[Device] = (),
        core: Core | None = None,
    ) -> None:
        """Create the machine with its messages in the file `log`."""
        self.marks: list[str] = []
        self.log_file = log
        self._messages = Log()
        self._messages.open(str(log))
        try:
            super().__init__(config, self._messages, self.marks.append, virtio=virtio, core=core)
        except BaseException:
            self._close_log()
            raise

    def close(self) -> None:
        """Close the machine, and its log."""
        super().close()
        self._close_log()

    def _close_log(self) -> None:
        if self._messages.fd > 2:
            os.close(self._messages.fd)
            self._messages.fd = 2

    def write_words(self, address: int, *words: int) -> None:
        """Put 64-bit words into guest memory."""
        assert self.memory is not None
        self.memory.write(address, b"".join(word.to_bytes(8, "little") for word in words))

    def read_words(self, address: int, count: int) -> list[int]:
        """Return 64-bit words of guest memory."""
        data = self.read(address, 8 * count)
        return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]

    def read(self, address: int, length: int) -> bytes:
        """Return bytes of guest memory."""
        assert self.memory is not None
        return self.memory.read(address, length)

    def wait(self) -> End:
        """Wait for the guest's end and its threads."""
        wait_readable(self.ended_fd, "the guest's end")
        self.stop()
        assert self.end is not None
        return self.end

    def run(self) -> tuple[str, int]:
        """Start the guest and wait for its end; return the reason and the exit status."""
        self.start()
        end = self.wait()
        return end.reason, end.status

    def stats(self, vcpu: int = 0) -> Stats:
        """Return the counters of a vCPU."""
        stats = ffi.new("struct pv_vcpu_stats *")
        lib.pv_vcpu_read_stats(self.vcpus[vcpu].handle, stats)
        exits = {reason: count for reason, count in enumerate(stats.exits) if count}
        return Stats(exits, stats.cold, stats.unclaimed, stats.first_run_ns)

    def log_text(self) -> str:
        """Return what the monitor logged so far."""
        return self.log_file.read_text(encoding="utf-8")
