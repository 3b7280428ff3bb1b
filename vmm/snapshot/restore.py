"""Restoring a machine from a snapshot or a template, made anew from the same options."""

from __future__ import annotations

import os

from ...errors import StateError
from ..config import MachineConfig
from ..core import Core
from ..groundwork import Groundwork
from ..layout import DEMAND_SLOTS_MAX
from . import folder, ioctls, overlays, shape, state_file
from .kvm_state import KvmState
from .layers import IDENTITY_BYTES, Origin, open_layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from ...devices.virtio.device import Pluggable
    from ...state import Fields
    from ..log import Log
    from ..machine import Machine
    from ..vm import Vm
    from . import vcpu
    from .layers import Stack
    from .memory_file import MemoryFile

_DEVICES_MAX = 256


def open_folder(path: str, *, mapped: bool = True) -> Incoming:
    """Open the folder of a snapshot, and look at what needs no machine; StateError.

    `mapped` memory is read as the guest touches it, and what several guests restored from one
    snapshot do not change they share; else all of it is read at once.
    """
    fields = state_file.read(os.path.join(path, folder.STATE))
    try:
        found, identity = read_shape(fields)
    except StateError as error:
        raise StateError(f"-incoming file:{path}: {error}") from None
    file = open_layers(path, fields, found.memory, identity)
    names = f"-incoming file:{path}", f"the snapshot in {path}"
    incoming = Incoming(fields, found, file, names, mapped=mapped)
    try:
        incoming.layers = overlays.open_files(path, fields, identity)
    except BaseException:
        incoming.close()
        raise
    incoming.origin = Origin(os.path.realpath(path), identity)
    return incoming


def read_devices(fields: Fields) -> list[Fields]:
    """Return what a state has of each slot, which is still to be read; StateError."""
    return fields.items("devices", _DEVICES_MAX)


def read_shape(fields: Fields) -> tuple[shape.Shape, bytes]:
    """Return the shape of a state's machine, and the number that its memory has; StateError."""
    identity = fields.data("snapshot", IDENTITY_BYTES)
    return shape.read(fields.section("machine")), identity


class _Ahead:
    """What was restored of a machine before it was there."""

    __slots__ = ("devices", "slots", "vcpus", "vm")

    def __init__(
        self,
        vm: Vm,
        devices: list[Fields],
        slots: Container[int],
        vcpus: list[vcpu.Restored],
    ) -> None:
        """`devices` are all of them, `slots` those that are restored."""
        self.vm = vm
        self.devices = devices
        self.slots = slots
        self.vcpus = vcpus


class Incoming:
    """What a machine is to be restored from; owns its files until `close`."""

    __slots__ = (
        "_ahead",
        "_fields",
        "_file",
        "_is_mapped",
        "_option",
        "devices",
        "kvm_state",
        "layers",
        "name",
        "origin",
        "shape",
        "vacant",
    )

    def __init__(
        self,
        fields: Fields,
        found: shape.Shape,
        file: MemoryFile | Stack,
        names: tuple[str, str],
        *,
        mapped: bool,
    ) -> None:
        """`names` are what messages call the option, and what it names."""
        self.shape = found
        self._option, self.name = names
        self.origin: Origin | None = None  # what of it is mapped, where that is a folder's
        # What was read and made already.
        self.kvm_state: KvmState | None = None
        self.devices: list[Fields] = []
        self.vacant: dict[int, Pluggable] = {}  # by slots; the machine's own then
        self.layers: dict[int, tuple[int, ...]] = {}  # descriptors of disks' layers, by slots
        self._fields = fields
        self._file = file
        self._is_mapped = mapped
        self._ahead: _Ahead | None = None

    def map(self, at: int) -> list[tuple[int, int]]:
        """Map the memory at an address of this process, and return the parts; ConfigError."""
        return self._file.map(at)

    def prepare(self, log: Log) -> Core:
        """Return the core of a machine, restored as far as nothing is behind its devices.

        Its memory is mapped. StateError, ConfigError, KvmError.
        """
        found = self.shape
        on_demand = found.places is not None
        config = MachineConfig(
            "",
            hotplug=on_demand,
            on_demand=on_demand,
            vcpus=found.topology.vcpus,
            memory=found.memory,
            pit=found.pit,
            topology=found.topology,
            content=self,
        )
        try:
            devices = self.devices or read_devices(self._fields)
            count = DEMAND_SLOTS_MAX if on_demand else len(devices)
            core = Core(config, log, Groundwork(config, log), count=count)
            try:
                self._ahead = self._restore_ahead(core, devices)
            except BaseException:
                core.close()
                raise
        except StateError as error:
            raise self._placed(error) from None
        return core

    def _restore_ahead(self, core: Core, devices: list[Fields]) -> _Ahead:
        assert core.vm is not None
        assert core.slots is not None
        self._check_capabilities(core.kvm_fd)
        vacancies = shape.vacancies(devices)
        core.put_vacant(vacancies, self.vacant)
        for slot in vacancies:
            core.slots.transport(slot).restore(devices[slot].section("state"))
        vcpus = self._kvm_state(core.kvm_fd).set_vcpus(core.vm)
        return _Ahead(core.vm, devices, vacancies, vcpus)

    def _check_capabilities(self, kvm_fd: int) -> None:
        lacking = ioctls.missing(kvm_fd)
        if lacking:
            raise StateError(f"this KVM lacks {', '.join(lacking)}; run pyvirt doctor")

    def restore(self, machine: Machine, log: Log) -> None:
        """Set a machine that is new, and has not run, to the state; its devices begin.

        StateError, KvmError: it can only be closed then.
        """
        assert machine.memory is not None
        assert machine.slots is not None
        if not self._is_mapped:
            self._file.read(machine.memory)
        try:
            self._restore(machine, log)
        except StateError as error:
            raise self._placed(error) from None
        machine.slots.resume()
        for part in machine.parts.values():
            part.resume()
        if self.shape.acpi:
            machine.renew_generation()

    def _restore(self, machine: Machine, log: Log) -> None:
        assert machine.slots is not None
        fields = self._fields
        ahead, self._ahead = self._ahead, None
        devices = ahead.devices if ahead else read_devices(fields)
        if ahead is not None and ahead.vm is not machine.vm:
            ahead = None  # the machine is another than was expected, and was made anew
        if ahead is None:
            self._check_capabilities(machine.kvm_fd)
        shape.check_devices(machine, devices, log)
        done = ahead.slots if ahead else ()
        for slot, (transport, one) in enumerate(zip(machine.slots.ordered(), devices, strict=True)):
            if slot not in done:
                transport.restore(one.section("state"))
        parts = fields.sections("parts")
        for name, part in machine.parts.items():
            # What older states lack is as after power-on.
            if name in parts:
                part.restore(parts.pop(name))
        for name in parts:
            raise fields.wrong("parts", f"this machine has no {name}")
        state = self._kvm_state(machine.kvm_fd)
        vcpus = ahead.vcpus if ahead else state.set_vcpus(machine.vm)
        state.set_going(machine.vm, vcpus, machine.kvm_fd)
        fields.done()

    def _kvm_state(self, kvm_fd: int) -> KvmState:
        if self.kvm_state is None:
            self.kvm_state = KvmState(self._fields, kvm_fd)
        return self.kvm_state

    def _placed(self, error: StateError) -> StateError:
        return StateError(f"{self._option}: {error}")

    def close(self) -> None:
        """Close the files; memory that is mapped stays, and disks have their layers."""
        for layers in self.layers.values():
            for fd in layers:
                os.close(fd)
        self.layers.clear()
        self._file.close()
