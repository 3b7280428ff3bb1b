"""Restoring a machine from a snapshot or a template, made anew from the same options."""

from __future__ import annotations

import os

from ...errors import StateError
from ..config import MachineConfig
from ..core import Core
from . import chips, clock, folder, ioctls, overlays, processor, shape, state_file, vcpu
from .layers import IDENTITY_BYTES, Origin, open_layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from ...state import Fields
    from ..log import Log
    from ..machine import Machine
    from ..vm import Vm
    from .layers import Stack
    from .memory_file import MemoryFile

_VCPUS_MAX, _DEVICES_MAX = 254, 256


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


def read_shape(fields: Fields) -> tuple[shape.Shape, bytes]:
    """Return the shape of a state's machine, and the number that its memory has; StateError."""
    identity = fields.data("snapshot", IDENTITY_BYTES)
    return shape.read(fields.section("machine")), identity


class _Ahead:
    """What was restored of a machine before it was there."""

    __slots__ = ("chips", "devices", "slots", "vcpus", "vm")

    def __init__(
        self,
        vm: Vm,
        devices: list[Fields],
        slots: Container[int],
        vcpus: list[vcpu.Restored],
        state: chips.State,
    ) -> None:
        """`devices` are all of them, `slots` those that are restored."""
        self.vm = vm
        self.devices = devices
        self.slots = slots
        self.vcpus = vcpus
        self.chips = state


class Incoming:
    """What a machine is to be restored from; owns its files until `close`."""

    __slots__ = (
        "_ahead",
        "_fields",
        "_file",
        "_is_mapped",
        "_option",
        "layers",
        "name",
        "origin",
        "shape",
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
        config = MachineConfig(
            "",
            vcpus=found.topology.vcpus,
            memory=found.memory,
            pit=found.pit,
            topology=found.topology,
            content=self,
        )
        try:
            devices = self._fields.items("devices", _DEVICES_MAX)
            core = Core(config, log, count=len(devices))
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
        core.put_vacant(vacancies)
        for slot in vacancies:
            core.slots.transport(slot).restore(devices[slot].section("state"))
        vcpus = self._restore_vcpus(core.vm, core.kvm_fd)
        return _Ahead(
            core.vm, devices, vacancies, vcpus, chips.State(self._fields.section("chips"))
        )

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
        devices = ahead.devices if ahead else fields.items("devices", _DEVICES_MAX)
        if ahead is not None and ahead.vm is not machine.vm:
            ahead = None  # the machine is another than was expected, and was made anew
        if ahead is None:
            self._check_capabilities(machine.kvm_fd)
        shape.check_devices(machine, devices, log)
        done = ahead.slots if ahead else ()
        for slot, (transport, one) in enumerate(
            zip(machine.slots.transports, devices, strict=True)
        ):
            if slot not in done:
                transport.restore(one.section("state"))
        parts = fields.sections("parts")
        for name, part in machine.parts.items():
            # What older states lack is as after power-on.
            if name in parts:
                part.restore(parts.pop(name))
        for name in parts:
            raise fields.wrong("parts", f"this machine has no {name}")
        self._restore_kvm(machine.vm, machine.kvm_fd, ahead)
        fields.done()

    def _restore_kvm(self, vm: Vm, kvm_fd: int, ahead: _Ahead | None) -> None:
        restored = ahead.vcpus if ahead else self._restore_vcpus(vm, kvm_fd)
        state = ahead.chips if ahead else chips.State(self._fields.section("chips"))
        for one in restored:
            one.start_timer()
        state.set(vm)
        clock.restore(vm, self._fields.section("clock"), kvm_fd)
        for one in restored:
            one.finish()

    def _restore_vcpus(self, vm: Vm, kvm_fd: int) -> list[vcpu.Restored]:
        """Set what of the vCPUs' states does not go on with the time."""
        fields = self._fields
        saved = fields.items("vcpus", _VCPUS_MAX)
        if len(saved) != len(vm.vcpus):
            raise fields.wrong("vcpus", f"{len(saved)} of {len(vm.vcpus)} are there")
        pairs = list(zip(vm.vcpus, saved, strict=True))
        for one, own in pairs:
            # The CPUID that the guest has seen, where this host has no less.
            entries = processor.read(own)
            processor.check(entries, one.cpuid)
            one.set_cpuid(entries)
        return [vcpu.restore(one, own, kvm_fd, vm.fd) for one, own in pairs]

    def _placed(self, error: StateError) -> StateError:
        return StateError(f"{self._option}: {error}")

    def close(self) -> None:
        """Close the files; memory that is mapped stays, and disks have their layers."""
        for layers in self.layers.values():
            for fd in layers:
                os.close(fd)
        self.layers.clear()
        self._file.close()
