"""The cache folder: files and trees that are made once, published whole, found by content.

An entry is named for what it was made from (a digest, or a package and its version) and
never changes. It is built under a hidden name beside its place and renamed into it, so that
whoever sees the entry sees all of it; one process builds at a time, the others wait for it.
What a killed builder left under the hidden name is removed by the next builder.

    ENTRY               published entries, files or directories
    .ENTRY.part         an entry being built
    locks/ENTRY         the lock of its builder
    names/NAME          a link to the entry that NAME stands for at present
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BackendError, ConfigError
from ..vmm.paths import cache_folder
from .progress import Progress

# The longest build (a kernel, on one slow core) has ended well before a waiter gives up.
WAIT_S = 3600.0
POLL_S = 0.1


def root() -> Path:
    """Return the cache folder (vmm/paths.py says which), which is made if need be."""
    folder = Path(cache_folder())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def digest(*parts: str | bytes) -> str:
    """Return 16 hexadecimal digits of SHA-256 over `parts`, each set off by its length."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()[:16]


def entry(name: str, build: Callable[[Path], None]) -> Path:
    """Return the path of entry `name`, calling `build` to make it if it is not there.

    `build` is given a path in the cache folder at which nothing is; it makes a file or a
    directory of it, or raises, in which case nothing stays. Raises BackendError when another
    process holds the entry's lock for WAIT_S seconds.
    """
    folder = root()
    place = folder / name
    if place.exists():
        return place
    with _locked(folder, name):
        if place.exists():
            return place
        part = folder / f".{name}.part"
        remove(part)
        try:
            build(part)
            _flush(part)
            part.rename(place)
        finally:
            remove(part)
    return place


def named(name: str, make: Callable[[], Path], *, renew: bool = False) -> Path:
    """Return the entry that `name` stands for; `make` finds it if none does, or to `renew`."""
    folder = root()
    link = folder / "names" / name
    if not renew and link.exists():
        return link.resolve()
    target = make()
    with _locked(folder, name):
        link.parent.mkdir(exist_ok=True)
        part = link.with_name(f".{name}.part")
        remove(part)
        part.symlink_to(os.path.relpath(target, link.parent))
        part.rename(link)
    return target


def _flush(path: Path) -> None:
    """Put an entry on stable storage: its name is never to outlive a crash without its bytes."""
    if path.is_dir():
        os.sync()
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove a file, link or tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of entry `name`; it falls with the process, however that ends."""
    lock = folder / "locks" / name
    try:
        lock.parent.mkdir(exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        if not _try_lock(fd):
            with Progress(f"waiting for another pyvirt that makes {name}"):
                _wait_lock(fd, lock)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_lock(fd: int, lock: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not _try_lock(fd):
        if time.monotonic() > deadline:
            raise BackendError(
                f"{lock}: another process held this lock for {WAIT_S:.0f} s; end it and try again"
            )
        time.sleep(POLL_S)


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the cache folder {folder} cannot be written ({error.strerror}); "
        "set PYVIRT_CACHE to a folder that can"
    )
