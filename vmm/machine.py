"""One virtual machine and its life: created, running or paused, ended.

Threads: each vCPU has one; it runs the guest in C without the GIL and comes here only for exits
that end the guest. Every other method may be called from any thread but a vCPU's, one caller at
a time, unless it says otherwise; `finish`, `stop` and `close` at any time, though.
"""

from __future__ import annotations

import _thread
import errno
import os

from ..devices.debug import BootTimer
from ..devices.power import EventDevice
from ..errors import ConfigError, GuestError, PyvirtError, unexpected
from ..native import check, ffi, lib
from . import bus, kvm, layout, ports, report, slots
from .boot import loader
from .end import CRASH, DEBUG_EXIT, HOST, TRIPLE_FAULT, End, Reaction
from .memory import GuestMemory
from .vm import InterruptLine, Vm, check_kvm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ..devices.chardev import Chardev
    from ..devices.virtio.device import Device, Pluggable
    from .boot.kernel import Kernel
    from .config import MachineConfig
    from .log import Log
    from .ports import Part
    from .timed import TimedDevices
    from .vcpu import Vcpu


RUNNING, PAUSED, ENDED = "running", "paused", "ended"


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
        self.is_kept = False  # closed, and what is behind its slots has to stay
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.bus = bus.Bus()
        self.memory: GuestMemory | None = None
        self.slots: slots.Slots | None = None
        # Of the vCPUs' threads, as the kernel counts them; 0 before they run.
        self.thread_ids = [0] * config.vcpus
        # Called with the name and data of each of QMP's events that happens here, on the thread
        # where it happens, without a lock held.
        self.listeners: list[Callable[[str, dict[str, Any]], None]] = []
        # Called during `reset`, to reset what the machine does not own.
        self.on_reset: list[Callable[[], None]] = []
        # What has a state beside vCPUs and slots, by the name that it has in a snapshot.
        self.parts: dict[str, Part] = {}
        self._timed: TimedDevices | None = None
        self._virtio = list(virtio)
        self._log = log
        self._mark = mark
        self.reaction = Reaction(config.actions, self, log)
        self._fault_log = log.limited()
        self._lines: list[InterruptLine] = []
        self._state = PAUSED
        self._first_run_ns = 0  # before the first reset
        self._is_stopped = False
        self._saving = _thread.allocate_lock()  # held while a snapshot is written
        self._cancel_save: Callable[[], None] = lambda: None
        # Guards the state, the reason and which VM it is; the vCPU threads stand at the gate.
        self._lock = _thread.allocate_lock()
        # Held while a slot or the whole machine changes, which may wait for requests in flight.
        self._change = _thread.allocate_lock()
        gate = ffi.new("struct pv_gate **")
        check(lib.pv_gate_new(gate), "machine")
        self._gate = ffi.gc(gate[0], lib.pv_gate_free)
        self._vm: Vm | None = None
        self._kvm_fd = -1
        try:
            self._kvm_fd = kvm.open_device(device)
            self._create()
        except BaseException:
            self.close()
            raise

    def _create(self) -> None:
        config = self.config
        check_kvm(self._kvm_fd, config.vcpus)
        self.memory = GuestMemory(
            config.memory,
            shared=config.share,
            dumped=config.dump_guest_core,
            memdevs=config.memdevs,
            content=config.content,
        )
        self._populate(self.memory)
        self._vm = Vm(self._kvm_fd, self.memory, config, self.bus)
        self._add_devices()
        slots.fill(config, self._virtio)
        self._add_slots(self._vm, self.memory)
        self._mark("vm-ready")

    def _populate(self, memory: GuestMemory) -> None:
        if self.config.prealloc:
            memory.populate(self._log.notice)
            return
        at = 0
        for memdev in self.config.memdevs:
            if memdev.prealloc:
                memory.populate(self._log.notice, at, memdev.size)
            at += memdev.size

    @property
    def vm(self) -> Vm:
        """Return KVM's part; another after a reset."""
        assert self._vm is not None
        return self._vm

    @property
    def kvm_fd(self) -> int:
        """Return the descriptor of /dev/kvm."""
        return self._kvm_fd

    @property
    def vcpus(self) -> list[Vcpu]:
        """Return the vCPUs, by index; others after a reset."""
        return self._vm.vcpus if self._vm is not None else []

    def _add_devices(self) -> None:
        self._events = EventDevice(self.interrupt_line(layout.GED_IRQ).fd)
        self.parts |= ports.add(
            self.bus,
            self.reaction,
            self._events,
            on_exit=lambda value: self.finish(End(DEBUG_EXIT, value)),
            on_stage=self._on_boot_stage,
        )
        if self.config.testdev:
            self._add_testdev()
        if self.config.watchdog or self.config.rtc:
            self._add_timed()

    def _add_timed(self) -> None:
        from .timed import TimedDevices  # noqa: PLC0415  (few machines have one)

        self._timed = TimedDevices(
            self.config,
            self.bus,
            lambda irq: self.interrupt_line(irq).fd,
            self.reaction.on_watchdog,
        )
        self.on_reset.append(self._timed.reset)
        self.parts |= self._timed.parts()

    def _add_testdev(self) -> None:
        from . import testdev  # noqa: PLC0415  (few machines have one)

        assert self.memory is not None
        self.on_reset.append(testdev.add(self.bus, self.memory, self._vm_fd))

    def _vm_fd(self) -> int:
        assert self._vm is not None
        return self._vm.fd

    def _add_slots(self, vm: Vm, memory: GuestMemory) -> None:
        self.slots = slots.Slots(
            vm.fd,
            self._virtio,
            bus=self.bus,
            memory=memory.native(),
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
        assert self._vm is not None
        line = InterruptLine(self._vm.fd, gsi)
        self._lines.append(line)
        return line

    @property
    def notices_fd(self) -> int:
        """Return a descriptor that is readable when there is something to `report`."""
        assert self.slots is not None
        return self.slots.notices_fd

    def report(self) -> None:
        """Log what devices have to say: that a driver broke one, that an image failed."""
        if self.slots is None or not self.slots.report():
            return
        for transport in self.slots.transports:
            for name, data in transport.device.take_events():
                self.tell(name, **data)
        for device in self.slots.pluggable("block"):
            failure = device.take_failure()
            if failure is not None:
                operation, error = failure
                self.slots.warn(device, f"{operation}: {os.strerror(error)}")
                self.tell(
                    "BLOCK_IO_ERROR",
                    **{"device": device.backend, "node-name": device.backend},
                    operation="read" if operation == "read" else "write",
                    action="report",
                    nospace=error == errno.ENOSPC,
                    reason=os.strerror(error),
                )
        for device in self.slots.pluggable("net"):
            if device.take_filter_change() and device.backend:
                self.tell("NIC_RX_FILTER_CHANGED", name=device.backend, path=device.backend)

    def load(self) -> None:
        """Load the guest that the configuration names, and say what it will not find here."""
        for note in self._load().notes:
            self._log.warning(note)
        self._mark("kernel-loaded")

    def _load(self) -> Kernel:
        assert self.memory is not None
        places = slots.windows(len(self._virtio))
        return loader.load(self.config, self.memory, self.vcpus[0].fd, places)

    def tell(self, event: str, **data: Any) -> None:
        """Tell the listeners of an event; any thread."""
        for listener in self.listeners:
            listener(event, data)

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
            self._set_running()

    @property
    def state(self) -> str:
        """Return RUNNING, PAUSED or ENDED; any thread."""
        return self._state

    def pause(self) -> None:
        """Stop all vCPUs between two instructions; return when they stand.

        No exit is lost: what a vCPU was doing is complete. Nothing happens when paused or ended.
        """
        if self._set_paused():
            self.tell("STOP")

    def _set_paused(self) -> bool:
        """Pause; return whether the guest was running."""
        with self._lock:
            if self._state != RUNNING:
                return False
            self._state = PAUSED
            lib.pv_gate_close(self._gate)
            self._kick()
            if self._timed is not None:
                self._timed.freeze()
        lib.pv_gate_wait_parked(self._gate)
        return True

    def hold(self) -> bool:
        """Have the vCPUs stand before their next instruction, until somebody lets them run.

        For a vCPU's thread, which cannot wait for that. False: the machine has ended.
        """
        with self._lock:
            if self._state == ENDED:
                return False
            lib.pv_gate_close(self._gate)
            self._kick()
            return True

    def resume(self) -> None:
        """Let a paused guest run on; PyvirtError when it has switched itself off, or is saved."""
        self._check_not_saved()
        if self.reaction.because == "shutdown":
            raise PyvirtError("the guest has switched itself off; reset the machine first")
        self.reaction.done()
        if self._set_running():
            self.tell("RESUME")

    def _set_running(self) -> bool:
        """Resume; return whether the guest was paused."""
        with self._lock:
            if self._state != PAUSED:
                return False
            self._state = RUNNING
            if self._timed is not None:
                self._timed.thaw()
            lib.pv_gate_open(self._gate)
            return True

    def reset(self, *, by_guest: bool = False) -> None:
        """Start the machine anew, as from its power-on; what is behind its slots stays there.

        A paused one stays paused. `by_guest` is for who listens. PyvirtError: it cannot be; the
        machine has ended if there is nothing to go back to.
        """
        self._check_not_saved()
        with self._change:
            self._check_alive()
            assert self.memory is not None
            was_running = self._set_paused()
            # At its end the vCPU threads do not stand, they leave.
            self._check_alive()
            try:
                vm = self._prepare_anew(self.memory)
            except BaseException:
                # A guest that asked for it does not expect to go on.
                if was_running and not by_guest:
                    self._set_running()
                raise
            try:
                self._begin_anew(vm)
            except BaseException:
                self.finish(End(CRASH, 1))
                raise
            self.reaction.done()
            if was_running:
                self._set_running()
        self.tell("RESET", guest=by_guest)

    def _prepare_anew(self, memory: GuestMemory) -> Vm:
        """Do what may fail before anything is lost; return the VM that comes next."""
        assert self.slots is not None
        vm = Vm(self._kvm_fd, memory, self.config, self.bus)
        try:
            # Nothing of the host's may write to the memory that another guest has then.
            self.slots.drain()
        except BaseException:
            vm.close()
            raise
        return vm

    def _begin_anew(self, vm: Vm) -> None:
        assert self.slots is not None
        assert self.memory is not None
        self.slots.reset()
        self._first_run_ns = self.first_run_ns()
        with self._lock:
            before, self._vm = self._vm, vm
        assert before is not None
        before.close()
        for line in self._lines:
            line.clear()
            line.connect(vm.fd)
        self.slots.connect(vm.fd)
        self._events.reset()
        for reset in self.on_reset:
            reset()
        self.memory.clear()
        self._load()

    def standing(self, look: Callable[[], Any]) -> Any:
        """Return what `look` does while no vCPU runs; a running guest pauses, and nobody is told.

        PyvirtError when the machine has ended.
        """
        self._check_not_saved()
        with self._change:
            was_running = self._set_paused()
            try:
                self._check_alive()
                return look()
            finally:
                if was_running:
                    self._set_running()

    def begin_save(self, cancel: Callable[[], None]) -> None:
        """Pause, and have all devices stand, so that the machine can be looked at as it is.

        Until `end_save` nothing can be changed; `cancel` is called when the machine is to be closed
        before that. PyvirtError: it has ended, or a device does not come to a stand; a guest that
        ran runs on then.
        """
        self._check_not_saved()
        with self._change:
            self._check_alive()
            assert self.slots is not None
            was_running = self._set_paused()
            try:
                if self.reaction.is_busy:
                    raise PyvirtError("the guest has reset itself, switched itself off or panicked")
                self.slots.drain()
            except BaseException:
                if was_running:
                    self._take_pause_back()
                raise
            self._saving.acquire()
            self._cancel_save = cancel
        if was_running:
            self.tell("STOP")

    def _take_pause_back(self) -> None:
        with self._lock:
            if self._state == PAUSED:
                self._state = RUNNING
                # What the guest has asked for comes first, and pauses by itself.
                if not self.reaction.is_busy:
                    if self._timed is not None:
                        self._timed.thaw()
                    lib.pv_gate_open(self._gate)

    def end_save(self) -> None:
        """Let the devices go on; the machine stays paused."""
        assert self.slots is not None
        self.slots.resume()
        self._saving.release()

    def _check_not_saved(self) -> None:
        if self._saving.locked():
            raise PyvirtError(
                "a snapshot of the machine is being written; wait until query-migrate says that it "
                "is completed, or cancel it by migrate_cancel"
            )

    def chardevs(self) -> list[tuple[Chardev, bool, bool]]:
        """Return the character devices of the devices in the slots; see `Device.chardevs`."""
        transports = self.slots.transports if self.slots is not None else ()
        return [found for transport in transports for found in transport.device.chardevs()]

    def terminal_resized(self) -> None:
        """Tell the devices that the user's terminal has another size; the main thread."""
        for transport in self.slots.transports if self.slots is not None else ():
            transport.device.terminal_resized()

    def power_button(self) -> None:
        """Press the guest's power button; a guest that heeds it switches itself off later."""
        self._check_alive()
        self._events.press_power_button()
        self.tell("POWERDOWN")

    def renew_generation(self) -> None:
        """Tell the guest that it is one of several, before it runs: its generation ID is new."""
        assert self.memory is not None
        self.memory.write(layout.GENERATION_ID, os.urandom(layout.GENERATION_ID_SIZE))
        self._events.tell_generation()

    def inject_nmi(self) -> None:
        """Raise a non-maskable interrupt in every vCPU: Linux says where it was, if told to."""

        def inject() -> None:
            for vcpu in self.vcpus:
                kvm.NMI(vcpu.fd)

        self.standing(inject)

    def _check_alive(self) -> None:
        if self._state == ENDED:
            raise PyvirtError("the machine has ended; start another")

    def slot(self, kind: str, addr: int) -> Pluggable:
        """Return the device in slot `addr` of a kind ("block", "net"); ConfigError."""
        devices = self.slots.pluggable(kind) if self.slots is not None else []
        if not 0 <= addr < len(devices):
            raise ConfigError(f"slot {addr}: there are {len(devices)} of kind {kind}")
        return devices[addr]

    def attach(self, kind: str, addr: int, backend: Any, **options: Any) -> None:
        """Put `backend` behind a slot, as its device's `attach` says; the guest is told."""
        self._check_not_saved()
        with self._change:
            self._check_alive()
            self.slot(kind, addr).attach(backend, **options)

    def detach(self, kind: str, addr: int) -> Any:
        """Empty a slot; return what was in it, which nothing uses any more. The guest is told.

        The slot's faults go first, so that no request stays behind.
        """
        self._check_not_saved()
        with self._change:
            self._check_alive()
            device = self.slot(kind, addr)
            device.faults().clear()
            return device.detach()

    def change(self, kind: str, addr: int, change: Callable[[Any], None]) -> None:
        """Let `change` change the device in a slot, while nothing else does."""
        self._check_not_saved()
        with self._change:
            self._check_alive()
            change(self.slot(kind, addr))

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
        with self._lock:
            is_first, self._is_stopped = not self._is_stopped, True
        if is_first and self.end is not None:
            by_guest = self.end.reason != HOST
            self.tell("SHUTDOWN", guest=by_guest, reason=self.end.reason)

    def close(self) -> None:
        """Stop the machine and give everything back."""
        self.stop()
        self._cancel_save()
        if self._timed is not None:
            self._timed.close()
        with self._saving, self._change:
            self._close()

    def _close(self) -> None:
        before, self.slots = self.slots, None
        kept = before.close() if before is not None else []
        for device in self._virtio:
            if device not in kept:
                device.close()
        if kept:
            self._keep(kept, before)
        self._virtio.clear()
        for line in self._lines:
            line.close()
        self._lines.clear()
        if self._vm is not None:
            self._vm.close()
            self._vm = None
        for fd in (self._kvm_fd, self.ended_fd):
            if fd >= 0:
                os.close(fd)
        self._kvm_fd = self.ended_fd = -1
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def _keep(self, devices: list[Device], before: slots.Slots | None) -> None:
        """Leave what the host is at work on for devices as it is, to the end of the process."""
        from .keep import keep  # noqa: PLC0415  (hardly ever)

        names = ", ".join(device.name for device in devices)
        self._log.warning(
            f"{names}: the host still has requests; the guest's memory stays until it is done"
        )
        self.is_kept = True
        keep(devices, before, self.memory, *self._lines)
        self.memory = None
        self._lines.clear()

    def first_run_ns(self) -> int:
        """Return CLOCK_MONOTONIC at the boot vCPU's first KVM_RUN, 0 before it."""
        if self._first_run_ns:
            return self._first_run_ns
        stats = ffi.new("struct pv_vcpu_stats *")
        lib.pv_vcpu_read_stats(self.vcpus[0].handle, stats)
        return int(stats.first_run_ns)

    def _kick(self) -> None:
        for vcpu in self.vcpus:
            vcpu.kick()

    def _run_vcpu(self, vcpu: Vcpu) -> None:
        self.thread_ids[vcpu.index] = _thread.get_native_id()
        lib.pv_crash_thread(f"vcpu{vcpu.index}".encode())
        try:
            while lib.pv_gate_pass(self._gate):
                # After a reset it is another.
                vcpu = self.vcpus[vcpu.index]
                reason = vcpu.run()
                if reason != lib.KVM_EXIT_INTR:
                    self._judge(vcpu, reason)
        except PyvirtError as error:
            self._log.error(f"vCPU {vcpu.index}: {error}\n{report.registers(vcpu)}")
        except BaseException as error:  # noqa: BLE001  (a fault of ours ends this guest, in one line)
            self._log.error(f"vCPU {vcpu.index}: {unexpected(error)}; please report")
        finally:
            # Of a machine that has ended already, the reason stays.
            self.finish(End(CRASH, 1))
            lib.pv_gate_leave(self._gate)

    def _judge(self, vcpu: Vcpu, reason: int) -> None:
        """Handle an exit that no device serves: each of them ends or resets the guest."""
        if reason == lib.KVM_EXIT_SHUTDOWN:
            if self.reaction.on_triple_fault():
                self._fault_log(f"vCPU {vcpu.index}: the guest triple-faulted, and is reset")
                return
            end = End(TRIPLE_FAULT, 1)
            error = GuestError("the guest triple-faulted")
        else:
            end = End(CRASH, 1)
            error = GuestError(report.describe_exit(vcpu, reason))
        self._log.error(f"vCPU {vcpu.index}: {error}\n{report.registers(vcpu)}")
        self.finish(end)
