"""An assembler for seccomp's BPF: rules in, instructions out.

A program reads struct seccomp_data and returns an action. The calls whose arguments are looked at
come first: the kernel knows of the others by their numbers (Linux 5.11), and runs no program for
them. Sources: Documentation/userspace-api/seccomp_filter.rst, linux/seccomp.h, linux/bpf_common.h.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .syscalls import NUMBERS

LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

ALLOW = 0x7FFF0000
TRAP = 0x00030000
ERRNO = 0x00050000
KILL = 0x80000000  # the process

ARCH_X86_64 = 0xC000003E
NR, ARCH, IP, ARGUMENTS = 0, 4, 8, 16  # offsets in struct seccomp_data
# Stands for the process's own id until the program is installed; no constant else is this.
OWN_PID = 0x50564944

_MOST = 4096  # instructions, BPF_MAXINSNS
_FAR = 255  # a jump's length at most


class Argument(NamedTuple):
    """What an argument has to be: one of `values`, where `mask` has ones. 32 bits of it count.

    That is for arguments that the kernel itself takes as an int, or whose bits above mean nothing.
    """

    place: int  # 0 to 5
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


class Rule(NamedTuple):
    """A call that may be made, if all of its arguments are as said; or fails with `error`."""

    call: str
    arguments: tuple[Argument, ...] = ()
    error: int = 0


class Instruction(NamedTuple):
    """A struct sock_filter."""

    code: int
    jt: int
    jf: int
    k: int

    def packed(self) -> bytes:
        """Return it as the kernel reads it."""
        return struct.pack("<HBBI", *self)


def _check(argument: Argument, miss: int) -> list[Instruction]:
    """Go on behind these if the argument is as said, else jump `miss` further."""
    found = [Instruction(LOAD, 0, 0, ARGUMENTS + 8 * argument.place)]
    if argument.mask != 0xFFFFFFFF:
        found.append(Instruction(AND, 0, 0, argument.mask))
    last = len(argument.values) - 1
    for place, value in enumerate(argument.values):
        found.append(Instruction(EQUAL, last - place, miss if place == last else 0, value))
    return found


def _rule(rule: Rule) -> list[Instruction]:
    """Return what allows a call, or jumps behind itself."""
    action = ERRNO | rule.error if rule.error else ALLOW
    made = [Instruction(RETURN, 0, 0, action)]
    for argument in reversed(rule.arguments):
        made = _check(argument, len(made)) + made
    return made


def assemble(rules: tuple[Rule, ...]) -> list[Instruction]:
    """Return the program that allows what the rules do, and traps all else.

    What comes by another architecture's numbers ends the process.
    """
    program = [
        Instruction(LOAD, 0, 0, ARCH),
        Instruction(EQUAL, 1, 0, ARCH_X86_64),
        Instruction(RETURN, 0, 0, KILL),
        Instruction(LOAD, 0, 0, NR),
    ]
    calls = list(dict.fromkeys(rule.call for rule in rules))
    calls.sort(key=lambda call: not any(r.arguments for r in rules if r.call == call))
    for call in calls:
        own = [rule for rule in rules if rule.call == call]
        block = [one for rule in own for one in _rule(rule)]
        if own[-1].arguments:
            block.append(Instruction(RETURN, 0, 0, TRAP))
        if len(block) > _FAR:
            raise ValueError(f"{call}: {len(block)} instructions, and a jump goes {_FAR} far")
        program += [Instruction(EQUAL, 0, len(block), NUMBERS[call]), *block]
    program.append(Instruction(RETURN, 0, 0, TRAP))
    if len(program) > _MOST:
        raise ValueError(f"{len(program)} instructions, and {_MOST} are the most")
    return program
