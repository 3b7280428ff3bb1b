"""What of a machine does not depend on its devices: KVM's VM with vCPUs, memory, and the bus.

A machine makes one, or takes over one that was made ahead of it (snapshot/template.py): telling
KVM of memory takes most of the time until a guest runs.
"""

from __future__ import annotations

import os

from . import kvm
from .bus import Bus
from .memory import GuestMemory
from .register_pages import RegisterPages
from .vm import Vm, check_kvm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .config import MachineConfig
    from .log import Log


class Core:
    """Owns all that it has until `close`, or until a machine takes it over."""

    __slots__ = ("_config", "bus", "kvm_fd", "memory", "pages", "vm")

    def __init__(
        self, config: MachineConfig, log: Log, device: str = kvm.DEVICE, *, slots: int = 0
    ) -> None:
        """Make it of a configuration, and the register pages of so many slots, if not 0.

        ConfigError, KvmError; nothing stays then.
        """
        self._config = config
        self.bus = Bus()
        self.memory: GuestMemory | None = None
        self.vm: Vm | None = None
        self.pages: RegisterPages | None = None
        self.kvm_fd = kvm.open_device(device)
        try:
            self._create(config, log, slots)
        except BaseException:
            self.close()
            raise

    def _create(self, config: MachineConfig, log: Log, slots: int) -> None:
        check_kvm(self.kvm_fd, config.vcpus)
        self.memory = GuestMemory(
            config.memory,
            shared=config.share,
            dumped=config.dump_guest_core,
            memdevs=config.memdevs,
            content=config.content,
        )
        self.memory.preallocate(config.memdevs, log.notice, everything=config.prealloc)
        self.vm = Vm(self.kvm_fd, self.memory, config, self.bus)
        if slots and kvm.extension(self.kvm_fd, "KVM_CAP_READONLY_MEM"):
            self.pages = RegisterPages(slots)
            self.pages.connect(self.vm.fd)

    def suits(self, config: MachineConfig, slots: int) -> bool:
        """Return whether one of that configuration, with so many slots, would be the same."""
        own = self._config
        return (
            config.memory == own.memory
            and config.vcpus == own.vcpus
            and config.pit == own.pit
            and config.content is own.content
            and config.dump_guest_core == own.dump_guest_core
            and slots == (self.pages.count if self.pages is not None else 0)
            and not (config.cpu or config.share or config.memdevs or config.prealloc)
            and not config.read_exits
        )

    def close(self) -> None:
        """Give it all back; no vCPU runs."""
        if self.vm is not None:
            self.vm.close()
            self.vm = None
        if self.pages is not None:
            self.pages.close()
            self.pages = None
        if self.kvm_fd >= 0:
            os.close(self.kvm_fd)
            self.kvm_fd = -1
        if self.memory is not None:
            self.memory.close()
            self.memory = None
