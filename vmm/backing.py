"""What guest memory is made of when it is not anonymous: a memfd, a file, huge pages.

Imported only when an option asks for one of them. Sources: memfd_create(2);
Documentation/admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from .. import files
from ..errors import ConfigError
from ..native import ffi, lib

MIB = 1 << 20
HUGE_PAGES = (2 * MIB, 1024 * MIB)
_PAGE = 4096
_MAP_FIXED = 0x10  # asm-generic/mman-common.h; the mmap module does not name it
_MFD_HUGE_SHIFT = 26  # log2 of the page's size goes there in memfd_create's flags
_POOL = "/sys/kernel/mm/hugepages/hugepages-{}kB/"


class Backing:
    """The memory that was asked for; `option` is how messages call it."""

    __slots__ = ("huge_page", "option", "path", "seal", "shared")

    def __init__(
        self,
        option: str,
        *,
        path: str = "",
        huge_page: int = 0,
        shared: bool = False,
        seal: bool = True,
    ) -> None:
        """`path` is a folder, in which there is a file without a name, or a file that is used.

        Without one it is a memfd, of pages of `huge_page` bytes (0: small ones). What a guest
        writes to a file reaches that only when `shared`. `seal` keeps a memfd from being cut.
        """
        self.option = option
        self.path = path
        self.huge_page = huge_page
        self.shared = shared
        self.seal = seal

    def open(self, size: int, *, shared: bool) -> File:
        """Return a file of `size` bytes to be mapped; ConfigError, and nothing stays then.

        `shared` asks for one that has what is written, as the backing itself may.
        """
        fd = -1
        try:
            fd = self._open()
            page = os.fstatvfs(fd).f_bsize
            if page not in HUGE_PAGES:
                page = _PAGE
            if size % page:
                raise ConfigError(
                    f"{self.option}: {size // MIB} MiB are no whole pages of {page // MIB} MiB; "
                    "give a size that is"
                )
            self._resize(fd, size)
            # A file without a name is nobody else's: shared or not is the same then, and only a
            # shared mapping of huge pages can be emptied.
            own = not self.path or os.fstat(fd).st_nlink == 0
            return File(self, fd, size, page, is_shared=shared or self.shared or own)
        except OSError as error:
            _close(fd)
            raise self.error(size, error) from None
        except BaseException:
            _close(fd)
            raise

    def error(self, size: int, error: OSError) -> ConfigError:
        """Return what to tell of memory that cannot be had."""
        what = f"{size // MIB} MiB: {error.strerror}"
        if not self.path:
            return ConfigError(f"{self.option}: cannot map {what}; lower -m")
        return ConfigError(
            f"{self.option} {self.path}: {what}; name a folder or file that can be written, "
            "with room for the guest's memory"
        )

    def _open(self) -> int:
        if not self.path:
            return self._memfd()
        if not os.path.isdir(self.path):
            return files.open_regular(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        name = os.path.join(self.path, f".pyvirt-{os.getpid()}-{os.urandom(8).hex()}")
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(name)
        return fd

    def _memfd(self) -> int:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if self.huge_page:
            flags |= os.MFD_HUGETLB | (self.huge_page.bit_length() - 1) << _MFD_HUGE_SHIFT
        try:
            return os.memfd_create("pyvirt-ram", flags)
        except OSError as error:
            if not self.huge_page:
                raise
            raise ConfigError(
                f"{self.option}: this kernel has no pages of {self.huge_page // MIB} MiB "
                f"({error.strerror}); give another size"
            ) from None

    def _resize(self, fd: int, size: int) -> None:
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        if not self.path and self.seal:
            # Whoever is given the file cannot cut it under us, which would be a SIGBUS.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


class File:
    """A file that is to be memory, `page` bytes at a time; owns the descriptor."""

    __slots__ = ("_backing", "_size", "fd", "is_shared", "page")

    def __init__(self, backing: Backing, fd: int, size: int, page: int, *, is_shared: bool) -> None:
        """Take over `fd`; `is_shared`: it gets what is written."""
        self._backing = backing
        self._size = size
        self.fd = fd
        self.is_shared = is_shared
        self.page = page

    def map(self, at: int) -> None:
        """Map it at an address of this process, a multiple of `page`, over what is there.

        ConfigError.
        """
        flags = _MAP_FIXED | (mmap.MAP_SHARED if self.is_shared else mmap.MAP_PRIVATE)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        where = ffi.cast("void *", at)
        if lib.mmap(where, self._size, protection, flags, self.fd, 0) == where:
            return
        code, backing, page = ffi.errno, self._backing, self.page
        if page == _PAGE:
            raise backing.error(self._size, OSError(code, os.strerror(code)))
        wanted, free = self._size // page, _free(page)
        pool = _POOL.format(page >> 10)
        raise ConfigError(
            f"{backing.option}: {wanted} pages of {page // MIB} MiB are needed and {free} are "
            f"free; echo {wanted} >{pool}nr_hugepages, or use smaller pages"
        )

    def close(self) -> None:
        """Close it; what is mapped stays."""
        _close(self.fd)
        self.fd = -1


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _free(page: int) -> int:
    """Return how many huge pages of a size are free."""
    try:
        with open(_POOL.format(page >> 10) + "free_hugepages", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return 0
