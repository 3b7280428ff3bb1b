"""System calls in the name of another process's thread, as code that has taken it over would make.

By ptrace(2), so the process needs no part of a test in it; it is a child of the caller's.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_CONT, _STEP, _GETREGS, _SETREGS, _DETACH = 7, 9, 12, 13, 17
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000
_SYSCALL = b"\x0f\x05"
_SCRATCH = 4096  # bytes below a thread's stack, where nothing is

# struct user_regs_struct of sys/user.h.
_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
    *("rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds"),
    *("es", "fs", "gs"),
)


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in _REGISTERS]


class Captive:
    """A thread that stands, and makes the calls that it is told to."""

    def __init__(self, pid: int, tid: int) -> None:
        self._pid, self._tid = pid, tid
        self._ptrace(_SEIZE)
        self._ptrace(_INTERRUPT)
        os.waitpid(tid, _WALL)
        self._registers = Registers()
        self._ptrace(_GETREGS, data=ctypes.byref(self._registers))
        self._scratch = self._registers.rsp - _SCRATCH & ~0xF
        self._instruction = self._find_instruction()

    def _ptrace(self, request: int, data: object = None) -> None:
        if _LIBC.ptrace(request, self._tid, None, data) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _find_instruction(self) -> int:
        with (
            open(f"/proc/{self._pid}/maps", encoding="ascii") as maps,
            open(f"/proc/{self._pid}/mem", "rb") as memory,
        ):
            for line in maps:
                found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r-xp .*/libc\.so\.6$", line)
                if found:
                    begin, end = (int(part, 16) for part in found.groups())
                    memory.seek(begin)
                    return begin + memory.read(end - begin).index(_SYSCALL)
        raise AssertionError("no C library")

    def call(self, number: int, *arguments: int | bytes) -> int:
        """Make a call; return the signal that the thread stops with then, which it does not get.

        Bytes are handed over as their address.
        """
        return self._make(_CONT, number, arguments)

    def result(self, number: int, *arguments: int | bytes) -> int:
        """Make a call that returns, and return what: a negative errno where it fails."""
        assert self._make(_STEP, number, arguments) == signal.SIGTRAP
        registers = Registers()
        self._ptrace(_GETREGS, data=ctypes.byref(registers))
        found: int = registers.rax
        return found - (1 << 64) if found >> 63 else found

    def _make(self, how: int, number: int, arguments: tuple[int | bytes, ...]) -> int:
        values = []
        place = self._scratch
        for argument in arguments:
            if isinstance(argument, bytes):
                with open(f"/proc/{self._pid}/mem", "r+b", buffering=0) as memory:
                    memory.seek(place)
                    memory.write(argument + b"\0")
                values.append(place)
                place += len(argument) + 16
            else:
                values.append(argument)
        registers = Registers.from_buffer_copy(self._registers)
        names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
        for name, value in zip(names, values + [0] * 6, strict=False):
            setattr(registers, name, value & (1 << 64) - 1)
        registers.rip, registers.rax = self._instruction, number
        registers.orig_rax = (1 << 64) - 1  # no call that was interrupted is made again
        registers.rsp = self._scratch - _SCRATCH & ~0xF
        self._ptrace(_SETREGS, data=ctypes.byref(registers))
        self._ptrace(how)
        _, status = os.waitpid(self._tid, _WALL)
        assert os.WIFSTOPPED(status), status
        return os.WSTOPSIG(status)

    def release(self) -> None:
        """Let go of the thread, which goes on where it was, and gets no signal."""
        self._ptrace(_SETREGS, data=ctypes.byref(self._registers))
        self._ptrace(_DETACH)

    def let(self, number: int) -> None:
        """Let go of the thread, which gets the signal that it has stopped with."""
        self._ptrace(_DETACH, data=number)
