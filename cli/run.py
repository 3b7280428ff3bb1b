"""`pyvirt run`: boot a guest and stay with it to its end.

What is imported at the top here is on the start-up path: the standard library's light modules
and our own (tests/unit/test_imports.py holds the list). The machine's are imported while KVM makes
the VM.
"""

from __future__ import annotations

import _thread
import os
import select
import sys

from ..errors import ConfigError, PyvirtError, unexpected
from ..native import check, lib
from ..vmm import layout
from ..vmm.config import DEMAND, MachineConfig
from ..vmm.end import CRASH, HOST, End
from ..vmm.groundwork import Groundwork
from ..vmm.log import Log
from .control import Control
from .daemon import PidFile, Starter, daemonize
from .options.parse import parse
from .timeline import Timeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..devices.serial import Serial
    from ..devices.terminal import RawTerminal
    from ..vmm.machine import Machine
    from ..vmm.sandbox import Helpers
    from ..vmm.snapshot.restore import Incoming
    from .options.parsed import Options
    from .server.child import Prepared

# What is still in the serial port at the end is given this long to reach its reader.
_FLUSH_MS = 1000
# And what is told of the run at its end, to who reads stderr; the rest is lost.
_SHOW_S = 5.0
# Of Python's threads, in bytes. In one that has room for a huge page the kernel puts one.
_STACK = 1 << 20


def _use_lab(options: Options) -> str:
    """Return why the guest must run in the lab, "" when it need not."""
    if options.accel == "kvm":
        return ""
    if options.accel == "lab":
        return "asked for"
    from ..vmm.accel import kvm_failure

    return kvm_failure()


def _with_default_guest(argv: list[str], options: Options) -> Options:
    """Return `options` completed by the guest that runs when none is named."""
    if options.terminal not in {None, options.serial}:
        raise ConfigError(
            f"{options.terminal.option}: the guest that runs when none is named is on its serial "
            f"port; give -serial chardev:{options.terminal.id}, or a -kernel"
        )
    from ..harness.guest import default

    kernel, initrd = default.default(shares=bool(options.shares))
    words = ["-kernel", str(kernel), "-initrd", str(initrd)]
    if options.append is None:
        words += ["-append", default.CMDLINE]
    completed = parse(argv + words)
    completed.append = default.cmdline(completed.append or "", options.shares)
    return completed


def _with_root(argv: list[str], options: Options) -> Options:
    """Return `options` completed by what makes a folder of the host the guest's root."""
    from .options import root

    if root.is_complete(options):
        return options
    words, cmdline = root.words(options)
    completed = parse(argv + words)
    completed.append = cmdline
    return completed


def _cmdline(options: Options) -> str:
    """Return the command line of a kernel that is given none: its console is where the user is."""
    console = "ttyS0"
    if options.terminal not in {None, options.serial}:
        from .options.ports import kernel_console

        console = kernel_console(options.devices, options.terminal)
    return f"console={console} panic=-1"


def config(options: Options) -> MachineConfig:
    """Return the machine that the options ask for."""
    return MachineConfig(
        options.kernel,
        initrd=options.initrd,
        cmdline=_cmdline(options) if options.append is None else options.append,
        vcpus=options.smp,
        memory=options.memory,
        name=options.name,
        uuid=options.uuid,
        discovery=options.discovery,
        share=options.share,
        dump_guest_core=options.dump_guest_core,
        frozen=options.freeze,
        disks=options.disks,
        nics=options.nics,
        devices=options.devices,
        cpu=options.cpu,
        pit=options.pit,
        testdev=options.testdev,
        rtc=options.rtc,
        watchdog=options.watchdog,
        actions=options.actions,
        topology=options.topology,
        memdevs=options.memdevs,
        content=options.content,
        prealloc=options.prealloc,
        numa=options.numa,
        on_demand=options.slots == DEMAND,
        places=options.places,
        hotplug=bool(options.monitors) if options.hotplug is None else options.hotplug,
    )


class _Events:
    """What may end a run from outside: signals and the terminal's escape; owns its descriptors."""

    __slots__ = ("_signal_fd", "quit_fd")

    def __init__(self) -> None:
        self.quit_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._signal_fd = check(lib.pv_signals_open(), "signals")

    def wait(self, machine: Machine, log: Log) -> None:
        """Return when the machine has ended; end it when somebody asks for that."""
        try:
            self._wait(machine)
        except Exception as error:  # noqa: BLE001  (a fault of ours ends the guest in good order)
            log.error(f"main loop: {unexpected(error)}; please report")
            machine.finish(End(CRASH, 1))

    def _wait(self, machine: Machine) -> None:
        poll = select.poll()
        for fd in (machine.ended_fd, machine.notices_fd, self.quit_fd, self._signal_fd):
            poll.register(fd, select.POLLIN)
        while machine.end is None:
            for fd, _ in poll.poll():
                if fd == machine.notices_fd:
                    machine.report()
                elif fd != machine.ended_fd:
                    machine.finish(End(HOST))

    def close(self) -> None:
        """Close the descriptors; the signals stay blocked, for the process is about to end."""
        os.close(self._signal_fd)
        os.close(self.quit_fd)


def _run_here(
    options: Options,
    log: Log,
    timeline: Timeline,
    incoming: Incoming | None = None,
    prepared: Prepared | None = None,
) -> int:
    """Run the guest on this host's KVM; return the exit status."""
    with daemonize() if options.daemonize else Starter() as starter:
        return _run(options, log, timeline, starter, incoming, prepared)


def _make(options: Options, log: Log, timeline: Timeline, prepared: Prepared | None) -> Machine:
    wanted = config(options)
    core = prepared.core_for(wanted) if prepared is not None else None
    if core is not None:
        from ..vmm.machine import Machine

        return Machine(wanted, log, timeline.mark, core=core)
    with Groundwork(wanted, log) as groundwork:
        # While KVM makes the VM.
        from ..vmm.machine import Machine

        return Machine(wanted, log, timeline.mark, groundwork=groundwork)


class _Terminal:
    """A context in which a terminal on stdin is the guest's, if one of its consoles is there."""

    __slots__ = ("_raw",)

    def __init__(self, options: Options, machine: Machine) -> None:
        self._raw: RawTerminal | None = None
        terminal = options.terminal
        if terminal is not None and terminal.is_terminal:
            from ..devices.terminal import RawTerminal

            self._raw = RawTerminal(signals=terminal.signals, resized=machine.terminal_resized)

    def __enter__(self) -> None:
        if self._raw is not None:
            self._raw.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._raw is not None:
            self._raw.__exit__(*error)


def _serial(options: Options, machine: Machine) -> Serial:
    from ..devices.serial import Serial

    return Serial(options.serial, irq_fd=machine.interrupt_line(layout.COM1_IRQ).fd)


def _run(
    options: Options,
    log: Log,
    timeline: Timeline,
    starter: Starter,
    incoming: Incoming | None = None,
    prepared: Prepared | None = None,
) -> int:
    lib.pv_crash_thread(b"main")
    check(lib.pv_crash_report(log.fd), "signals")
    _thread.stack_size(_STACK)
    _arm(options)
    events = _Events()
    if options.terminal is not None:
        options.terminal.quit_fd = events.quit_fd
    control = Control(options, log)
    stats = ""
    with PidFile(options.pidfile):
        machine = _make(options, log, timeline, prepared)
        try:
            if incoming is None:
                machine.load()
            with _serial(options, machine) as serial:
                serial.attach(machine.bus, layout.COM1)
                machine.on_reset.append(serial.reset)
                machine.parts["serial0"] = serial
                if incoming is not None:
                    incoming.restore(machine, log)
                    incoming.close()
                    timeline.mark("restored")
                try:
                    control.listen(options, machine, serial)
                    with _Terminal(options, machine):
                        serial.start()
                        helpers = _contain(options, machine, log)
                        _start(machine, control, prepared, helpers)
                        starter.started()
                        _warn(options, machine, log)
                        events.wait(machine, log)
                        machine.stop()
                        serial.flush(_FLUSH_MS)
                finally:
                    # Whatever happened: no vCPU may reach a port that is gone.
                    machine.stop()
                    control.close()
                timeline.mark("first-run", machine.first_run_ns())
                timeline.mark("first-byte", serial.first_output_ns())
                stats = _stats(options, machine)
        finally:
            machine.close()
            # What the host is at work on still may not be closed under it.
            if not machine.is_kept:
                control.close_backends()
            events.close()
    log.show(stats, _SHOW_S)
    assert machine.end is not None
    log.info(f"ended: {machine.end.reason}")
    return machine.end.status


def _stats(options: Options, machine: Machine) -> str:
    """Return what `-stats` tells, "" where it is not asked for; the machine is not closed yet."""
    if not options.stats:
        return ""
    from .stats import table

    return table(machine)


def _arm(options: Options) -> None:
    """Have threads that are started from now on contained, if they are to be."""
    if options.sandbox == "off":
        return
    from ..vmm import sandbox

    sandbox.arm(options.sandbox)
    if options.sandbox_paths:
        from ..vmm import landlock
        from .reach import places

        landlock.arm(places(options))


def _contain(options: Options, machine: Machine, log: Log) -> Helpers | None:
    """Contain this one, and with it what the guest's are started by; return who helps those."""
    if options.sandbox == "off":
        return None
    from ..vmm import sandbox

    _warn(options, machine, log)
    return sandbox.enter(machine, is_monitored=bool(options.monitors))


def _start(
    machine: Machine, control: Control, prepared: Prepared | None, helpers: Helpers | None
) -> None:
    """Let the guest run, and only then see to what is not of it."""
    try:
        machine.start()
    finally:
        if helpers is not None:
            helpers.start()
    if prepared is not None:
        prepared.begun()
    control.start()
    if prepared is not None:
        prepared.close()


def _warn(options: Options, machine: Machine, log: Log) -> None:
    """Say what the guest will not find, where that takes a look at its kernel's build.

    To unpack that may take programs: in a sandbox it was begun before.
    """
    if machine.config.discovery == "cmdline" and not lib.pv_sandbox_is_entered():
        from . import kernel_needs

        kernel_needs.warn(options, log)


def _check_timeline(where: str) -> None:
    """Refuse a picture that cannot be written, before a guest has run for it."""
    folder = os.path.dirname(where) or "."
    is_other = os.path.exists(where) and not os.path.isfile(where)
    if not os.access(folder, os.W_OK) or is_other:
        raise ConfigError(f"-timeline={where}: cannot be written; name a file in a writable folder")


def _show(timeline: Timeline, where: str, log: Log) -> None:
    if not where:
        log.show(timeline.table(), _SHOW_S)
        return
    from .. import files

    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(files.open_regular(where, flags), "w", encoding="utf-8") as file:
            file.write(timeline.svg())
    except OSError as error:
        raise PyvirtError(f"-timeline={where}: {error.strerror}; free some room") from None


def _told(options: Options) -> str:
    """Return what is to be told instead of running a guest."""
    if options.help or options.print_config is None:
        from .options.help import usage

        return usage()
    from .options.config_print import show
    from .options.table import BY_NAME

    return show(options.given, BY_NAME, options.print_config)


def _log(options: Options, prepared: Prepared | None) -> Log:
    log = prepared.log if prepared is not None else Log()
    if options.log:
        log.open(options.log)
    if not options.daemonize:
        log.take_terminal()
    return log


def _incoming(options: Options, prepared: Prepared | None) -> Incoming:
    """Return what the guest goes on from, of which the options get the shape."""
    from .options import incoming

    if prepared is None or prepared.incoming is None:
        return incoming.open_snapshot(options)
    incoming.take_template(options, prepared.incoming)
    return prepared.incoming


def main(argv: list[str], prepared: Prepared | None = None) -> int:
    """Run `pyvirt run` with the words after it, or a fork; return the exit status."""
    timeline = Timeline(prepared.asked_ns if prepared is not None else 0)
    timeline.mark("imports")
    options = prepared.options(argv) if prepared is not None else parse(argv)
    if options.help or options.print_config is not None:
        sys.stdout.write(_told(options))
        return 0
    log = _log(options, prepared)
    if options.timeline:
        _check_timeline(options.timeline)
    incoming: Incoming | None = None
    is_fork = prepared is not None and prepared.incoming is not None
    if is_fork or options.incoming is not None:
        incoming = _incoming(options, prepared)
    elif options.root:
        options = _with_root(argv, options)
    elif not options.kernel:
        options = _with_default_guest(argv, options)
    reason = "" if is_fork else _use_lab(options)
    if reason:
        from . import run_in_lab

        if prepared is not None:
            prepared.close()

        return run_in_lab.run(options, config(options), reason)
    status = _run_here(options, log, timeline, incoming, prepared)
    if options.timeline is not None:
        _show(timeline, options.timeline, log)
    return status
