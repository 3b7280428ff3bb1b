"""`pyvirt run -stats`: what the guest cost and did, counted while it ran, shown at its end."""

from __future__ import annotations

from ..devices.virtio.python import PythonDevice
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
        f"batches with an interrupt {stats.interrupts}, without {stats.suppressed}, "
        f"overlay {stats.overlay_bytes / _MIB:.1f} MiB"
    )


def _nic(stats: Any) -> str:
    lost = stats.rx_no_link + stats.rx_no_room + stats.rx_unfit + stats.rx_errors
    unsent = stats.tx_malformed + stats.tx_no_link + stats.tx_errors
    return (
        f"  received {stats.rx_packets} ({stats.rx_bytes / _MIB:.1f} MiB), "
        f"filtered {stats.rx_filtered}, lost {lost}, starved {stats.rx_starved}, "
        f"throttled {stats.rx_throttled}, "
        f"sent {stats.tx_packets} ({stats.tx_bytes / _MIB:.1f} MiB), "
        f"refused {unsent}, blocked {stats.tx_blocked}, held back {stats.tx_throttled}, "
        f"commands {stats.commands}, kicks {stats.kicks}, "
        f"batches with an interrupt {stats.interrupts}, without {stats.suppressed}"
    )


def _ports(stats: Any) -> str:
    return (
        f"  received {stats.bytes_in / _MIB:.1f} MiB, starved {stats.starved}, "
        f"sent {stats.bytes_out / _MIB:.1f} MiB, blocked {stats.blocked}, "
        f"dropped {stats.dropped / _MIB:.1f} MiB, host's ends opened {stats.opened}, "
        f"closed {stats.closed}, messages {stats.messages}, kicks {stats.kicks}, "
        f"batches with an interrupt {stats.interrupts}"
    )


def _rng(stats: Any) -> str:
    return (
        f"  requests {stats.requests} ({stats.bytes / _MIB:.1f} MiB), "
        f"throttled {stats.throttled}, blocked {stats.blocked}, errors {stats.errors}, "
        f"kicks {stats.kicks}, batches with an interrupt {stats.interrupts}"
    )


def _balloon(stats: Any) -> str:
    return (
        f"  inflated {stats.inflated} pages, deflated {stats.deflated}, "
        f"reported {stats.reported}, given back {stats.released} in {stats.releases} calls, "
        f"kept {stats.kept}, refused {stats.refused}, statistics {stats.statistics}, "
        f"kicks {stats.kicks}, batches with an interrupt {stats.interrupts}"
    )


def _vsock(stats: Any) -> str:
    return (
        f"  received {stats.bytes_in / _MIB:.1f} MiB, starved {stats.starved}, "
        f"without credit {stats.stalls}, "
        f"sent {stats.bytes_out / _MIB:.1f} MiB, blocked {stats.blocked}, "
        f"dropped {stats.dropped / _MIB:.1f} MiB, "
        f"connections of the host {stats.of_host}, of the guest {stats.of_guest}, "
        f"ended {stats.ended}, refused {stats.refused}, "
        f"malformed packets {stats.malformed}, resets sent {stats.resets}, kicks {stats.kicks}, "
        f"batches with an interrupt {stats.interrupts}"
    )


def _back_end(stats: dict[str, int]) -> str:
    return (
        f"  back end {'there' if stats['connected'] else 'gone'}, "
        f"connections {stats['connections']}, "
        f"changes of its configuration {stats['config_changes']}, "
        f"buffers in its queues {stats['waiting']}"
    )


# By the virtio device ID, for a device's own module need not be there.
_OF_DEVICE = {1: _nic, 2: _disk, 3: _ports, 4: _rng, 5: _balloon, 19: _vsock}


def table(machine: Machine) -> str:
    """Return the counters of this moment in lines; the machine is not closed."""
    lines = _exits(machine)
    for transport in machine.slots.transports if machine.slots else ():
        lines.append(_slot(transport))
        device: Any = transport.device
        # One in Python has any ID it likes.
        if isinstance(device, PythonDevice):
            continue
        if hasattr(device, "stats") and isinstance(stats := device.stats(), dict):
            lines.append(_back_end(stats))
        elif device.device_type in _OF_DEVICE:
            lines.append(_OF_DEVICE[device.device_type](device.stats()))
    return "\n".join(lines) + "\n"
