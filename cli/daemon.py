"""`-daemonize` and `-pidfile`."""

from __future__ import annotations

import os
import sys

from ..errors import ConfigError, PyvirtError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Starter:
    """The process in the foreground that waits for how a start goes; owns the pipe to it.

    A context manager: what ends the start is what that process ends with.
    """

    __slots__ = ("_leave", "_writer")

    def __init__(self, writer: int = -1, leave: Callable[[], None] | None = None) -> None:
        """-1: nobody waits there; `leave` is called when it has started."""
        self._writer = writer
        self._leave = leave

    def started(self) -> None:
        """Leave the terminal, and let it end with 0."""
        if self._leave is not None:
            _leave_streams()
            self._leave()
        if self._writer < 0:
            return
        _leave_streams()
        os.write(self._writer, b"\0")
        os.close(self._writer)
        self._writer = -1

    def __enter__(self) -> Starter:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        # It ends with this process, whose message is there by then.
        if self._writer >= 0 and isinstance(error, PyvirtError):
            os.write(self._writer, bytes([error.exit_status]))


# How a process that is nobody's job already leaves who has asked for it; its own, if it is one.
detach: Callable[[], None] | None = None


def _leave_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def daemonize() -> Starter:
    """Go on in a background process; return the one that was started.

    That one ends with 1 where this ends without a word to it. To be called while the process has
    one thread and no KVM descriptor: a VM belongs to the process that made it.
    """
    if detach is not None:
        return Starter(leave=detach)
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        status = os.read(reader, 1)
        # To the end of the pipe, which is that of the process.
        while os.read(reader, 1):
            pass
        os._exit(status[0] if status else 1)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(reader)
    return Starter(writer)


class PidFile:
    """A file with this process's id, locked while it lives and removed at the end.

    The lock decides whether somebody has it, not the number, which may be another process's by
    now. A context manager.
    """

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        """Name the file; "" for none. Nothing is written before the context is entered."""
        self._path = path
        self._fd = -1

    def __enter__(self) -> None:
        """Write it; ConfigError when somebody has it or it cannot be written."""
        if not self._path:
            return
        from .. import files

        try:
            fd = files.open_locked(self._path, 0o666)
            if fd is None:
                raise ConfigError(
                    f"-pidfile {self._path}: another process has it locked; name another file"
                )
            self._fd = fd
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise ConfigError(
                f"-pidfile {self._path}: {error.strerror}; name a file in a writable folder"
            ) from None

    def __exit__(self, *_: object) -> None:
        if self._fd < 0:
            return
        from .. import files

        try:
            found = files.remove_locked(self._fd, self._path)
            problem = "" if found else "somebody has removed it"
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            sys.stderr.write(f"pyvirt: -pidfile {self._path}: {problem}\n")
