"""A guest's disk on the host: a raw image file or a block device, opened, locked and measured.

It is read as what it is said to be, raw, never as what is in it, which is the guest's to write: an
image that begins like one of another format is refused unless somebody insists.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from ..errors import ConfigError
from ..native import ffi, lib
from .image_format import HEAD_BYTES, foreign_format
from .image_lock import lock_image

SECTOR = 512
_BLOCK_MAX = 1 << 16  # bytes; a larger "block size" of a file system is a transfer size
_BLKPBSZGET = 0x127B  # linux/fs.h; the physical block size, as an unsigned int


class InUseError(ConfigError):
    """Somebody else has the image open, and one of the two wants to write."""


class Disk:
    """An open image; owns its descriptor, and with it the lock, until `close`.

    `sectors` is its size in units of 512 bytes. I/O must keep to `offset_align` and
    `memory_align` (bytes); `block_size` is what the storage below works in (bytes, a power of
    two). `direct` says whether I/O goes past the host's page cache.
    """

    __slots__ = (
        "block_size",
        "direct",
        "fd",
        "memory_align",
        "offset_align",
        "sectors",
    )

    def __init__(
        self,
        path: str,
        *,
        readonly: bool = False,
        direct: bool | None = None,
        raw: bool = False,
        option: str = "",
    ) -> None:
        """Open the image; ConfigError.

        `direct` None is True where the file system can do it and False elsewhere. Without
        `readonly` nobody else may have the image open, with it only other readers may
        (image_lock). `raw` takes it so whatever it looks like. `option` is how messages call it.
        """
        option = option or f"-drive file={path}"
        try:
            # Before it is opened: to open a tape may do something.
            _check_kind(option, os.stat(path).st_mode)
            # A FIFO that has taken its place is to be refused, not waited for.
            flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if readonly else os.O_RDWR)
            self.fd = os.open(path, flags)
        except OSError as error:
            raise ConfigError(f"{option}: {error.strerror}; {_mend(error, readonly)}") from None
        try:
            _check_kind(option, os.fstat(self.fd).st_mode)
            # Else io_uring may answer EAGAIN where it is to wait for the storage.
            os.set_blocking(self.fd, True)
            self._lock(option, readonly)
            if not raw:
                self._check_format(option, path)
            self._measure(option, path)
            self._align(option, direct)
        except BaseException:
            os.close(self.fd)
            raise

    def _lock(self, option: str, readonly: bool) -> None:
        try:
            is_ours = lock_image(self.fd, readonly=readonly)
        except OSError as error:
            raise ConfigError(
                f"{option}: cannot be locked: {error.strerror}; name a file elsewhere"
            ) from None
        if not is_ours:
            raise InUseError(
                f"{option}: in use by another process or drive; "
                "end that one, or give readonly=on or overlay=memory to both"
            )

    def _check_format(self, option: str, path: str) -> None:
        try:
            found = foreign_format(os.pread(self.fd, HEAD_BYTES, 0))
        except OSError as error:
            raise ConfigError(f"{option}: {error.strerror}; name a disk that works") from None
        if found:
            raise ConfigError(
                f"{option}: a {found} image, and disks are raw; convert it: qemu-img convert "
                f"-O raw {path} {path}.raw; or give format=raw and the guest sees it as it is"
            )

    def _measure(self, option: str, path: str) -> None:
        size = os.lseek(self.fd, 0, os.SEEK_END)
        if size == 0 or size % SECTOR:
            raise ConfigError(
                f"{option}: {size} bytes, a disk has a multiple of {SECTOR}; "
                f"run: truncate -s %{SECTOR} {path}"
                if size
                else f"{option}: empty; give it a size, as by: truncate -s 1G {path}"
            )
        self.sectors = size // SECTOR
        status = os.fstat(self.fd)
        block = status.st_blksize
        if stat.S_ISBLK(status.st_mode):
            answer = fcntl.ioctl(self.fd, _BLKPBSZGET, bytes(4))
            block = int.from_bytes(answer, "little")
        is_usable = block & (block - 1) == 0 and SECTOR <= block <= _BLOCK_MAX
        self.block_size = block if is_usable else 4096

    def _align(self, option: str, direct: bool | None) -> None:
        self.direct = False
        self.offset_align = self.memory_align = 1
        if direct is False:
            return
        reason = self._go_direct()
        if reason and direct:
            raise ConfigError(f"{option},direct=on: {reason}; give direct=off")

    def _go_direct(self) -> str:
        """Turn direct I/O on and return "", or why it cannot be."""
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:
            return "the file system has no direct I/O"
        aligns = ffi.new("uint32_t[2]")
        result = lib.pv_block_alignment(self.fd, aligns, aligns + 1)
        if result == 0 and self.sectors * SECTOR % aligns[0] == 0:
            self.direct = True
            self.offset_align, self.memory_align = aligns
            return ""
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags)
        if result < 0:
            return f"direct I/O does not work: {os.strerror(-result)}"
        return f"the size is no multiple of {aligns[0]}, the unit of direct I/O here"

    def resize(self, size: int, unit: int = SECTOR) -> None:
        """Make the image `size` bytes long, a block device as long as it is; ConfigError.

        No I/O goes on. The size is a multiple of `unit`, the guest's block size.
        """
        unit = max(unit, self.offset_align)
        if size == 0:
            raise ConfigError(f"size 0: a disk has some; give at least {unit} bytes")
        if size % unit:
            raise ConfigError(f"size {size}: not a multiple of {unit} bytes; give one")
        try:
            if stat.S_ISBLK(os.fstat(self.fd).st_mode):
                there = os.lseek(self.fd, 0, os.SEEK_END)
                if size != there:
                    raise ConfigError(
                        f"size {size}: it is a block device of {there} bytes; resize that first"
                    )
            elif fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise ConfigError(f"size {size}: it is read-only; plug it writable")
            else:
                os.ftruncate(self.fd, size)
        except OSError as error:
            raise ConfigError(f"size {size}: {error.strerror}; give one that can be had") from None
        self.sectors = size // SECTOR

    def close(self) -> None:
        """Close and unlock; what uses the descriptor is gone."""
        os.close(self.fd)
        self.fd = -1


def _check_kind(option: str, mode: int) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ConfigError(f"{option}: neither a file nor a block device; name a raw disk image")


def _mend(error: OSError, readonly: bool) -> str:
    if error.errno == errno.ENOENT:
        return "name an image that exists, or make one, as by truncate -s 1G"
    if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM} and not readonly:
        return "give readonly=on, or make it writable"
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return "raise ulimit -n"
    return "name a file that can be opened"
