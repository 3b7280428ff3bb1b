"""Where a vCPU is, and how it got there, without help from its guest.

A walk along frame pointers when the kernel keeps them; else every word of the stack that can be a
return address is shown, with the question mark that the kernel itself puts before such. All that
is read is the guest's: it decides what is printed, never how long it takes.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import TYPE_CHECKING

from .symbols import IN_A_MODULE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .symbols import Symbols

    Read = Callable[[int, int], bytes]

LINES_MAX = 64
STACK_SIZE = 16 << 10  # THREAD_SIZE and IRQ_STACK_SIZE of x86-64, to which stacks are aligned
_PAGE = 4096
_WORD = 8
_STACKS_MAX = 3  # a task's, and those of interrupts that came on top
_FRAMES_MIN = 3  # fewer can be chance
_CALL_MAX = 7  # bytes of a call instruction
_KERNEL_HALF = 1 << 63
_ADDRESSES = 1 << 64
_KERNEL_CS, _KERNEL_SS = 0x10, 0x18  # asm/segment.h
_CPL = 3
_CALL_REL32, _CALL_INDIRECT, _CALL_INDIRECT_DIGIT = 0xE8, 0xFF, 2


def backtrace(registers: Mapping[str, int], read: Read, symbols: Symbols) -> list[str]:
    """Return a line for where the vCPU is, and one for each caller.

    `registers` are named as QMP names them; `read` returns bytes at a virtual address, or raises
    IndexError where there are none.
    """
    rip = registers["rip"]
    if registers["cs"] & _CPL:
        return [f"rip {rip:#x} (in user space)"]
    lines = [f"rip {rip:#x} {symbols.name_of(rip) or '(in no function)'}"]
    walk = _Walk(read, symbols)
    frames = walk.frames(registers["rbp"])
    if len(frames) >= _FRAMES_MIN:
        lines += [f"  {_shown(frame, symbols.name_of_caller(frame))}" for frame in frames]
    else:
        lines += walk.scan(registers["rsp"])
    return lines


def _shown(address: int, name: str | None) -> str:
    """Return a name, with the address where the name alone tells too little."""
    return f"{address:#x} {name}" if name == IN_A_MODULE else str(name)


class _Walk:
    def __init__(self, read: Read, symbols: Symbols) -> None:
        self._read = read
        self._symbols = symbols

    def _words(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", self._read(address, count * _WORD))

    def frames(self, frame: int) -> list[int]:
        """Return the return addresses along the frame pointers, as far as they hold."""
        found: list[int] = []
        while frame >= _KERNEL_HALF and frame % _WORD == 0 and len(found) < LINES_MAX:
            try:
                frame, address = self._words(frame, 2)
            except IndexError:
                break
            if not self._is_return(address):
                break
            found.append(address)
        return found

    def scan(self, stack: int) -> list[str]:
        """Return lines for what looks like return addresses on the stack and those before it."""
        lines: list[str] = []
        seen: list[int] = []
        while len(seen) < _STACKS_MAX and len(lines) < LINES_MAX:
            if stack % _WORD:
                lines.append(f"  (the stack pointer {stack:#x} is not aligned)")
                break
            words = self._stack(stack)
            if not words:
                lines.append(f"  (the stack at {stack:#x} cannot be read)")
                break
            lines += islice(self._look(words), LINES_MAX)
            seen.append(stack // STACK_SIZE)
            # The stack of interrupts has the pointer to the one before at its top.
            stack = words[-1]
            if stack < _KERNEL_HALF or stack % _WORD or stack // STACK_SIZE in seen:
                break
        return lines[:LINES_MAX]

    def _stack(self, stack: int) -> tuple[int, ...]:
        """Return the words from the stack pointer to the stack's top, or as far as they go."""
        top = (stack // STACK_SIZE + 1) * STACK_SIZE
        words: tuple[int, ...] = ()
        while stack < top:
            end = min((stack // _PAGE + 1) * _PAGE, top)
            try:
                words += self._words(stack, (end - stack) // _WORD)
            except IndexError:
                break
            stack = end
        return words

    def _look(self, words: tuple[int, ...]) -> Iterator[str]:
        for at, word in enumerate(words):
            # The registers that an interrupt saved: rip, cs, rflags, rsp, ss.
            if words[at + 1 : at + 5 : 3] == (_KERNEL_CS, _KERNEL_SS):
                name = self._symbols.name_of(word)
                if name is not None:
                    yield f"  {_shown(word, name)} (interrupted)"
            elif self._is_return(word):
                yield f"  ? {_shown(word, self._symbols.name_of_caller(word))}"

    def _is_return(self, address: int) -> bool:
        """Return whether an address in a function is just behind a call."""
        if not self._symbols.is_text(address - 1):
            return False
        try:
            code = self._read(address - _CALL_MAX, _CALL_MAX)
        except IndexError:
            return False
        if code[-5] == _CALL_REL32:
            (offset,) = struct.unpack("<i", code[-4:])
            if self._symbols.is_text((address + offset) % _ADDRESSES):
                return True
        return any(_is_indirect_call(code[-length:]) for length in range(2, _CALL_MAX + 1))


def _is_indirect_call(code: bytes) -> bool:
    """Return whether these bytes are `call r/m64` (ff /2) to the last one.

    Source: Intel SDM volume 2, "ModR/M and SIB bytes".
    """
    opcode, modrm = code[:2]
    if opcode != _CALL_INDIRECT or modrm >> 3 & 7 != _CALL_INDIRECT_DIGIT:
        return False
    mode, base = modrm >> 6, modrm & 7
    length = 2
    if mode != 3 and base == 4:
        length += 1
        base = code[2] & 7 if len(code) > 2 else 0
    length += 4 if mode == 0 and base == 5 else (0, 1, 4, 0)[mode]
    return len(code) == length
