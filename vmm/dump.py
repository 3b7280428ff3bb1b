"""Guest memory as files: raw ranges, and an ELF core of the whole for gdb, crash and drgn.

Off the start-up path. A file appears under its name when it is complete; pages of zeroes are
holes in it. Whoever calls has the machine standing.
"""

from __future__ import annotations

import os
import stat
import struct

from ..errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .memory import GuestMemory

_CHUNK = 1 << 20
_ZEROES = memoryview(bytes(_CHUNK))
_MODE = 0o600  # a guest's secrets are its own
_PAGE = 4096

# ELF (gabi), and struct elf_prstatus of linux/elfcore.h for x86-64.
_EHDR, _PHDR = struct.Struct("<16s2HI3QI6H"), struct.Struct("<2I6Q")
_IDENT = b"\x7fELF\x02\x01\x01"
_ET_CORE, _EM_X86_64 = 4, 62
_PT_LOAD, _PT_NOTE, _NT_PRSTATUS = 1, 4, 1
_RWX = 7
_NOTE = struct.Struct("<3I8s")
_PRSTATUS = struct.Struct("<32xi76x27QI4x")
_PRSTATUS_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
    *("rax", "rcx", "rdx", "rsi", "rdi", "rax", "rip", "cs", "rflags", "rsp", "ss"),
    *("fs_base", "gs_base", "ds", "es", "fs", "gs"),
)


def save(path: str, memory: GuestMemory, pieces: Iterable[tuple[int, int]]) -> None:
    """Write ranges of guest-physical memory, one behind the other, to a file.

    IndexError for one that is not in it; BackendError. What was there before stays then.
    """

    def fill(fd: int) -> None:
        _copy(fd, 0, memory, pieces)

    _publish(path, fill)


def save_core(path: str, memory: GuestMemory, vcpus: Sequence[Mapping[str, int]]) -> None:
    """Write an ELF core: RAM by guest-physical address, and a PRSTATUS note for each vCPU.

    `vcpus` are registers by name. BackendError, as `save`.
    """
    notes = b"".join(_prstatus(index, values) for index, values in enumerate(vcpus))
    headers = 1 + len(memory.regions)
    start = _EHDR.size + headers * _PHDR.size
    # Segments begin on a page, so that readers can map them.
    offset = -(-(start + len(notes)) // _PAGE) * _PAGE
    head = _EHDR.pack(
        *(_IDENT, _ET_CORE, _EM_X86_64, 1, 0, _EHDR.size, 0, 0),
        *(_EHDR.size, _PHDR.size, headers, 0, 0, 0),
    )
    head += _PHDR.pack(_PT_NOTE, 0, start, 0, 0, len(notes), 0, 0)
    at = offset
    for address, size in memory.regions:
        head += _PHDR.pack(_PT_LOAD, _RWX, at, 0, address, size, size, _PAGE)
        at += size

    def fill(fd: int) -> None:
        os.pwrite(fd, head + notes, 0)
        _copy(fd, offset, memory, memory.regions)

    _publish(path, fill)


def _prstatus(index: int, values: Mapping[str, int]) -> bytes:
    registers = (values[name] for name in _PRSTATUS_REGISTERS)
    status = _PRSTATUS.pack(index + 1, *registers, 0)  # a thread's id counts from 1
    return _NOTE.pack(len(b"CORE\0"), len(status), _NT_PRSTATUS, b"CORE") + status


def _copy(fd: int, offset: int, memory: GuestMemory, pieces: Iterable[tuple[int, int]]) -> None:
    for address, length in pieces:
        with memory.view(address, length) as whole:
            for start in range(0, length, _CHUNK):
                with whole[start : start + _CHUNK] as part:
                    if part != _ZEROES[: len(part)]:
                        _write(fd, part, offset + start)
        offset += length
    os.ftruncate(fd, offset)


def _write(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        with data[done:] as rest:
            done += os.pwrite(fd, rest, offset + done)


def _publish(path: str, fill: Callable[[int], None]) -> None:
    """Have `fill` write a file under another name beside its place, then give it its own."""
    part = f"{path}.{os.getpid()}.part"
    try:
        if os.path.lexists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise BackendError(f"{path}: it is there and no regular file; name another")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            fill(fd)
            os.rename(part, path)
        except BaseException:
            os.unlink(part)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}") from None
