"""Guests that talk, run side by side in a network namespace that the test makes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import NamedTuple

from pyvirt.cli import main
from pyvirt.harness.guest import initramfs, kernel

from . import root
from .conftest import PYVIRT

CMDLINE = "console=ttyS0 quiet panic=-1"
PATIENCE = 150.0
_POLL_S = 0.1
# At the speed of an emulated machine TCP would cut its segments to two frames, and stay there.
LARGE_SEGMENTS = ("/proc/sys/net/ipv4/tcp_min_tso_segs", "44\n")
# What a script needs of a disk with tools that busybox lacks; `tool NAME ...` runs one. Busybox
# takes a NAME that is its own for its own: such a tool goes by its path.
TOOLS = """
mkdir -p /m && mount -t ext4 -o ro /dev/vda /m && mount -t tmpfs tmpfs /m/tmp
for name in proc sys dev; do mount -o bind /$name /m/$name; done
tool() { chroot /m "$@"; }
"""


class Ended(NamedTuple):
    """How a guest ended: exit status of pyvirt, the guest's console, pyvirt's messages."""

    status: int
    console: str
    messages: str


class Guest:
    """A guest that runs; its console is a file, its input a pipe."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._console, self._messages = folder / "console", folder / "messages"
        with self._console.open("wb") as console, self._messages.open("wb") as messages:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=console, stderr=messages
            )

    def console(self) -> str:
        return self._console.read_text(errors="replace").replace("\r\n", "\n")

    def messages(self) -> str:
        return self._messages.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first match of `pattern` among the lines of the console."""
        deadline = time.monotonic() + PATIENCE
        while True:
            is_over = self.process.poll() is not None
            found = re.search(pattern, self.console(), re.MULTILINE)
            if found:
                return found
            assert not is_over, f"ended without {pattern!r}: {self.console()}{self.messages()}"
            assert time.monotonic() < deadline, f"no {pattern!r}: {self.console()}"
            time.sleep(_POLL_S)

    def say(self, line: str) -> None:
        """Type a line."""
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> Ended:
        """Wait for the guest's own end."""
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end: {self.console()}{self.messages()}") from None
        return Ended(self.process.returncode, self.console(), self.messages())


@contextmanager
def running(
    script: str,
    *options: str,
    image: kernel.Kernel | None = None,
    modules: tuple[str, ...] = (),
    files: Mapping[str, Path | bytes] = MappingProxyType({}),
    prefix: tuple[str, ...] = (),
) -> Iterator[Guest]:
    """Run the micro kernel (or `image`) with `script`; killed when left before its end."""
    image = image or kernel.find("micro")
    initrd = initramfs.build(image, script=script, modules=modules, files=files)
    with TemporaryDirectory(prefix="pyvirt-net-", dir="/dev/shm") as folder:
        # Where any user can read them.
        os.chmod(folder, 0o755)
        copies = [shutil.copy(file, folder) for file in (image.image, initrd)]
        command = [*prefix, str(PYVIRT), "run", "-accel", "kvm", "-kernel", copies[0]]
        command += ["-initrd", copies[1], *options, "-append", CMDLINE]
        guest = Guest(command, Path(folder))
        try:
            yield guest
        finally:
            guest.process.kill()
            guest.process.wait()
            assert guest.process.stdin
            guest.process.stdin.close()


def net_up(*words: str) -> None:
    """Make a tap as `pyvirt net up` does."""
    assert main.dispatch(["net", "up", *words]) == 0


def tools_disk() -> str:
    """Return the option for the disk of TOOLS."""
    return f"-disk={root.image()},readonly=on"


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(_POLL_S)


@contextmanager
def serving(data: bytes, address: str = "10.0.0.1", family: int = socket.AF_INET) -> Iterator[None]:
    """Send `data` to the first who connects to port 5000; it must be all gone in the end."""
    server = socket.create_server((address, 5000), family=family)
    done = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            peer, _ = server.accept()
            with peer:
                peer.sendall(data)
                done.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
        assert done.wait(PATIENCE)
    finally:
        # Wakes the thread if it is waiting still.
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
        server.close()


def interface(name: str, address: str) -> str:
    """Return the lines of a script that set an interface up."""
    return f"ip addr add {address} dev {name}; ip link set {name} up\n"
