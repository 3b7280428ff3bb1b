"""What of a machine does not depend on what is behind its devices: VM, memory, bus, empty slots.

A machine makes one, or takes over one that was made ahead of it (snapshot/restore.py).
"""

from __future__ import annotations

import os

from . import kvm, slots
from .bus import Bus
from .config import MachineConfig
from .topology import Topology
from .vm import InterruptLine, Vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..devices.virtio.device import Pluggable
    from .groundwork import Groundwork
    from .log import Log
    from .memory import GuestMemory


def plan(config: MachineConfig, count: int) -> list[int]:
    """Return what the core of a machine with `count` slots is made by, [] if it takes more."""
    if config.cpu or config.share or config.memdevs or config.prealloc or config.read_exits:
        return []
    topology = config.topology
    return [
        *(config.memory, config.vcpus, count, config.pit, config.on_demand),
        *(config.dump_guest_core, topology.sockets, topology.dies, topology.cores),
        topology.threads,
    ]


def planned(given: Sequence[int]) -> tuple[MachineConfig, int]:
    """Return a configuration, and the number of slots, of that plan; ValueError."""
    memory, vcpus, count, pit, on_demand, dump, sockets, dies, cores, threads = given
    topology = Topology(vcpus, sockets=sockets, dies=dies, cores=cores, threads=threads)
    config = MachineConfig(
        "",
        memory=memory,
        vcpus=vcpus,
        pit=bool(pit),
        hotplug=bool(on_demand),
        on_demand=bool(on_demand),
        dump_guest_core=bool(dump),
        topology=topology,
    )
    return config, count


class Core:
    """Owns all that it has until `close`, or until a machine takes it over."""

    __slots__ = (
        *("_config", "_count", "_vacancies"),
        *("bus", "kvm_fd", "lines", "memory", "slots", "vacant", "vm"),
    )

    def __init__(
        self, config: MachineConfig, log: Log, groundwork: Groundwork, *, count: int
    ) -> None:
        """Make it of a configuration, with `count` slots, on groundwork that is laid for that.

        ConfigError, KvmError, and nothing stays.
        """
        self._config = config
        self._count = count
        self._vacancies: Mapping[int, tuple[str, int]] = {}
        self.bus = Bus()
        self.lines: list[InterruptLine] = []
        self.memory: GuestMemory | None = None
        self.vm: Vm | None = None
        self.slots: slots.Slots | None = None
        self.vacant: dict[int, Pluggable] = {}  # those that are made, by slots
        self.kvm_fd = -1
        try:
            self._create(config, log, groundwork)
        except BaseException:
            self.close()
            raise

    def _create(self, config: MachineConfig, log: Log, groundwork: Groundwork) -> None:
        self.kvm_fd, self.memory, making = groundwork.take()
        self.vm = Vm(self.kvm_fd, making, config, self.bus)
        self.slots = slots.Slots(
            self.vm.fd,
            self._count,
            machine_bus=self.bus,
            memory=self.memory.native(),
            line=self._add_line,
            drop_line=self._drop_line,
            log=log,
            read_exits=config.read_exits or not kvm.extension(self.kvm_fd, "KVM_CAP_READONLY_MEM"),
            on_demand=config.on_demand,
        )

    def _add_line(self, vm_fd: int, gsi: int) -> InterruptLine:
        line = InterruptLine(vm_fd, gsi)
        self.lines.append(line)
        return line

    def _drop_line(self, line: InterruptLine) -> None:
        self.lines.remove(line)
        line.close()

    def put_vacant(
        self, vacancies: Mapping[int, tuple[str, int]], made: Mapping[int, Pluggable]
    ) -> None:
        """Put devices that nothing is behind into slots, each of its kind and at its addr.

        They are those that were `made`, by slots, or new ones.
        """
        assert self.slots is not None
        self._vacancies = vacancies
        for slot, (kind, addr) in vacancies.items():
            device = made.get(slot) or slots.vacant(kind, addr, self._config.name)
            self.vacant[slot] = device
            self.slots.put(slot, device, addr)

    def suits(self, config: MachineConfig) -> bool:
        """Return whether what is made would be the same for a machine of that configuration."""
        own = self._config
        wanted = plan(config, slots.count(config))
        return (
            wanted != []
            and wanted == plan(own, self._count)
            and config.content is own.content
            and self._vacancies.items() <= slots.vacancies(config).items()
            and (config.name == own.name or not self._vacancies)
        )

    def close(self) -> None:
        """Give it all back; no vCPU runs."""
        if self.slots is not None:
            self.slots.close()
            self.slots = None
        for device in self.vacant.values():
            device.close()
        self.vacant.clear()
        for line in self.lines:
            line.close()
        self.lines.clear()
        if self.vm is not None:
            self.vm.close()
            self.vm = None
        if self.kvm_fd >= 0:
            os.close(self.kvm_fd)
            self.kvm_fd = -1
        if self.memory is not None:
            self.memory.close()
            self.memory = None
