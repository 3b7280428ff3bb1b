"""`-daemonize` and `-pidfile`."""

from __future__ import annotations

import os
import sys

from ..errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_READY = b"\0"


def daemonize() -> Callable[[], None]:
    """Go on in a background process; return what to call when the guest has started.

    The process that was started waits for that call and ends with 0; when the background
    process ends before it, with 1 (its message is on stderr by then). To be called while the
    process has one thread and no KVM descriptor: a VM belongs to the process that made it.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        ready = os.read(reader, 1)
        os._exit(0 if ready == _READY else 1)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(reader)

    def started() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        os.write(writer, _READY)
        os.close(writer)

    return started


def _is_alive(pid: str) -> bool:
    # Our own id is that of one before us: in a container every run may get the same.
    return pid.isdigit() and pid != str(os.getpid()) and os.path.exists(f"/proc/{pid}")


class PidFile:
    """A file with this process's id, removed at the end; a context manager."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        """Name the file; "" for none. Nothing is written before the context is entered."""
        self._path = path

    def __enter__(self) -> None:
        """Write it; ConfigError when it names a living process or cannot be written."""
        if not self._path:
            return
        try:
            with open(self._path, encoding="ascii", errors="replace") as file:
                pid = file.read(32).strip()
        except FileNotFoundError:
            pid = ""
        except OSError as error:
            raise self._error(error) from None
        if _is_alive(pid):
            raise ConfigError(f"-pidfile {self._path}: process {pid} lives; name another file")
        try:
            with open(self._path, "w", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> ConfigError:
        text = f"-pidfile {self._path}: {error.strerror}; name a file in a writable folder"
        self._path = ""
        return ConfigError(text)

    def __exit__(self, *_: object) -> None:
        if self._path:
            try:
                os.unlink(self._path)
            except OSError as error:
                sys.stderr.write(f"pyvirt: -pidfile {self._path}: {error.strerror}\n")
