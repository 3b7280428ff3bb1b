"""Where a vCPU is, read out of a guest's memory: page tables, stack, and code are all the input.

The first bytes are registers; then come pages of memory, one after the other from address 0.
"""

from __future__ import annotations

from pyvirt.harness.judge.backtrace import LINES_MAX, backtrace
from pyvirt.harness.judge.symbols import Symbols
from pyvirt.vmm import paging

from .input import Input

_KERNEL = 0xFFFF_8000_0000_0000
_MEMORY = 8 * paging.PAGE
_SYMBOLS = Symbols([(_KERNEL, "first"), (_KERNEL + 0x800, "second"), (_KERNEL + 0x7000, "")])
_READS_MAX = 20_000


class Memory:
    """Pages that repeat a few bytes of the input, so that few make tables of all levels."""

    def __init__(self, source: Input) -> None:
        self.reads = 0
        pages: list[bytes] = []
        while source and len(pages) < _MEMORY // paging.PAGE:
            piece = source.data(source.take(1) % 64 + 1) or b"\0"
            pages.append((piece * (paging.PAGE // len(piece) + 1))[: paging.PAGE])
        self.data = b"".join(pages).ljust(_MEMORY, b"\0")

    def read(self, address: int, length: int) -> bytes:
        self.reads += 1
        assert self.reads < _READS_MAX
        if address + length > len(self.data):
            raise IndexError(f"{address:#x}")
        return self.data[address : address + length]


def fuzz(data: bytes) -> None:
    source = Input(data)
    choice = source.take(1)
    registers = {
        "cr0": (choice & 1 ^ 1) << 31,
        "efer": (choice >> 1 & 1 ^ 1) << 10,
        "cr4": (choice >> 2 & 1) << 12,
        "cr3": source.take(1) % 16 * paging.PAGE,
        "cs": choice >> 3 & 3 and 0x10 | choice >> 3 & 3,
        "rip": source.take(2) | (_KERNEL if choice & 64 else 0),
        "rbp": source.take(2) | (_KERNEL if choice & 64 else 0),
        "rsp": source.take(2) | (_KERNEL if choice & 64 else 0),
    }
    memory = Memory(source)
    lines = backtrace(registers, paging.reader(registers, memory.read), _SYMBOLS)
    assert 1 <= len(lines) <= LINES_MAX + 1
    assert all(line.isprintable() for line in lines)
