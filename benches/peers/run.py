"""Runs a guest under a monitor, and hands over its console."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from .peer import Guest, Launch, Peer

Process = subprocess.Popen[bytes]


@contextmanager
def running(launch: Launch, stdin: int = subprocess.DEVNULL) -> Iterator[tuple[Process, BinaryIO]]:
    """Run a guest; yield its process and its console with what else it says. Killed in the end."""
    for path, text in launch.files.items():
        Path(path).write_text(text, encoding="utf-8")
    ours, theirs = pty.openpty() if launch.terminal else os.pipe()
    with open(ours, "rb", buffering=0) as console:
        try:
            process = subprocess.Popen(
                launch.argv,
                stdin=theirs if launch.terminal else stdin,
                stdout=theirs,
                stderr=subprocess.STDOUT,
            )
        finally:
            os.close(theirs)
        with process:
            try:
                yield process, console
            finally:
                process.kill()


def lines(
    launch: Launch, seconds: float, begun: Callable[[int], None] = lambda _pid: None
) -> Iterator[str]:
    """Run a guest, yield the lines of its console, and end it after `seconds`.

    `begun` is told its process.
    """
    with running(launch) as (process, console):
        begun(process.pid)
        stop = threading.Timer(seconds, process.kill)
        stop.start()
        try:
            rest = b""
            while data := _read(console):
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace").strip()
            if rest:
                yield rest.decode(errors="replace").strip()
            process.wait()
        finally:
            stop.cancel()


def _read(console: BinaryIO) -> bytes:
    try:
        return console.read(65536)
    except OSError:
        return b""  # a terminal whose other end is gone


def guest_lines(peer: Peer, guest: Guest, seconds: float, kind: str = "") -> Iterator[str]:
    """Run a guest under a peer, with a kernel of that format or the peer's usual one."""
    with TemporaryDirectory(prefix="pyvirt-bench-", dir="/dev/shm") as folder:
        kernel = guest.image[kind or peer.formats[0]]
        yield from lines(peer.launch(guest, kernel, Path(folder)), seconds)
