"""What a guest writes to a disk whose image stays as it is; native/block/overlay.h does the work.

It is there as long as the machine, in memory or in a file without a name. Frozen, it is a layer: a
descriptor that other disks, of forks, can have between their own overlay and the image. Copied, it
is a file with a name, that disks of restored guests can have there.
"""

from __future__ import annotations

import errno
import fcntl
import os

from ..errors import BackendError, ConfigError
from ..native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

MEMORY = "memory"
LAYERS_MAX = 16  # frozen ones; each is one more place to look for what is read
MARK_BYTES: int = lib.PV_OVERLAY_MARK
_MODE = 0o600
_STEP = 16 * lib.PV_OVERLAY_SPAN  # between two looks at whether to go on
_SECTOR = 512
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Overlay:
    """The layers over an image, open; its maker closes it."""

    __slots__ = ("_fds", "_handles", "_place", "_sectors")

    def __init__(
        self, place: str, sectors: int, layers: Sequence[int] = (), *, option: str = "overlay"
    ) -> None:
        """Make an empty layer over frozen ones, the oldest first; ConfigError.

        `place` is `memory` or a folder, `sectors` the disk's size in units of 512 bytes. The
        descriptors `layers` are the caller's still. `option` is how messages call it.
        """
        self._place = place
        self._sectors = sectors
        self._fds: list[int] = []
        self._handles: list[Any] = []
        if len(layers) > LAYERS_MAX:
            raise ConfigError(
                f"{option}: {len(layers)} layers, and {LAYERS_MAX} is the most; fork the machine "
                "that was there first"
            )
        try:
            for fd in layers:
                self._thaw(fd, option)
            self._add()
        except OSError as error:
            self.close()
            mend = "name another folder, or give memory"
            if place == MEMORY:
                mend = "raise ulimit -f" if error.errno == errno.EFBIG else "raise ulimit -n"
            raise ConfigError(f"{option}: {error.strerror}; {mend}") from None
        except BaseException:
            self.close()
            raise

    @property
    def handle(self) -> Any:
        """Return the struct pv_overlay that is written to."""
        return self._handles[-1]

    @property
    def written(self) -> int:
        """Return how many bytes of the host's it takes, frozen layers apart."""
        return int(lib.pv_overlay_bytes(self.handle))

    def _thaw(self, fd: int, option: str) -> None:
        self._fds.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))
        handle = ffi.new("struct pv_overlay **")
        result = lib.pv_overlay_thaw(self._fds[-1], self._sectors, self._below(), handle)
        if result == -errno.EINVAL:
            raise ConfigError(
                f"{option}: what is to be below it is no layer of a disk of this size"
            )
        _result(result)
        self._handles.append(handle[0])

    def _add(self) -> None:
        """Put an empty layer on top; OSError."""
        self._fds.append(_open(self._place))
        handle = ffi.new("struct pv_overlay **")
        result = lib.pv_overlay_new(self._fds[-1], self._sectors, self._below(), handle)
        if result < 0:
            os.close(self._fds.pop())
            raise OSError(-result, os.strerror(-result))
        self._handles.append(handle[0])

    def _below(self) -> Any:
        return self._handles[-1] if self._handles else ffi.NULL

    def freeze(self) -> tuple[int, ...]:
        """Freeze what was written, put an empty layer on top, and return the frozen ones.

        They are descriptors, the oldest layer first, and stay this object's own. Nothing is in
        flight. BackendError: nothing has changed.
        """
        if lib.pv_overlay_is_empty(self.handle):
            return tuple(self._fds[:-1])
        if len(self._fds) > LAYERS_MAX:
            raise BackendError(f"{LAYERS_MAX} layers are frozen, which is the most; begin anew")
        try:
            _result(lib.pv_overlay_freeze(self.handle))
            self._add()
        except OSError as error:
            raise BackendError(f"its overlay: {error.strerror}; make room") from None
        _seal(self._fds[-2])
        return tuple(self._fds[:-1])

    @property
    def is_empty(self) -> bool:
        """Tell whether the disk is as its image is. Nothing is in flight."""
        return all(lib.pv_overlay_is_empty(handle) for handle in self._handles)

    def copy(self, fd: int, mark: bytes, check: Callable[[], None]) -> None:
        """Write what all layers have to an empty file, which is one layer then; OSError.

        `mark` are the last bytes of the file, MARK_BYTES of them, for its reader. Nothing
        is in flight. `check` is called now and then, and raises what ends it.
        """
        assert len(mark) == MARK_BYTES
        written = ffi.new("uint64_t *")
        for start in range(0, self._sectors * _SECTOR, _STEP):
            check()
            _result(lib.pv_overlay_copy(self.handle, fd, start, start + _STEP, written))
        _result(lib.pv_overlay_complete(self.handle, fd, mark))

    def close(self) -> None:
        """Give all of it up; no device has it any more."""
        while self._handles:
            lib.pv_overlay_free(self._handles.pop())
        while self._fds:
            os.close(self._fds.pop())


def _result(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _open(place: str) -> int:
    """Return the descriptor of an empty file that is gone when it is closed; OSError."""
    if place == MEMORY:
        return os.memfd_create("pyvirt-overlay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        return os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _MODE)
    except OSError as error:
        if error.errno not in {errno.EISDIR, errno.EOPNOTSUPP}:
            raise
    # On a file system, such as 9p, that makes no files without names.
    path = os.path.join(place, f".pyvirt-{os.getpid()}-{os.urandom(8).hex()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    os.unlink(path)
    return fd


def _seal(fd: int) -> None:
    """Keep a memfd as it is; files have no seals, or are sealed from the first (tmpfs)."""
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EPERM}:
            raise
