"""Who runs: each `pyvirt run` has a file in a folder of its user's, locked while it lives.

The folder is $XDG_RUNTIME_DIR/pyvirt, else /tmp/pyvirt-UID, and nobody else's. A file that nobody
holds a lock on was left behind, and is removed by who finds it: no process id can mislead, not
even that of another container.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from ..errors import PyvirtError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..vmm.log import Log

_UNFINISHED = "."  # how the name of a file begins that is not locked yet


class Entry:
    """A machine that runs: `started` in seconds since 1970, `sockets` where its monitors are."""

    __slots__ = ("name", "pid", "sockets", "started")

    def __init__(self, pid: int, started: int, name: str, sockets: list[str]) -> None:
        self.pid = pid
        self.started = started
        self.name = name
        self.sockets = sockets


def folder() -> str:
    """Return the folder, absolute; it may not exist yet."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base.startswith("/") and os.path.isdir(base):
        return os.path.join(base, "pyvirt")
    return f"/tmp/pyvirt-{os.getuid()}"  # noqa: S108  (checked to be ours)


def _is_ours(path: str) -> bool:
    status = os.lstat(path)
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    )


def _line(text: str) -> str:
    return text.encode("unicode_escape").decode() + "\n"


class Registration:
    """This process's entry; owns the file until `close`."""

    __slots__ = ("_fd", "_path")

    def __init__(self, name: str, sockets: list[str]) -> None:
        """Make it; PyvirtError says why it cannot be, which harms nothing but `pyvirt ps`."""
        where = folder()
        pid = os.getpid()
        # Another container with the same /tmp may have the same process ids.
        file = f"{pid}-{time.time_ns():x}"
        unfinished = os.path.join(where, _UNFINISHED + file)
        self._path = os.path.join(where, file)
        try:
            os.makedirs(where, 0o700, exist_ok=True)
            if not _is_ours(where):
                raise PyvirtError(f"{where}: not this user's alone; remove it")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(unfinished, flags, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                text = _line(str(int(time.time()))) + "".join(map(_line, (name, *sockets)))
                os.write(self._fd, text.encode())
                os.rename(unfinished, self._path)
            except BaseException:
                os.close(self._fd)
                os.unlink(unfinished)
                raise
        except OSError as error:
            raise PyvirtError(f"{where}: {error.strerror}") from None

    def __enter__(self) -> None:
        """Enter; the entry is there since it was made."""

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the entry."""
        try:  # noqa: SIM105  (contextlib costs the start-up path 2 ms)
            os.unlink(self._path)
        except OSError:
            pass  # somebody has tidied up
        os.close(self._fd)


def register(name: str, sockets: list[str], log: Log) -> Registration | None:
    """Enter this process; None in the lab, whose outside is entered, and where it cannot be."""
    if os.environ.get("PYVIRT_LAB"):
        return None
    try:
        return Registration(name, sockets)
    except PyvirtError as error:
        log.info(f"pyvirt ps will not list this machine: {error}")
        return None


def running() -> Iterator[Entry]:
    """Yield the machines that run, by process id; entries left behind are removed.

    None in the lab, which sees the host's entries but not that they are locked.
    """
    if os.environ.get("PYVIRT_LAB"):
        return
    where = folder()
    try:
        names = os.listdir(where) if _is_ours(where) else []
    except OSError:
        return
    found = [entry for name in names if (entry := _look(where, name)) is not None]
    yield from sorted(found, key=lambda entry: (entry.pid, entry.started))


def _look(where: str, name: str) -> Entry | None:
    path = os.path.join(where, name)
    pid, dash, _ = name.partition("-")
    if not (dash and pid.isdecimal()):
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None  # it has just ended
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        data = os.read(fd, 1 << 16).decode(errors="replace")
        try:
            started, name, *places = [
                line.encode().decode("unicode_escape") for line in data.splitlines()
            ]
            return Entry(int(pid), int(started), name, places)
        except ValueError:
            return None  # it is not finished, or not ours
    else:
        # Only the very file that was looked at: a new machine may have taken its place.
        try:
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                os.unlink(path)
        except OSError:
            pass  # somebody else has removed it
        return None
    finally:
        os.close(fd)
