"""Writing a snapshot: the machine stands, its state is taken at once, its memory as time allows."""

from __future__ import annotations

import _thread
import os

from ...devices.virtio.device import Pluggable
from ...errors import BackendError, PyvirtError, unexpected
from . import chips, clock, ioctls, shape, state_file, vcpu
from .layers import IDENTITY_BYTES, pages_bytes
from .memory_file import Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from ..log import Log
    from ..machine import Machine
    from .layers import Origin

    class Target(Protocol):
        """Where a snapshot goes; used for one."""

        def check(self) -> None:
            """Refuse before anything happens; PyvirtError."""

        def take(self, slot: int, device: Pluggable, writer: Writer, /) -> int:
            """See to what a device's overlay has, which stands; return in how many layers.

            BackendError: the snapshot is not made.
            """

        def write(self, memory: Callable[[int], None], state: Callable[[], bytes]) -> None:
            """Write it: `memory` is given a descriptor to fill, then `state` returns that file.

            BackendError, or what one of them raises; nothing stays then.
            """

        def close(self) -> None:
            """Give up what `check` has opened, where `write` is not called."""


NONE, ACTIVE, COMPLETED, FAILED, CANCELLED = "none", "active", "completed", "failed", "canceled"


def check(machine: Machine) -> None:
    """Refuse a machine that cannot be saved on this KVM, or has what a snapshot does not keep."""
    lacking = ioctls.missing(machine.kvm_fd)
    if lacking:
        raise PyvirtError(f"snapshot: this KVM lacks {', '.join(lacking)}; run pyvirt doctor")
    shape.of(machine.config)
    if machine.demand is not None:
        machine.demand.check_saved()


def _take_overlays(machine: Machine, target: Target, writer: Writer) -> list[dict[str, int]]:
    """Have a target see to all overlays; return what the state says of their layers.

    BackendError.
    """
    assert machine.slots is not None
    found: list[dict[str, int]] = []
    for slot, transport in enumerate(machine.slots.ordered()):
        device = transport.device
        count = target.take(slot, device, writer) if isinstance(device, Pluggable) else 0
        if count:
            found.append({"slot": slot, "count": count})
    return found


def fields(machine: Machine, identity: bytes) -> dict[str, object]:
    """Return the state of a machine that stands, its devices drained; PyvirtError."""
    assert machine.slots is not None
    for one in machine.vcpus:
        vcpu.check(one)
    devices = shape.devices(machine)
    places = machine.slots.places() if machine.demand is not None else None
    for device, transport in zip(devices, machine.slots.ordered(), strict=True):
        try:
            device["state"] = transport.save()
        except NotImplementedError:
            name = transport.device.name
            raise PyvirtError(f"{name}: a snapshot does not keep it; leave it out") from None
    kvm_fd, vm = machine.kvm_fd, machine.vm
    return {
        "snapshot": identity.hex(),
        "machine": shape.of(machine.config, places).save(),
        "devices": devices,
        "parts": {name: part.save() for name, part in machine.parts.items()},
        "clock": clock.save(vm),
        "vcpus": [vcpu.save(one, kvm_fd, vm.fd) for one in vm.vcpus],
        "chips": chips.save(vm, pit=machine.config.pit),
    }


class Saver:
    """Writes snapshots of one machine, one at a time; its methods are for any thread."""

    __slots__ = ("_done", "_log", "_machine", "_writer", "error", "status")

    def __init__(self, machine: Machine, log: Log) -> None:
        self.status = NONE
        self.error = ""  # why it has FAILED
        self._machine = machine
        self._log = log
        self._writer: Writer | None = None
        self._done = _thread.allocate_lock()  # held by the thread that writes

    def start(self, target: Target, origin: Origin | None = None) -> None:
        """Pause the machine, and begin to write it to a target; `status` says how that goes.

        With an `origin` (layers.origin) only what has changed of memory since. The machine stays
        paused. PyvirtError: it cannot be saved, or there; a guest that ran runs on then.
        """
        machine = self._machine
        check(machine)
        target.check()
        try:
            self._start(target, origin)
        except BaseException:
            target.close()
            raise

    def _start(self, target: Target, origin: Origin | None) -> None:
        machine = self._machine
        was_running = machine.state == "running"
        identity = os.urandom(IDENTITY_BYTES)
        assert machine.memory is not None
        own = bytearray(pages_bytes(machine.memory.size)) if origin else None
        writer = Writer(machine.memory, identity, self._log.notice, own=own)
        machine.begin_save(writer.cancel)
        try:
            values = fields(machine, identity)
            layers = _take_overlays(machine, target, writer)
            if layers:
                values["layers"] = layers
            self._writer, self.status, self.error = writer, ACTIVE, ""
            self._done.acquire()
            try:
                _thread.start_new_thread(self._run, (target, writer, values, origin))
            except BaseException:
                self._done.release()
                raise
        except BaseException as error:
            self.status, self.error = FAILED, str(error)
            machine.end_save()
            if was_running:
                machine.resume()
            if isinstance(error, RuntimeError):
                raise PyvirtError(f"snapshot: {error}; raise ulimit -u") from None
            raise

    def _run(
        self,
        target: Target,
        writer: Writer,
        values: dict[str, object],
        origin: Origin | None,
    ) -> None:
        def state() -> bytes:
            if origin is not None and writer.own is not None:
                values["parent"] = origin.save(writer.own)
            return state_file.encode(values)

        status = FAILED
        try:
            target.write(writer.write, state)
            status = COMPLETED
        except BackendError as error:
            self.error = str(error)
            if writer.is_cancelled:
                status, self.error = CANCELLED, ""
        except BaseException as error:  # noqa: BLE001  (a fault of ours fails the snapshot alone)
            self.error = f"{unexpected(error)}; please report"
        finally:
            self._machine.end_save()
            self.status = status
            if self.error:
                self._log.error(f"snapshot: {self.error}")
            self._done.release()

    def cancel(self) -> None:
        """Have what is being written end soon, and leave nothing; never waits."""
        if self._writer is not None:
            self._writer.cancel()

    def wait(self) -> None:
        """Wait for the end of what is being written."""
        with self._done:
            pass

    def progress(self) -> tuple[int, int, int]:
        """Return the bytes of memory seen to, all there are, and those written."""
        writer, total = self._writer, self._machine.config.memory
        return (writer.done, total, writer.written) if writer is not None else (0, total, 0)
