"""A guest in this process that carries out what a test tells it on its console, line by line."""

from __future__ import annotations

import functools
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.serial import Serial
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.vmm import layout
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.log import Log
from pyvirt.vmm.machine import Machine
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.restore import open_folder
from pyvirt.vmm.snapshot.save import Saver

SECONDS = 20.0
BOOT_SECONDS = 100.0  # of a stock kernel, in a lab that is busy
# No command is to be mistaken for its output, and no message of the kernel either.
SCRIPT = """
stty -echo
dmesg -n 1
echo live-guest-ready
while read -r line; do
    eval "$line"
    echo "live-guest-status $?"
done
"""


class Live:
    """A running machine, its console, its log and the events that it told of."""

    def __init__(self, machine: Machine, console: socket.socket, log: Path) -> None:
        self.machine = machine
        self.log = log
        self.events: list[tuple[str, dict[str, Any]]] = []
        machine.listeners.append(lambda name, data: self.events.append((name, data)))
        self._console = console
        self._text = ""

    def expect(self, text: str, seconds: float = SECONDS) -> str:
        """Wait until the console shows `text`; return what came before it since the last call."""
        until = time.monotonic() + seconds
        while text not in self._text:
            left = until - time.monotonic()
            assert left > 0, f"no {text!r} within {seconds:.0f} s, but: {self._text[-2000:]}"
            if select.select([self._console], [], [], left)[0]:
                data = self._console.recv(65536)
                assert data, f"the console ended: {self._text[-2000:]}"
                self._text = (self._text + data.decode(errors="replace")).replace("\r\n", "\n")
        before, _, self._text = self._text.partition(text)
        return before

    def begin(self, command: str) -> None:
        """Let the guest run a line of shell."""
        self._console.sendall(command.encode() + b"\n")

    def finish(self, seconds: float = SECONDS) -> tuple[str, int]:
        """Wait for the end of the line; return its output and status."""
        output = self.expect("live-guest-status ", seconds)
        return output, int(self.expect("\n", seconds))

    def run(self, command: str, seconds: float = SECONDS) -> str:
        """Let the guest run a line of shell that ends with 0; return its output."""
        self.begin(command)
        output, status = self.finish(seconds)
        assert status == 0, f"{command}: status {status}: {output}"
        return output.strip()

    def ready(self) -> None:
        """Wait until the guest takes commands."""
        self.expect("live-guest-ready\n", BOOT_SECONDS)


@contextmanager
def reporting(machine: Machine) -> Iterator[None]:
    """Do what the main thread of `pyvirt run` does: have devices say what they have to say."""
    over, notices = threading.Event(), machine.notices_fd

    def serve() -> None:
        while not over.is_set() and machine.end is None:
            if select.select([notices], [], [], 0.1)[0]:
                machine.report()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def save(machine: Machine, folder: Path) -> None:
    """Save a machine, which stands then, into a new folder."""
    saver = Saver(machine, Log())
    saver.start(Folder(str(folder)))
    saver.wait()
    assert (saver.status, saver.error) == ("completed", "")


@functools.cache
def _initramfs(
    image: kernel.Kernel, modules: tuple[str, ...], files: tuple[tuple[str, Path | bytes], ...]
) -> Path:
    """Return that of a guest; in a lab it takes a second to find that there is one."""
    return initramfs.build(image, script=SCRIPT, modules=modules, files=dict(files))


@contextmanager
def live(
    image: kernel.Kernel,
    folder: Path,
    *,
    modules: Sequence[str] = (),
    files: Mapping[str, Path | bytes] = MappingProxyType({}),
    saved: Path | None = None,
    at_start: Callable[[Machine], None] = lambda _: None,
    **config: Any,
) -> Iterator[Live]:
    """Run a guest of `image` with `modules` loaded and `files`; its log is in `folder`.

    `at_start` is called when it has started, long before it takes commands.

    It goes on from the folder `saved`, if that is given, in place of its boot: where a guest of the
    same configuration was saved when it took commands, which is done when there is no such folder.
    """
    words = {"cmdline": "console=ttyS0 quiet panic=-1", **config}
    if saved is not None and not saved.exists():
        with live(image, folder, modules=modules, files=files, **config) as first:
            save(first.machine, saved)
    initrd = _initramfs(image, tuple(modules), tuple(files.items()))
    incoming = None if saved is None else open_folder(str(saved))
    log, path = Log(), folder / "log"
    log.open(str(path))
    machine = Machine(
        MachineConfig(str(image.image), initrd=str(initrd), content=incoming, **words),
        log,
        lambda _: None,
    )
    try:
        if incoming is None:
            machine.load()
        irq_fd = machine.interrupt_line(layout.COM1_IRQ).fd
        with (
            # Not every file system of the lab takes sockets.
            tempfile.TemporaryDirectory(dir="/dev/shm") as sockets,
            Serial(
                ChardevConfig("serial0", path=(where := f"{sockets}/console")), irq_fd=irq_fd
            ) as serial,
            socket.socket(socket.AF_UNIX) as console,
        ):
            machine.on_reset.append(serial.reset)
            machine.parts["serial0"] = serial
            serial.attach(machine.bus, layout.COM1)
            if incoming is not None:
                # It may say that a test has made an image anew, which the guest has yet to read.
                incoming.restore(machine, Log())
            console.connect(where)
            serial.start()
            guest = Live(machine, console, path)
            machine.start()
            at_start(machine)
            if incoming is None:
                guest.ready()
            yield guest
            machine.close()
    finally:
        machine.close()
        if incoming is not None:
            incoming.close()
        os.close(log.fd)
