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

MIB = 1 << 20
HUGE_PAGES = (2 * MIB, 1024 * MIB)
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

    def open(self, size: int, *, shared: bool) -> tuple[int, mmap.mmap]:
        """Return the file, -1 for none that has what is written, and a mapping of `size` bytes.

        `shared` asks for such a file, as the backing itself may. ConfigError; nothing stays then.
        """
        fd = -1
        try:
            fd = self._open()
            page = os.fstatvfs(fd).f_bsize
            if page in HUGE_PAGES and size % page:
                raise ConfigError(
                    f"{self.option}: {size // MIB} MiB are no whole pages of {page // MIB} MiB; "
                    "give -m a multiple of that"
                )
            self._resize(fd, size)
            # A file without a name is nobody else's: shared or not is the same then, and only a
            # shared mapping of huge pages can be emptied.
            own = not self.path or os.fstat(fd).st_nlink == 0
            if shared or self.shared or own:
                return fd, self._map(fd, size, mmap.MAP_SHARED, page)
            mapping = self._map(fd, size, mmap.MAP_PRIVATE, page)
            os.close(fd)
            return -1, mapping
        except OSError as error:
            _close(fd)
            what = f"{size // MIB} MiB: {error.strerror}"
            if not self.path:
                raise ConfigError(f"{self.option}: cannot map {what}; lower -m") from None
            raise ConfigError(
                f"{self.option} {self.path}: {what}; name a folder or file that can be written, "
                "with room for the guest's memory"
            ) from None
        except BaseException:
            _close(fd)
            raise

    def _map(self, fd: int, size: int, flags: int, page: int) -> mmap.mmap:
        try:
            return mmap.mmap(fd, size, flags)
        except OSError:
            if page not in HUGE_PAGES:
                raise
            wanted, free = size // page, _free(page)
            pool = _POOL.format(page >> 10)
            raise ConfigError(
                f"{self.option}: {wanted} pages of {page // MIB} MiB are needed and {free} are "
                f"free; echo {wanted} >{pool}nr_hugepages, or use smaller pages"
            ) from None

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
