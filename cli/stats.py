"""`pyvirt run -stats`: what the guest cost and did, counted while it ran, shown at its end."""

from __future__ import annotations

from ..devices.virtio.block import Block
from ..native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..devices.virtio.mmio import Mmio
    from ..vmm.machine import Machine

_EXITS = ("IO", "HLT", "MMIO", "SHUTDOWN", "INTR", "INTERNAL_ERROR", "SYSTEM_EVENT")
_MIB = 1 << 20


def _exits(machine: Machine) -> list[str]:
    names = {getattr(lib, f"KVM_EXIT_{name}"): name.lower() for name in _EXITS}
    stats = ffi.new("struct pv_vcpu_stats *")
    lines = []
    for vcpu in machine.vcpus:
        lib.pv_vcpu_read_stats(vcpu.handle, stats)
        kinds = [
            f"{names.get(reason, f'reason {reason}')} {count}"
            for reason, count in enumerate(stats.exits)
            if count
        ]
        lines.append(
            f"vCPU {vcpu.index}: exits {sum(stats.exits)} ({', '.join(kinds)}), "
            f"to Python {stats.cold}, to nobody {stats.unclaimed}"
        )
    return lines


def _slot(transport: Mmio) -> str:
    return (
        f"{transport.device.name}: register exits {transport.reads + transport.writes} "
        f"({transport.reads} reads, {transport.writes} writes), "
        f"interrupts {transport.interrupts()}"
    )


def _disk(stats: Any) -> str:
    return (
        f"  reads {stats.reads} ({stats.bytes_read / _MIB:.1f} MiB), "
        f"writes {stats.writes} ({stats.bytes_written / _MIB:.1f} MiB), "
        f"flushes {stats.flushes}, discards {stats.discards}, write-zeroes {stats.zeroes}, "
        f"others {stats.others}, errors {stats.errors}, throttled {stats.throttled}, "
        f"batches with an interrupt {stats.interrupts}, without {stats.suppressed}"
    )


def table(machine: Machine) -> str:
    """Return the counters of this moment in lines; the machine is not closed."""
    lines = _exits(machine)
    for transport in machine.slots.transports if machine.slots else ():
        lines.append(_slot(transport))
        if isinstance(transport.device, Block):
            lines.append(_disk(transport.device.stats()))
    return "\n".join(lines) + "\n"
