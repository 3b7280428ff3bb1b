"""One virtual machine and its life: created, running or paused, ended.

Every method may be called from any thread but a vCPU's, one caller at a time, unless it says
otherwise; `finish`, `stop` and `close` at any time, though.
"""

from __future__ import annotations

import _thread
import os

from ..devices.debug import BootTimer
from ..devices.power import EventDevice
from ..errors import ConfigError, PyvirtError
from ..native import ffi, lib
from . import bus, kvm, layout, ports, slots
from .boot import loader
from .change import Change
from .core import Core
from .end import CRASH, DEBUG_EXIT, HOST, End, Reaction
from .execution import Execution
from .groundwork import Groundwork, Making
from .vm import InterruptLine, Vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ..devices.chardev import Chardev
    from ..devices.virtio.device import Device, Pluggable
    from .boot.kernel import Kernel
    from .config import MachineConfig
    from .demand import Demand
    from .log import Log
    from .memory import GuestMemory
    from .ports import Part
    from .timed import TimedDevices
    from .vcpu import Vcpu


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
        core: Core | None = None,
        groundwork: Groundwork | None = None,
    ) -> None:
        """Create the VM and its devices; `mark` is told of each stage of the start.

        `virtio` devices take the slots after those of the configuration, and are closed with
        the machine; so is a `core` that was made ahead and suits the configuration. Or the
        groundwork for one was begun ahead, and is taken. ConfigError or KvmError; nothing stays
        behind then.
        """
        self.config = config
        self.is_kept = False  # closed, and what is behind its slots has to stay
        self.memory: GuestMemory | None = None
        self.slots: slots.Slots | None = None
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
        self._lines: list[InterruptLine] = []
        self._vacant: dict[int, Pluggable] = {}  # made ahead, and not among those yet
        self._first_run_ns = 0  # before the first reset
        self._is_stopped = False
        self._saving = _thread.allocate_lock()  # held while a snapshot is written
        self._cancel_save: Callable[[], None] = lambda: None
        # Held while a slot or the whole machine changes, which may wait for requests in flight.
        self.changing = Change(self._check_changeable)
        self.demand: Demand | None = None
        self._vm: Vm | None = None
        self._kvm_fd = -1
        self._execution = Execution(config.vcpus, lambda: self.vcpus, self.reaction, log, mark)
        try:
            if core is None:
                groundwork = groundwork or Groundwork(config, log, device)
                core = Core(config, log, groundwork, count=self._count_slots())
            self._create(core)
        except BaseException:
            self.close()
            raise

    def _create(self, core: Core) -> None:
        self.bus, self._kvm_fd = core.bus, core.kvm_fd
        self.memory, self._vm, self.slots = core.memory, core.vm, core.slots
        self._lines, self._vacant = core.lines, core.vacant
        self._add_devices()
        slots.fill(self.config, self._virtio, self._vacant)
        assert self.slots is not None
        self.slots.put_all(self._virtio, self.config.places)
        if self.config.on_demand:
            self._virtio.clear()  # any of them may go, with its slot
        self._mark("vm-ready")

    def _count_slots(self) -> int:
        return slots.count(self.config, len(self._virtio))

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
        if self.config.on_demand:
            self._add_demand()

    def _add_timed(self) -> None:
        from .timed import TimedDevices  # noqa: PLC0415  (few machines have one)

        self._timed = self._execution.timed = TimedDevices(
            self.config,
            self.bus,
            lambda irq: self.interrupt_line(irq).fd,
            self.reaction.on_watchdog,
        )
        self.on_reset.append(self._timed.reset)
        self.parts |= self._timed.parts()

    def _add_demand(self) -> None:
        from .demand import Demand  # noqa: PLC0415  (few machines have slots so)

        self.demand = Demand(self, self._events, self._log.limited())
        self.bus.add(bus.PIO, layout.PLUG, layout.PLUG_SIZE, self.demand.port)
        self.on_reset.append(self.demand.reset)
        self.parts["plug"] = self.demand.port

    def _add_testdev(self) -> None:
        from . import testdev  # noqa: PLC0415  (few machines have one)

        assert self.memory is not None
        self.on_reset.append(testdev.add(self.bus, self.memory, self._vm_fd))

    def _vm_fd(self) -> int:
        assert self._vm is not None
        return self._vm.fd

    def _on_boot_stage(self, stage: int) -> None:
        if stage == BootTimer.INIT:
            self._mark("init")

    def delegate(self, perform: Callable[[Callable[[], None]], None]) -> None:
        """Have `perform` carry out what vCPUs' threads may not in a sandbox; before `start`."""
        self.bus.perform = self._execution.perform = perform

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
        with self.slots.lock:
            events = list(self.slots.take_events())
        for name, data in events:
            self.tell(name, **data)

    def load(self) -> None:
        """Load the guest that the configuration names, and say what it will not find here."""
        for note in self._load().notes:
            self._log.warning(note)
        self._mark("kernel-loaded")

    def _load(self) -> Kernel:
        assert self.memory is not None
        assert self.slots is not None
        return loader.load(self.config, self.memory, self.vcpus[0].fd, self.slots.windows())

    def tell(self, event: str, **data: Any) -> None:
        """Tell the listeners of an event; any thread."""
        for listener in self.listeners:
            listener(event, data)

    def start(self) -> None:
        """Start the vCPU threads; the guest runs unless the configuration says `frozen`."""
        self._execution.start()
        if not self.config.frozen:
            self._execution.resume()
            self._execution.wait_begun()

    @property
    def state(self) -> str:
        """Return RUNNING, PAUSED or ENDED; any thread."""
        return self._execution.state

    @property
    def end(self) -> End | None:
        """Return why the machine has ended; any thread."""
        return self._execution.end

    @property
    def ended_fd(self) -> int:
        """Return a descriptor that is readable when the machine has ended."""
        return self._execution.ended_fd

    @property
    def thread_ids(self) -> list[int]:
        """Return those of the vCPUs' threads, as the kernel counts them; 0 before they run."""
        return self._execution.thread_ids

    def pause(self) -> None:
        """Stop all vCPUs between two instructions; return when they stand.

        No exit is lost: what a vCPU was doing is complete. Nothing happens when paused or ended.
        """
        if self._execution.pause():
            self.tell("STOP")

    def hold(self) -> bool:
        """Have the vCPUs stand; see Execution."""
        return self._execution.hold()

    def resume(self) -> None:
        """Let a paused guest run on; PyvirtError when it has switched itself off, or is saved."""
        self._check_not_saved()
        if self.reaction.because == "shutdown":
            raise PyvirtError("the guest has switched itself off; reset the machine first")
        self.reaction.done()
        if self._execution.resume():
            self.tell("RESUME")

    def reset(self, *, by_guest: bool = False) -> None:
        """Start the machine anew, as from its power-on; what is behind its slots stays there.

        A paused one stays paused. `by_guest` is for who listens. PyvirtError: it cannot be; the
        machine has ended if there is nothing to go back to.
        """
        with self.changing:
            assert self.memory is not None
            was_running = self._execution.pause()
            # At its end the vCPU threads do not stand, they leave.
            self._execution.check_alive()
            try:
                vm = self._prepare_anew(self.memory)
            except BaseException:
                # A guest that asked for it does not expect to go on.
                if was_running and not by_guest:
                    self._execution.resume()
                raise
            try:
                self._begin_anew(vm)
            except BaseException:
                self.finish(End(CRASH, 1))
                raise
            self.reaction.done()
            if was_running:
                self._execution.resume()
        self.tell("RESET", guest=by_guest)

    def _prepare_anew(self, memory: GuestMemory) -> Vm:
        """Do what may fail before anything is lost; return the VM that comes next."""
        assert self.slots is not None
        loader.find(self.config)
        making = Making(self._kvm_fd, memory, pit=self.config.pit)
        vm = Vm(self._kvm_fd, making, self.config, self.bus)
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
        with self._execution.lock:
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
        with self.changing.lock:
            self._check_not_saved()
            return self.rest(look)

    def rest(self, look: Callable[[], Any]) -> Any:
        """Do so in the middle of a change."""
        was_running = self._execution.pause()
        try:
            self._execution.check_alive()
            return look()
        finally:
            if was_running:
                self._execution.resume()

    def begin_save(self, cancel: Callable[[], None]) -> None:
        """Pause, and have all devices stand, so that the machine can be looked at as it is.

        Until `end_save` nothing can be changed; `cancel` is called when the machine is to be closed
        before that. PyvirtError: it has ended, or a device does not come to a stand; a guest that
        ran runs on then.
        """
        with self.changing:
            assert self.slots is not None
            was_running = self._execution.pause()
            try:
                if self.reaction.is_busy:
                    raise PyvirtError("the guest has reset itself, switched itself off or panicked")
                self.slots.drain()
            except BaseException:
                if was_running:
                    self._execution.take_pause_back()
                raise
            self._saving.acquire()
            self._cancel_save = cancel
        if was_running:
            self.tell("STOP")

    def end_save(self) -> None:
        """Let the devices go on; the machine stays paused."""
        assert self.slots is not None
        self.slots.resume()
        self._saving.release()

    def _check_changeable(self) -> None:
        """Say why the machine cannot change, if so; to be asked with `changing` taken."""
        self._check_not_saved()
        self._execution.check_alive()

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
        self._execution.check_alive()
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

    def slot(self, kind: str, addr: int) -> Pluggable:
        """Return the device in slot `addr` of a kind ("block", "net"); ConfigError."""
        device = self.slots.find(kind, addr) if self.slots is not None else None
        if device is None:
            count = len(self.slots.pluggable(kind)) if self.slots is not None else 0
            raise ConfigError(f"slot {addr}: there are {count} of kind {kind}")
        return device

    def attach(self, kind: str, addr: int, backend: Any, **options: Any) -> None:
        """Put `backend` behind a slot, as its device's `attach` says; the guest is told."""
        with self.changing:
            self.slot(kind, addr).attach(backend, **options)

    def detach(self, kind: str, addr: int) -> Any:
        """Empty a slot; return what was in it, which nothing uses any more. The guest is told.

        The slot's faults go first, so that no request stays behind.
        """
        with self.changing:
            device = self.slot(kind, addr)
            device.faults().clear()
            return device.detach()

    def change(self, kind: str, addr: int, change: Callable[[Any], None]) -> None:
        """Let `change` change the device in a slot, while nothing else does."""
        with self.changing:
            change(self.slot(kind, addr))

    def finish(self, end: End) -> None:
        """End the machine for the reason given; the first reason holds. Any thread."""
        self._execution.finish(end)

    def wait_left(self) -> None:
        """Wait until the vCPU threads of a machine that has ended are gone."""
        self._execution.wait_left()

    def stop(self) -> None:
        """End the machine if nothing has, and wait until its vCPU threads are gone."""
        self.finish(End(HOST))
        self._execution.wait_left()
        with self._execution.lock:
            is_first, self._is_stopped = not self._is_stopped, True
        if is_first and self.end is not None:
            by_guest = self.end.reason != HOST
            self.tell("SHUTDOWN", guest=by_guest, reason=self.end.reason)

    def close(self) -> None:
        """Stop the machine and give everything back."""
        self.stop()
        if self._timed is not None:
            self._timed.close()
        # In the order in which `begin_save` takes them: it has begun, or it will find the end.
        with self.changing.lock:
            self._cancel_save()
            with self._saving:
                self._close()

    def _close(self) -> None:
        before, self.slots = self.slots, None
        placed = [one.device for one in before.transports] if before is not None else []
        kept = before.close() if before is not None else []
        for device in dict.fromkeys((*self._virtio, *self._vacant.values(), *placed)):
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
        if self._kvm_fd >= 0:
            os.close(self._kvm_fd)
            self._kvm_fd = -1
        self._execution.close()
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
