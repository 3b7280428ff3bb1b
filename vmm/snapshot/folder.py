"""The folder of a snapshot: made whole or not at all.

All files are written under other names, brought to the disk, and then get their own: `state` last,
so that a folder with one is complete.
"""

from __future__ import annotations

import os

from ...errors import BackendError
from ...files import write_all
from . import overlays

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ...devices.virtio.device import Pluggable
    from .memory_file import Writer

    Fill = Callable[[int], None]  # what a descriptor is to have in it; OSError

STATE, MEMORY, PARENT = "state", "memory", "parent"
_MODE, _FOLDER_MODE = 0o600, 0o700  # a guest's secrets are its own
_PART = ".part"


class Folder:
    """A snapshot's folder that is to be written."""

    __slots__ = ("_parent", "_path", "overlays")

    def __init__(self, path: str, parent: str = "") -> None:
        """`parent` is the folder of the one that it goes on from, absolute; "": none."""
        self._path = path
        self._parent = parent
        self.overlays: dict[int, Fill] = {}  # what fills the files of disks' layers, by slots

    def check(self) -> None:
        """Refuse a folder that cannot be made, or has something in it; BackendError."""
        try:
            _check(self._path)
        except OSError as error:
            raise _failure(self._path, error) from None

    def take(self, slot: int, device: Pluggable, writer: Writer) -> int:
        """Have what the device's overlay has written too, as one layer, which the 1 says; or 0."""
        overlay = device.overlay()
        if overlay is None or overlay.is_empty:
            return 0
        self.overlays[slot] = lambda fd: overlay.copy(fd, writer.identity, writer.check)
        return 1

    def write(self, memory: Fill, state: Callable[[], bytes]) -> None:
        """Write a snapshot: `memory` is given a descriptor to fill, then `state` returns that file.

        BackendError, or what one of them raises; the folder is as it was before then.
        """
        path = self._path
        files = {MEMORY: memory}
        files.update((overlays.name(slot), fill) for slot, fill in self.overlays.items())
        files[STATE] = lambda fd: write_all(fd, state())
        try:
            _check(path)
            is_new = _make(path)
            try:
                if self._parent:
                    os.symlink(_way(path, self._parent), os.path.join(path, PARENT))
                _fill(path, files)
            except BaseException:
                _remove(path, [*files, PARENT], is_new=is_new)
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


def _fill(path: str, files: dict[str, Fill]) -> None:
    for name, fill in files.items():
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
    for name in files:
        os.rename(os.path.join(path, name + _PART), os.path.join(path, name))
    for folder in (path, os.path.dirname(os.path.abspath(path))):
        _sync(folder)


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: str, names: list[str], *, is_new: bool) -> None:
    for name in reversed(names):
        for suffix in (_PART, ""):
            try:
                os.unlink(os.path.join(path, name + suffix))
            except FileNotFoundError:
                continue
    if is_new:
        os.rmdir(path)
