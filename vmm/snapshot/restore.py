"""Restoring a machine from a snapshot, made anew from the same options."""

from __future__ import annotations

import os

from ...errors import StateError
from . import chips, clock, folder, ioctls, processor, shape, state_file, vcpu
from .memory_file import MemoryFile
from .save import IDENTITY_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...state import Fields
    from ..log import Log
    from ..machine import Machine

_VCPUS_MAX, _DEVICES_MAX = 254, 256


class Incoming:
    """A snapshot that a machine is to be restored from; owns its files until `close`."""

    __slots__ = ("_fields", "_file", "_is_mapped", "path", "shape")

    def __init__(self, path: str, *, mapped: bool = True) -> None:
        """Open the folder and look at what needs no machine; StateError.

        `mapped` memory is read as the guest touches it, and what several guests restored from one
        snapshot do not change they share; else all of it is read at once.
        """
        self.path = path
        self._is_mapped = mapped
        self._fields = state_file.read(os.path.join(path, folder.STATE))
        try:
            identity = self._fields.data("snapshot", IDENTITY_BYTES)
            self.shape = shape.read(self._fields.section("machine"))
        except StateError as error:
            raise self._placed(error) from None
        memory = os.path.join(path, folder.MEMORY)
        self._file = MemoryFile(memory, self.shape.memory, identity)

    def map(self, at: int) -> None:
        """Map the memory at an address of this process; ConfigError."""
        self._file.map(at)

    def restore(self, machine: Machine, log: Log) -> None:
        """Set a machine that is new, and has not run, to the state; its devices begin.

        StateError, KvmError: it can only be closed then.
        """
        lacking = ioctls.missing(machine.kvm_fd)
        if lacking:
            raise StateError(f"-incoming: this KVM lacks {', '.join(lacking)}; run pyvirt doctor")
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
        devices = fields.items("devices", _DEVICES_MAX)
        shape.check_devices(machine, devices, log)
        saved_vcpus = fields.items("vcpus", _VCPUS_MAX)
        if len(saved_vcpus) != len(machine.vcpus):
            raise fields.wrong("vcpus", f"{len(saved_vcpus)} of {len(machine.vcpus)} are there")
        _check_processors(machine, saved_vcpus)
        for transport, one in zip(machine.slots.transports, devices, strict=True):
            transport.restore(one.section("state"))
        parts = fields.sections("parts")
        for name, part in machine.parts.items():
            # What older states lack is as after power-on.
            if name in parts:
                part.restore(parts.pop(name))
        for name in parts:
            raise fields.wrong("parts", f"this machine has no {name}")
        self._restore_kvm(machine, saved_vcpus)
        fields.done()

    def _restore_kvm(self, machine: Machine, saved_vcpus: list[Fields]) -> None:
        vm, kvm_fd = machine.vm, machine.kvm_fd
        pairs = zip(vm.vcpus, saved_vcpus, strict=True)
        restored = [vcpu.restore(one, fields, kvm_fd, vm.fd) for one, fields in pairs]
        chips.restore(vm, self._fields.section("chips"))
        clock.restore(vm, self._fields.section("clock"), kvm_fd)
        for one in restored:
            one.finish()

    def _placed(self, error: StateError) -> StateError:
        return StateError(f"-incoming file:{self.path}: {error}")

    def close(self) -> None:
        """Close the files; memory that is mapped stays."""
        self._file.close()


def _check_processors(machine: Machine, saved: list[Fields]) -> None:
    """Give the vCPUs the CPUID that the guest has seen; StateError where this host has less."""
    for one, fields in zip(machine.vcpus, saved, strict=True):
        entries = processor.read(fields)
        processor.check(entries, one.cpuid)
        one.set_cpuid(entries)
