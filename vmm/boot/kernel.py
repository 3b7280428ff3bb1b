"""What every kind of kernel file comes to once it is in guest memory, and the file itself.

The loaders (bzimage, elf, multiboot, raw) read a `KernelFile` and return a `Kernel`; an unfit file
is a ConfigError that says what it is instead and what would do.
"""

from __future__ import annotations

import os
import stat

from ...errors import ConfigError
from .. import layout
from ..memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

LINUX64 = "linux64"  # long mode, RSI = zero page (Documentation/arch/x86/boot.rst)
PVH = "pvh"  # 32-bit protected mode, EBX = start info (xen/include/public/arch-x86/hvm)
MULTIBOOT = "multiboot"  # 32-bit protected mode, EBX = boot information (Multiboot 0.6.96)

# COMMAND_LINE_SIZE of Linux/x86 less its final zero, where no header says otherwise.
CMDLINE_MAX = 2047
# Where Linux accepts an initrd when no header says otherwise.
INITRD_MAX = 0x7FFF_FFFF


class Kernel:
    """A kernel in guest memory: how to enter it and what it asks for."""

    __slots__ = (
        "cmdline_max",
        "end",
        "entry",
        "header",
        "info",
        "initrd_max",
        "notes",
        "pieces",
        "protocol",
    )

    def __init__(
        self,
        protocol: str,
        entry: int,
        end: int,
        *,
        header: bytes = b"",
        cmdline_max: int = CMDLINE_MAX,
        initrd_max: int = INITRD_MAX,
        pieces: Sequence[tuple[int, int]] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """`end` is the first address that the kernel leaves free; `header` goes into the zero page.

        `cmdline_max` is in bytes without the final zero, `initrd_max` the highest address that
        the initrd's last byte may have. `pieces` are where it is, as (start, end), if that may be
        below 1 MiB. `notes` are lines for the user on what it will not find here. `info` is where
        its boot information is, if that is not always the same place.
        """
        self.protocol = protocol
        self.entry = entry
        self.end = end
        self.header = header
        self.info: int = 0
        self.notes = notes
        self.pieces = pieces
        self.cmdline_max = cmdline_max
        self.initrd_max = initrd_max


class KernelFile:
    """An open file named by an option; owns its descriptor (use as a context manager)."""

    __slots__ = ("fd", "head", "option", "path", "size")

    def __init__(self, option: str, path: str) -> None:
        """Open `path`; ConfigError names `option` when it is no readable regular file."""
        self.option = option
        self.path = path
        try:
            # A FIFO is to be refused, not waited for.
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self.error(f"{error.strerror}; name a file that can be read") from None
        info = os.fstat(self.fd)
        self.size = info.st_size
        if not stat.S_ISREG(info.st_mode):
            os.close(self.fd)
            raise self.error("not a regular file; name one")
        try:
            self.head = self.read(0, 4096)
        except ConfigError:
            os.close(self.fd)
            raise

    def __enter__(self) -> KernelFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer only at the end of the file."""
        if offset >= self.size:
            return b""
        try:
            return os.pread(self.fd, length, offset)
        except OSError as error:
            raise self.unreadable(error) from None

    def load(self, memory: GuestMemory, address: int, offset: int, length: int) -> None:
        """Put `length` bytes of the file into guest memory."""
        try:
            memory.load(address, self.fd, offset, length)
        except EOFError:
            raise self.error("became shorter while it was read; try again") from None
        except OSError as error:
            raise self.unreadable(error) from None

    def check_low(self, start: int, end: int) -> None:
        """Raise ConfigError unless a piece that begins below 1 MiB has memory of its own there."""
        if start < layout.LOW_MEMORY or end > layout.EBDA:
            raise self.error(
                f"to be loaded at {start:#x} to {end - 1:#x}; below 1 MiB there is room from "
                f"{layout.LOW_MEMORY:#x} to {layout.EBDA - 1:#x}: link it there, or higher"
            )

    def error(self, problem: str) -> ConfigError:
        """Return the error that says `problem` of this file."""
        return ConfigError(f"{self.option} {self.path}: {problem}")

    def unreadable(self, error: OSError) -> ConfigError:
        """Return the error for a file that opens and cannot be read."""
        return self.error(f"{error.strerror}; copy it to another place")

    def needs(self, end: int) -> ConfigError:
        """Return the error for a kernel that takes memory up to address `end`."""
        mib = -(-end // layout.MIB)
        if end > layout.GAP_START:
            return self.error(f"needs memory up to {mib} MiB, where there is none; name another")
        return self.error(f"needs memory up to {mib} MiB; raise -m")

    def truncated(self, wanted: int) -> ConfigError:
        """Return the error for a file that ends before byte `wanted`."""
        return self.error(
            f"truncated: {self.size} bytes where its header says {wanted}; copy it again"
        )
