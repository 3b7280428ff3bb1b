"""One virtual machine and its life: created, running or paused, ended.

Threads: each vCPU has one; it runs the guest in C without the GIL and comes here only for exits
that end the guest. Every other method may be called from any thread but a vCPU's, one caller at
a time, unless it says otherwise.
"""

from __future__ import annotations

import _thread
import os

from ..devices.debug import BootTimer, DebugExit
from ..devices.power import I8042, AcpiPower
from ..errors import ConfigError, GuestError, PyvirtError
from ..native import check, ffi, lib
from . import bus, cpuid, kvm, layout, report, slots
from .boot import loader
from .interrupts import InterruptLine
from .memory import GuestMemory
from .vcpu import Vcpu, supported_cpuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..devices.virtio.device import Device
    from .config import MachineConfig
    from .log import Log

RUNNING, PAUSED, ENDED = "running", "paused", "ended"


class End:
    """Why a machine ended, and the exit status that goes with it."""

    __slots__ = ("reason", "status")

    def __init__(self, reason: str, status: int = 0) -> None:
        """`reason` is one of the words below, as logs and tools show it."""
        self.reason = reason
        self.status = status


GUEST_SHUTDOWN = "guest-shutdown"  # ACPI S5
GUEST_RESET = "guest-reset"  # ACPI reset register, i8042
DEBUG_EXIT = "debug-exit"
TRIPLE_FAULT = "triple-fault"
CRASH = "crash"  # an exit that cannot be handled, or a fault of the monitor's
HOST = "host"  # asked for from outside


class Machine:
    """A VM with its memory, vCPUs and devices; owns all of them until `close`."""

    def __init__(
        self,
        config: MachineConfig,
        log: Log,
        mark: Callable[[str], None],
        device: str = kvm.DEVICE,
        *,
        virtio: Iterable[Device] = (),
    ) -> None:
        """Create the VM and its devices; `mark` is told of each stage of the start.

        `virtio` devices take the slots after those of the configuration, and are closed with
        the machine. ConfigError or KvmError; nothing stays behind then.
        """
        self.config = config
        self.end: End | None = None
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.bus = bus.Bus()
        self.vcpus: list[Vcpu] = []
        self.memory: GuestMemory | None = None
        self.slots: slots.Slots | None = None
        self._virtio = list(virtio)
        self._log = log
        self._mark = mark
        self._lines: list[InterruptLine] = []
        self._state = PAUSED
        # Guards the state and the reason; the vCPU threads themselves stand at the gate.
        self._lock = _thread.allocate_lock()
        gate = ffi.new("struct pv_gate **")
        check(lib.pv_gate_new(gate), "machine")
        self._gate = ffi.gc(gate[0], lib.pv_gate_free)
        self._vm_fd = self._kvm_fd = -1
        try:
            self._kvm_fd = kvm.open_device(device)
            self._create()
        except BaseException:
            self.close()
            raise

    def _create(self) -> None:
        lacking = kvm.missing(self._kvm_fd)
        if lacking:
            raise PyvirtError(f"this KVM lacks {', '.join(lacking)}; run pyvirt doctor")
        self._check_vcpus()
        self._vm_fd = kvm.CREATE_VM(self._kvm_fd)
        kvm.SET_IDENTITY_MAP_ADDR(self._vm_fd, ffi.new("uint64_t *", layout.KVM_IDENTITY_MAP))
        kvm.SET_TSS_ADDR(self._vm_fd, layout.KVM_TSS)
        kvm.CREATE_IRQCHIP(self._vm_fd)
        pit = ffi.new("struct kvm_pit_config *", {"flags": lib.KVM_PIT_SPEAKER_DUMMY})
        kvm.CREATE_PIT2(self._vm_fd, pit)
        self.memory = GuestMemory(self.config.memory, shared=self.config.share)
        self.memory.register(self._vm_fd)
        self._create_vcpus()
        self._add_devices()
        self._add_virtio()
        self._mark("vm-ready")

    def _check_vcpus(self) -> None:
        limit = kvm.extension(self._kvm_fd, "KVM_CAP_MAX_VCPUS") or 4
        if self.config.vcpus > limit:
            raise ConfigError(f"-smp {self.config.vcpus}: this KVM runs at most {limit}; lower it")

    def _create_vcpus(self) -> None:
        supported = supported_cpuid(self._kvm_fd)
        deadline = kvm.extension(self._kvm_fd, "KVM_CAP_TSC_DEADLINE_TIMER") != 0
        run_size = kvm.GET_VCPU_MMAP_SIZE(self._kvm_fd)
        count = self.config.vcpus
        for index in range(count):
            vcpu = Vcpu(self._vm_fd, index, run_size, self.bus)
            self.vcpus.append(vcpu)
            tsc_khz = kvm.GET_TSC_KHZ(vcpu.fd)
            vcpu.set_cpuid(
                cpuid.for_vcpu(
                    supported, vcpu=index, vcpus=count, tsc_khz=tsc_khz, deadline=deadline
                )
            )
            vcpu.reset()

    def _add_devices(self) -> None:
        def end(reason: str) -> Callable[[], None]:
            return lambda: self.finish(End(reason))

        pio = bus.PIO
        power = AcpiPower(end(GUEST_SHUTDOWN), end(GUEST_RESET))
        self.bus.add(pio, layout.SLEEP_CONTROL, power.SIZE, power)
        self.bus.add(pio, I8042.PORT, 1, I8042(end(GUEST_RESET)))
        exit_port = DebugExit(lambda value: self.finish(End(DEBUG_EXIT, value)))
        self.bus.add(pio, layout.DEBUG_EXIT, exit_port.SIZE, exit_port)
        timer = BootTimer(self._on_boot_stage)
        self.bus.add(pio, layout.BOOT_TIMER, timer.SIZE, timer)
        self.bus.add(bus.MMIO, layout.BOOT_TIMER_MMIO, timer.SIZE, timer)

    def _add_virtio(self) -> None:
        assert self.memory is not None
        if self.config.disks:
            # Here, as this module is on the start-up path and not every guest has a disk or a NIC.
            from ..devices.virtio.block import Block  # noqa: PLC0415

            for place, disk in enumerate(self.config.disks):
                self._virtio.insert(place, Block(disk))
        if self.config.nics:
            from ..devices import nic  # noqa: PLC0415

            for place, config in enumerate(self.config.nics, len(self.config.disks)):
                self._virtio.insert(place, nic.make(config, self.config.name))
        self.slots = slots.Slots(
            self._vm_fd,
            self._virtio,
            bus=self.bus,
            memory=self.memory.native(),
            line=self.interrupt_line,
            log=self._log,
            read_exits=self.config.read_exits
            or not kvm.extension(self._kvm_fd, "KVM_CAP_READONLY_MEM"),
        )

    def _on_boot_stage(self, stage: int) -> None:
        if stage == BootTimer.INIT:
            self._mark("init")

    def interrupt_line(self, gsi: int) -> InterruptLine:
        """Return a new edge-triggered line; the machine closes it."""
        line = InterruptLine(self._vm_fd, gsi)
        self._lines.append(line)
        return line

    @property
    def notices_fd(self) -> int:
        """Return a descriptor that is readable when there is something to `report`."""
        assert self.slots is not None
        return self.slots.notices_fd

    def report(self) -> None:
        """Log what devices have to say: that a driver broke one, and how."""
        if self.slots is not None:
            self.slots.report()

    def load(self) -> None:
        """Load the guest that the configuration names."""
        assert self.memory is not None
        places = slots.windows(len(self._virtio))
        loader.load(self.config, self.memory, self.vcpus[0].fd, places)
        self._mark("kernel-loaded")

    def start(self) -> None:
        """Start the vCPU threads; the guest runs unless the configuration says `frozen`."""
        for vcpu in self.vcpus:
            lib.pv_gate_enter(self._gate)
            try:
                _thread.start_new_thread(self._run_vcpu, (vcpu,))
            except RuntimeError as error:
                lib.pv_gate_leave(self._gate)
                raise PyvirtError(f"vCPU {vcpu.index}: {error}; raise ulimit -u") from None
        if not self.config.frozen:
            self.resume()

    @property
    def state(self) -> str:
        """Return RUNNING, PAUSED or ENDED; any thread."""
        return self._state

    def pause(self) -> None:
        """Stop all vCPUs between two instructions; return when they stand.

        No exit is lost: what a vCPU was doing is complete. Nothing happens when paused or ended.
        """
        with self._lock:
            if self._state != RUNNING:
                return
            self._state = PAUSED
            lib.pv_gate_close(self._gate)
            self._kick()
        lib.pv_gate_wait_parked(self._gate)

    def resume(self) -> None:
        """Let a paused guest run on."""
        with self._lock:
            if self._state == PAUSED:
                self._state = RUNNING
                lib.pv_gate_open(self._gate)

    def finish(self, end: End) -> None:
        """End the machine for the reason given; the first reason holds. Any thread."""
        with self._lock:
            if self._state == ENDED:
                return
            self.end = end
            self._state = ENDED
            self._mark("end")
            lib.pv_gate_end(self._gate)
            self._kick()
            # Under the lock: who sees the end may close the descriptor.
            os.eventfd_write(self.ended_fd, 1)

    def stop(self) -> None:
        """End the machine if nothing has, and wait until its vCPU threads are gone."""
        self.finish(End(HOST))
        lib.pv_gate_wait_left(self._gate)

    def close(self) -> None:
        """Stop the machine and give everything back."""
        self.stop()
        for vcpu in self.vcpus:
            vcpu.close()
        self.vcpus.clear()
        if self.slots is not None:
            self.slots.close()
            self.slots = None
        for device in self._virtio:
            device.close()
        self._virtio.clear()
        for line in self._lines:
            line.close()
        self._lines.clear()
        for fd in (self._vm_fd, self._kvm_fd, self.ended_fd):
            if fd >= 0:
                os.close(fd)
        self._vm_fd = self._kvm_fd = self.ended_fd = -1
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def first_run_ns(self) -> int:
        """Return CLOCK_MONOTONIC at the boot vCPU's first KVM_RUN, 0 before it."""
        stats = ffi.new("struct pv_vcpu_stats *")
        lib.pv_vcpu_read_stats(self.vcpus[0].handle, stats)
        return int(stats.first_run_ns)

    def _kick(self) -> None:
        for vcpu in self.vcpus:
            vcpu.kick()

    def _run_vcpu(self, vcpu: Vcpu) -> None:
        try:
            while lib.pv_gate_pass(self._gate):
                reason = vcpu.run()
                if reason != lib.KVM_EXIT_INTR:
                    self._judge(vcpu, reason)
        except PyvirtError as error:
            self._log.error(f"vCPU {vcpu.index}: {error}\n{report.registers(vcpu)}")
            self.finish(End(CRASH, 1))
        except Exception as error:  # noqa: BLE001  (a fault of ours ends this guest, in one line)
            self._log.error(f"vCPU {vcpu.index}: {type(error).__name__}: {error}; please report")
            self.finish(End(CRASH, 1))
        finally:
            lib.pv_gate_leave(self._gate)

    def _judge(self, vcpu: Vcpu, reason: int) -> None:
        """Handle an exit that no device serves: each of them ends the guest."""
        if reason == lib.KVM_EXIT_SHUTDOWN:
            end = End(TRIPLE_FAULT, 1)
            error = GuestError("the guest triple-faulted")
        else:
            end = End(CRASH, 1)
            error = GuestError(report.describe_exit(vcpu, reason))
        self._log.error(f"vCPU {vcpu.index}: {error}\n{report.registers(vcpu)}")
        self.finish(end)
