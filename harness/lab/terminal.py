"""The host's terminal and output descriptors, as the lab's client uses them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
import tty
from collections.abc import Iterator


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Put the terminal into raw mode; put it back as it was, whatever happens."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal itself may have gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def size(fd: int) -> tuple[int, int]:
    """Return the terminal's rows and columns; 0, 0 when it does not know."""
    try:
        rows, columns = struct.unpack_from("<2H", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return 0, 0
    return rows, columns


def writer(fd: int) -> int:
    """Return a descriptor, the caller's, that writes where `fd` does.

    A write of at most PIPE_BUF bytes that poll() allows never blocks on a pipe, a socket or
    a file. A terminal may still block, and O_NONBLOCK on `fd` would change it for every
    process that shares it; so a terminal is opened anew, where that is permitted.
    """
    if os.isatty(fd):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    return os.dup(fd)
