"""Who runs: each `pyvirt run` has a file in a folder of its user's, locked while it lives.

The folder is $XDG_RUNTIME_DIR/pyvirt, else /tmp/pyvirt-UID, and nobody else's. In the nested lab
it is on the lab's own /dev/shm: over the host's file system no lock of the host's can be seen. A
file that nobody holds a lock on was left behind, and is removed by who finds it: no process id can
mislead, not even that of another container.

A lab that runs a command has a folder among the entries, held the same way. In it each machine of
that lab has an entry, too: a symbolic link whose target is the text, since what the lab writes into
a file may come here late. FILE.0 and on are sockets to the monitors of the entry FILE, made by
harness/lab/machines.py. $PYVIRT_LAB_MACHINES names the folder in the lab.
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

_LAB = "lab-"  # how the name of a lab's folder begins
_ENTRY_MAX = 1 << 16  # bytes
_UNFINISHED = "."  # how the name of a file begins that is not locked yet
_UNFINISHED_S = 10  # after which it is nobody's: it is locked within a millisecond, or never


class Entry:
    """A machine that runs: `started` in seconds since 1970, `sockets` where its monitors are.

    One that is `in_lab` has its process id there, and its sockets here.
    """

    __slots__ = ("in_lab", "name", "pid", "sockets", "started")

    def __init__(self, pid: int, started: int, name: str, sockets: list[str]) -> None:
        self.pid = pid
        self.started = started
        self.name = name
        self.sockets = sockets
        self.in_lab = False


def folder() -> str:
    """Return the folder, absolute; it may not exist yet."""
    if os.environ.get("PYVIRT_LAB"):
        return f"/dev/shm/pyvirt-{os.getuid()}"  # noqa: S108  (checked to be ours)
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
                _tell_host(file, text)
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
        _unlink(self._path)
        os.close(self._fd)


def _unlink(path: str) -> None:
    """Remove an entry, and in the lab what the host sees of it."""
    outside = os.environ.get("PYVIRT_LAB_MACHINES")
    for each in (path, os.path.join(outside, os.path.basename(path))) if outside else (path,):
        try:  # noqa: SIM105  (contextlib costs the start-up path 2 ms)
            os.unlink(each)
        except OSError:
            pass  # somebody has tidied up


def _tell_host(file: str, text: str) -> None:
    """In the lab, enter a machine on the host as well; what fails there harms nothing else."""
    outside = os.environ.get("PYVIRT_LAB_MACHINES")
    if not outside:
        return
    try:  # noqa: SIM105  (contextlib costs the start-up path 2 ms)
        os.symlink(text, os.path.join(outside, file))
    except OSError:
        pass


class LabFolder:
    """A folder for the machines of a lab that this process is about to run."""

    def __init__(self) -> None:
        """Make nothing yet."""
        self._path = ""
        self._fd = -1

    def __enter__(self) -> str | None:
        """Make it and return its path; None where it cannot be, which only `pyvirt ps` misses."""
        where = folder()
        path = os.path.join(where, f"{_LAB}{os.getpid()}-{time.time_ns():x}")
        try:
            os.makedirs(where, 0o700, exist_ok=True)
            if not _is_ours(where):
                return None
            os.mkdir(path, 0o700)
            self._path = path
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
        return path

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        if self._path:
            _remove_folder(self._path)
        if self._fd >= 0:
            os.close(self._fd)


def _remove_folder(path: str) -> None:
    try:
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)
    except OSError:
        pass  # somebody else is at it


def register(name: str, sockets: list[str], log: Log) -> Registration | None:
    """Enter this process; None where it cannot be."""
    try:
        return Registration(name, sockets)
    except PyvirtError as error:
        log.info(f"pyvirt ps will not list this machine: {error}")
        return None


def running() -> Iterator[Entry]:
    """Yield the machines that run, by process id; entries left behind are removed."""
    where = folder()
    try:
        names = os.listdir(where) if _is_ours(where) else []
    except OSError:
        return
    found = [entry for name in names if (entry := _look(where, name)) is not None]
    for name in names:
        if name.startswith(_LAB):
            found += _in_lab(os.path.join(where, name))
    yield from sorted(found, key=lambda entry: (entry.in_lab, entry.pid, entry.started))


def _in_lab(path: str) -> Iterator[Entry]:
    """Yield the machines of a lab that runs; the folder of one that has ended is removed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _remove_folder(path)
        return
    except BlockingIOError:
        names = os.listdir(path)
    finally:
        os.close(fd)
    for name in names:
        try:
            entry = _parse(name, os.fsencode(os.readlink(os.path.join(path, name))))
        except OSError:
            continue  # it has just ended, or is a socket
        if entry is not None:
            twins = sorted(one for one in names if one.startswith(f"{name}."))
            entry.sockets = [os.path.join(path, twin) for twin in twins]
            entry.in_lab = True
            yield entry


def _parse(name: str, data: bytes) -> Entry | None:
    """Return what the entry `name` says; None for a file that is none."""
    pid, dash, _ = name.partition("-")
    if not (dash and pid.isdecimal()):
        return None
    lines = data.decode(errors="replace").splitlines()
    try:
        started, title, *places = [line.encode().decode("unicode_escape") for line in lines]
        return Entry(int(pid), int(started), title, places)
    except ValueError:
        return None  # it is not finished, or not ours


def _look(where: str, name: str) -> Entry | None:
    path = os.path.join(where, name)
    pid, dash, _ = name.removeprefix(_UNFINISHED).partition("-")
    if not (dash and pid.isdecimal()):
        return None
    try:
        # To try the lock of one that is about to be locked would keep its machine from it.
        if name.startswith(_UNFINISHED) and time.time() - os.lstat(path).st_mtime < _UNFINISHED_S:
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None  # it has just ended
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(name, os.read(fd, _ENTRY_MAX))
    else:
        # Only the very file that was looked at: a new machine may have taken its place.
        try:
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                _unlink(path)
        except OSError:
            pass  # somebody else has removed it
        return None
    finally:
        os.close(fd)
