"""What controls a machine that `pyvirt run` runs: its monitors, and its line in `pyvirt ps`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..devices.serial import Serial
    from ..qmp.machine import DeviceMaker, MachineHost
    from ..qmp.server import Server
    from ..vmm.log import Log
    from ..vmm.machine import Machine
    from .options.parsed import Options
    from .registry import Registration


class Control:
    """One machine's; owns sockets, thread and entry until `close`."""

    __slots__ = ("_host", "_log", "_name", "_registration", "_server")

    def __init__(self, options: Options, log: Log) -> None:
        self._log = log
        self._name = options.name
        self._host: MachineHost | None = None
        self._server: Server | None = None
        self._registration: Registration | None = None

    def listen(self, options: Options, machine: Machine, serial: Serial) -> None:
        """Open the monitors' sockets; ConfigError. No thread yet."""
        self._tell_of_terminals(machine, serial)
        if not options.monitors:
            return
        from ..qmp.machine import MachineHost
        from ..qmp.server import Server

        self._host = MachineHost(
            machine,
            serial,
            options.monitors,
            options.iothreads,
            log=self._log,
            restored=options.incoming is not None,
            maker=self._maker(options, machine),
        )
        self._server = Server(self._host, options.monitors, self._log)
        self._host.tell(self._server.emit, self._server.go_on)

    @staticmethod
    def _maker(options: Options, machine: Machine) -> DeviceMaker | None:
        if machine.demand is None:
            return None
        from .options.plugged import maker

        return maker(options.given)

    def _tell_of_terminals(self, machine: Machine, serial: Serial) -> None:
        for chardev in (serial.chardev, *(found[0] for found in machine.chardevs())):
            if chardev.pty_path:
                self._log.notice(f"{chardev.config.option}: its terminal is {chardev.pty_path}")

    def start(self) -> None:
        """Serve the monitors, and be seen by `pyvirt ps`; PyvirtError."""
        places: list[str] = []
        if self._server is not None:
            self._server.start()
            places = self._server.addresses()
        from .registry import register

        self._registration = register(self._name, places, self._log)

    def close(self) -> None:
        """Tell the clients of the machine's end and let them go; the machine is stopped."""
        if self._registration is not None:
            self._registration.close()
            self._registration = None
        if self._server is not None:
            self._server.close()
            self._server = None

    def close_backends(self) -> None:
        """Close what clients have left registered; the machine is closed."""
        if self._host is not None:
            self._host.close()
            self._host = None
