"""The folder of a snapshot: made whole or not at all.

Both files are written under other names, brought to the disk, and then get their own: `memory`
first, so that a folder with a `state` is complete.
"""

from __future__ import annotations

import os

from ...errors import BackendError
from ...files import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STATE, MEMORY, PARENT = "state", "memory", "parent"
_MODE, _FOLDER_MODE = 0o600, 0o700  # a guest's secrets are its own
_PART = ".part"


class Folder:
    """A snapshot's folder that is to be written."""

    KEEPS_OVERLAYS = False
    __slots__ = ("_parent", "_path")

    def __init__(self, path: str, parent: str = "") -> None:
        """`parent` is the folder of the one that it goes on from, absolute; "": none."""
        self._path = path
        self._parent = parent

    def check(self) -> None:
        """Refuse a folder that cannot be made, or has something in it; BackendError."""
        try:
            _check(self._path)
        except OSError as error:
            raise _failure(self._path, error) from None

    def write(
        self,
        memory: Callable[[int], None],
        state: Callable[[], bytes],
        _layers: Sequence[int] = (),
    ) -> None:
        """Write a snapshot: `memory` is given a descriptor to fill, then `state` returns that file.

        BackendError, or what one of them raises; the folder is as it was before then.
        """
        path = self._path
        try:
            _check(path)
            is_new = _make(path)
            try:
                if self._parent:
                    os.symlink(_way(path, self._parent), os.path.join(path, PARENT))
                _fill(path, memory, state)
            except BaseException:
                _remove(path, is_new=is_new)
                raise
        except OSError as error:
            raise _failure(path, error) from None

    def close(self) -> None:
        """Do nothing: nothing is open."""


def _check(path: str) -> None:
    parent = os.path.dirname(os.path.abspath(path))
    try:
        entries = os.listdir(path)
    except FileNotFoundError:
        os.stat(parent)
        return
    if entries:
        raise BackendError(f"{path}: is not empty; name a new folder, or empty this one")


def _failure(path: str, error: OSError) -> BackendError:
    return BackendError(f"{path}: {error.strerror}; name a folder that can be written, with room")


def _make(path: str) -> bool:
    """Make the folder; return whether it was not there."""
    try:
        os.mkdir(path, _FOLDER_MODE)
    except FileExistsError:
        return False
    return True


def _way(path: str, parent: str) -> str:
    """Return what the link says: where both are in one folder, that can be moved."""
    above, name = os.path.split(parent)
    return os.path.join("..", name) if above == os.path.dirname(os.path.realpath(path)) else parent


def _fill(path: str, memory: Callable[[int], None], state: Callable[[], bytes]) -> None:
    for name, fill in ((MEMORY, memory), (STATE, lambda fd: write_all(fd, state()))):
        fd = os.open(
            os.path.join(path, name + _PART),
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
            _MODE,
        )
        try:
            fill(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
    for name in (MEMORY, STATE):
        os.rename(os.path.join(path, name + _PART), os.path.join(path, name))
    for folder in (path, os.path.dirname(os.path.abspath(path))):
        _sync(folder)


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: str, *, is_new: bool) -> None:
    for name in (STATE, MEMORY, PARENT):
        for suffix in (_PART, ""):
            try:
                os.unlink(os.path.join(path, name + suffix))
            except FileNotFoundError:
                continue
    if is_new:
        os.rmdir(path)
