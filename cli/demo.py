"""`pyvirt demo`: Debian's own kernel, unmodified, and a disk that comes and goes while it runs.

The guest is `pyvirt run` as any user starts it, in a process of its own; the demo reads its
console and talks to its monitor, and shows both.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GuestError, PyvirtError
from ..harness.guest import default, initramfs, kernel
from ..qmp.client import Client
from . import usage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

USAGE = """\
usage: pyvirt demo

Boots Debian's cloud kernel, plugs a disk into it while it runs, lets it write and read there,
unplugs the disk, and shows where the time went. The guest's console is on stdout; requests to
its monitor (->) and what comes back (<-) are on stderr.
"""
_DISK_BYTES = 64 << 20
_BOOT_S = 180.0
_STEP_S = 60.0
_END_S = 15.0  # what the nested lab may take after SIGTERM, and a little more
_READ_BYTES = 1 << 16
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class _Guest:
    """`pyvirt run` as a process; what its console says goes on to stdout."""

    def __init__(self, words: list[str]) -> None:
        command = [os.path.abspath(sys.argv[0]), "run", *words]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
        )
        self._unread = b""

    def expect(self, line: str, seconds: float, failure: str) -> None:
        """Wait for a whole line of the guest's script; GuestError, that begins with `failure`."""
        wanted = line.encode()
        with _within(seconds, failure):
            while b"\n" not in self._unread.partition(wanted)[2]:
                if not self._read():
                    raise self._early_end(failure)
        self._unread = self._unread.partition(wanted)[2]

    def power_off(self) -> None:
        """Wait for the end of guest and monitor; GuestError."""
        failure = "the guest did not power off"
        with _within(_STEP_S, failure):
            while self._read():
                pass
            if self._process.wait():
                raise self._early_end(failure)

    def _read(self) -> bool:
        assert self._process.stdout is not None
        data = os.read(self._process.stdout.fileno(), _READ_BYTES)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        self._unread += data
        return data != b""

    def _early_end(self, failure: str) -> BaseException:
        status = self._process.wait()
        # A monitor that fails has said so in a line of its own.
        return SystemExit(1) if status > 0 else GuestError(f"demo: {failure}, but ended")

    def close(self) -> None:
        """End it if it still runs."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def _within(seconds: float, failure: str) -> Iterator[None]:
    """Raise GuestError when the body has not ended in time, whatever it waits for."""

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise GuestError(f"demo: {failure} within {seconds:.0f} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _leave(number: int, _frame: FrameType | None) -> None:
    """End as the signal asks, but not without what `finally` and `with` clear up."""
    raise SystemExit(128 + number)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class _Monitor:
    """The guest's monitor; every message of either direction is shown."""

    def __init__(self, path: str) -> None:
        self._client = Client(path, self._show)

    def _show(self, message: dict[str, Any]) -> None:
        _say(f"<- {json.dumps(message)}")

    def ask(self, command: str, arguments: dict[str, Any]) -> None:
        """Send a command and take its answer; PyvirtError when it is refused or none comes."""
        request = json.dumps({"execute": command, "arguments": arguments})
        _say(f"-> {request}")
        with _within(_STEP_S, f"no answer to {command}"):
            answer = self._client.ask(request)
        self._show(answer)
        if "error" in answer:
            raise PyvirtError(f"demo: {command} was refused")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _show_disk(guest: _Guest, socket: str, image: Path) -> None:
    """Plug the disk into the running guest, let it be used, and unplug it."""
    guest.expect(default.DEMO_READY, _BOOT_S, "the guest did not boot")
    with contextlib.closing(_Monitor(socket)) as monitor:
        monitor.ask(
            "blockdev-add",
            {
                "node-name": "drive-0",
                "file": {"driver": "file", "filename": str(image)},
                "read-only": False,
            },
        )
        plug = {"id": "drive-0", "driver": "virtio-blk-mmio", "addr": "0x1"}
        monitor.ask("device_add", plug)
        guest.expect(default.DEMO_SEEN, _STEP_S, "the guest did not see the disk")
        guest.expect(default.DEMO_USED, _STEP_S, "the guest did not write and read the disk")
        monitor.ask("device_del", {"id": "drive-0"})
        guest.expect(default.DEMO_GONE, _STEP_S, "the guest did not see the disk go")
    guest.power_off()


def _check_image(image: Path) -> None:
    """Look for the guest's file in the image; PyvirtError when it is not there."""
    with image.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(default.DEMO_TEXT.encode())
    if place < 0:
        raise PyvirtError("demo: what the guest wrote is not in the image")
    _say(f"pyvirt: byte {place} of the image begins what the guest wrote: {default.DEMO_TEXT}")


def main(argv: list[str]) -> int:
    """Run the demo; return 0, or raise what went wrong."""
    if usage.shown(USAGE, argv):
        return 0
    usage.no_arguments("demo", argv)
    guest_kernel = kernel.find(default.KERNEL)
    archive = initramfs.build(
        guest_kernel, modules=default.DEMO_MODULES, script=default.demo_script
    )
    for number in _ENDING:
        signal.signal(number, _leave)
    _say(f"pyvirt: booting Debian's kernel {guest_kernel.release}")
    with tempfile.TemporaryDirectory(prefix="pyvirt-demo-") as folder:
        image, socket = Path(folder, "disk.img"), f"{folder}/qmp.sock"
        image.touch()
        os.truncate(image, _DISK_BYTES)
        words = ["-kernel", str(guest_kernel.image), "-initrd", str(archive), "-smp", "2"]
        words += ["-append", default.CMDLINE, "-qmp", f"unix:{socket},server,nowait", "-timeline"]
        with contextlib.closing(_Guest(words)) as guest:
            _show_disk(guest, socket, image)
        _check_image(image)
    return 0
