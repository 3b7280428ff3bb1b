"""Stacks that are walked from outside: with frame pointers, without, and hostile ones."""

from __future__ import annotations

import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.harness.judge import backtrace as module
from pyvirt.harness.judge.backtrace import LINES_MAX, backtrace
from pyvirt.harness.judge.symbols import Symbols

if TYPE_CHECKING:
    from pathlib import Path

TEXT = 0xFFFF_FFFF_8100_0000
STACK = 0xFFFF_C900_0004_8000  # its base
TOP = STACK + 0x4000
IRQ_STACK = 0xFFFF_C900_0010_0000
NAMES = ("main", "middle", "inner", "leaf", "end")
SYMBOLS = Symbols([*((TEXT + 0x100 * n, name) for n, name in enumerate(NAMES)), (TEXT + 0x500, "")])


class Memory:
    """Code and stacks at their addresses, page by page."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.reads = 0
        for n in range(len(NAMES)):
            # At offset 0x10 of each function a call of `leaf`, which returns to 0x15.
            at = TEXT + 0x100 * n + 0x10
            self.put(at, b"\xe8" + struct.pack("<i", TEXT + 0x300 - (at + 5)))
            self.put(TEXT + 0x100 * n + 0x20, b"\xff\xd0")  # call *%rax, which returns to 0x22

    def put(self, address: int, data: bytes) -> None:
        for at, byte in enumerate(data, address):
            self.pages.setdefault(at // 4096, bytearray(4096))[at % 4096] = byte

    def put_words(self, address: int, *words: int) -> None:
        self.put(address, struct.pack(f"<{len(words)}Q", *words))

    def read(self, address: int, length: int) -> bytes:
        self.reads += 1
        data = bytearray()
        for at in range(address, address + length):
            if at // 4096 not in self.pages:
                raise IndexError(at)
            data.append(self.pages[at // 4096][at % 4096])
        return bytes(data)


def returns(name: str, offset: int = 0x15) -> int:
    return TEXT + 0x100 * NAMES.index(name) + offset


@pytest.fixture
def memory() -> Memory:
    memory = Memory()
    for page in range(STACK, TOP, 4096):
        memory.put(page, bytes(4096))
    return memory


def registers(**more: int) -> dict[str, int]:
    return {"rip": TEXT + 0x304, "rsp": TOP - 0x100, "rbp": 0, "cs": 0x10, **more}


def test_frame_pointers(memory: Memory) -> None:
    frame = TOP - 0x100
    for depth, name in enumerate(("inner", "middle", "main")):
        memory.put_words(frame + 0x20 * depth, frame + 0x20 * (depth + 1), returns(name))
    memory.put_words(frame + 0x60, 0, 0)
    assert backtrace(registers(rbp=frame), memory.read, SYMBOLS) == [
        f"rip {TEXT + 0x304:#x} leaf+0x4/0x100",
        "  inner+0x15/0x100",
        "  middle+0x15/0x100",
        "  main+0x15/0x100",
    ]


@pytest.mark.parametrize("rbp", [0, 3, TOP - 0x100, TOP, (1 << 64) - 8, 0x7FFF_0000_0000, STACK])
def test_without_frame_pointers_the_stack_is_searched(memory: Memory, rbp: int) -> None:
    memory.put_words(
        TOP - 0x100,
        returns("inner"),
        TEXT + 0x105,  # in a function, but behind no call
        returns("middle", 0x22),
        STACK,
        returns("main"),
        0xFFFF_FFFF_8200_0000,
    )
    # Of an earlier call, below the stack pointer.
    memory.put_words(TOP - 0x108, returns("end"))
    assert backtrace(registers(rbp=rbp), memory.read, SYMBOLS) == [
        f"rip {TEXT + 0x304:#x} leaf+0x4/0x100",
        "  ? inner+0x15/0x100",
        "  ? middle+0x22/0x100",
        "  ? main+0x15/0x100",
    ]


def test_a_call_that_is_the_last_of_its_function(memory: Memory) -> None:
    end = TEXT + 0x500
    memory.put(end - 5, b"\xe8" + struct.pack("<i", TEXT - end))
    memory.put_words(TOP - 0x80, end)
    assert backtrace(registers(), memory.read, SYMBOLS)[1:] == ["  ? end+0x100/0x100"]


def test_what_an_interrupt_saved(memory: Memory) -> None:
    memory.put_words(TOP - 0x80, TEXT + 0x107, 0x10, 0x246, TOP - 0x40, 0x18, returns("main"))
    assert backtrace(registers(), memory.read, SYMBOLS)[1:] == [
        "  middle+0x7/0x100 (interrupted)",
        "  ? main+0x15/0x100",
    ]


def test_from_the_stack_of_interrupts_to_the_task_s(memory: Memory) -> None:
    for page in range(IRQ_STACK, IRQ_STACK + 0x4000, 4096):
        memory.put(page, bytes(4096))
    memory.put_words(IRQ_STACK + 0x3F00, returns("inner"))
    memory.put_words(IRQ_STACK + 0x3FF8, TOP - 0x40)
    memory.put_words(TOP - 0x40, returns("main"))
    # One that leads back is not followed again.
    memory.put_words(TOP - 8, IRQ_STACK + 0x3F00)
    assert backtrace(registers(rsp=IRQ_STACK + 0x3E00), memory.read, SYMBOLS)[1:] == [
        "  ? inner+0x15/0x100",
        "  ? main+0x15/0x100",
    ]


def test_user_space(memory: Memory) -> None:
    where = registers(rip=0x46F1AB, cs=0x33)
    assert backtrace(where, memory.read, SYMBOLS) == ["rip 0x46f1ab (in user space)"]


MODULE = 0xFFFF_FFFF_C012_3000


def test_a_module_whose_functions_are_not_known(memory: Memory) -> None:
    """No name of the kernel's, nor one of another boot, is put on an address in a module."""
    memory.put(MODULE + 0x10, b"\xe8" + struct.pack("<i", TEXT + 0x300 - (MODULE + 0x15)))
    memory.put_words(TOP - 0x80, MODULE + 0x15, returns("main"))
    memory.put_words(TOP - 0x60, MODULE + 9, 0x10, 0x246, TOP - 0x40, 0x18)
    assert backtrace(registers(rip=MODULE + 0x234), memory.read, SYMBOLS) == [
        "rip 0xffffffffc0123234 (in a module)",
        "  ? 0xffffffffc0123015 (in a module)",
        "  ? main+0x15/0x100",
        "  0xffffffffc0123009 (in a module) (interrupted)",
    ]


def test_what_cannot_be_read(memory: Memory) -> None:
    where = registers(rip=0xDEAD, rsp=0xFFFF_8000_0000_0000)
    assert backtrace(where, memory.read, SYMBOLS) == [
        "rip 0xdead (in no function)",
        "  (the stack at 0xffff800000000000 cannot be read)",
    ]
    assert backtrace(registers(rsp=TOP - 7), memory.read, SYMBOLS)[1:] == [
        f"  (the stack pointer {TOP - 7:#x} is not aligned)"
    ]
    # A stack with a page missing is read up to that.
    del memory.pages[(TOP - 1) // 4096]
    memory.put_words(TOP - 0x2000, returns("main"))
    assert backtrace(registers(rsp=TOP - 0x2000), memory.read, SYMBOLS)[1:] == [
        "  ? main+0x15/0x100"
    ]


def test_a_stack_full_of_return_addresses(memory: Memory) -> None:
    memory.put_words(STACK, *[returns("main")] * 2048)
    assert len(backtrace(registers(rsp=STACK), memory.read, SYMBOLS)) <= 1 + LINES_MAX
    assert memory.reads < 200


def test_frame_pointers_in_a_circle(memory: Memory) -> None:
    frame = TOP - 0x100
    memory.put_words(frame, frame, returns("main"))
    lines = backtrace(registers(rbp=frame), memory.read, SYMBOLS)
    assert lines[1:] == ["  main+0x15/0x100"] * LINES_MAX


WORDS = st.integers(0, (1 << 64) - 1)
LIKELY = st.sampled_from([returns("main"), TOP - 0x100, STACK, 0x10, 0x18])
POINTERS = WORDS | st.integers(STACK, TOP)


@given(st.lists(LIKELY | WORDS, max_size=40), POINTERS, POINTERS)
def test_any_stack(words: list[int], rsp: int, rbp: int) -> None:
    memory = Memory()
    for page in range(STACK, TOP, 4096):
        memory.put(page, bytes(4096))
    memory.put_words(TOP - 0x140, *words)
    lines = backtrace(registers(rsp=rsp, rbp=rbp), memory.read, SYMBOLS)
    assert 1 <= len(lines) <= 1 + LINES_MAX
    assert all(line.isprintable() for line in lines)


def test_calls_as_the_assembler_makes_them(tmp_path: Path) -> None:
    """Every form of an indirect call is known, and no jump or push is taken for one."""
    registers = ("rax", "rbx", "rbp", "rsp", "r8", "r12", "r13")
    places = [f"(%{r})" for r in registers] + [f"0x12(%{r})" for r in registers]
    places += [f"0x12345(%{r})" for r in registers] + ["(%rax,%rbx,8)", "(%rbp,%r12,2)"]
    places += ["0x12(%rax,%rbx,8)", "0x12345(,%rbx,8)", "0x1234", "0x12345(%rip)"]
    operands = [f"*%{r}" for r in registers] + [f"*{place}" for place in places]
    for mnemonic, expected in (("call", True), ("jmp", False)):
        source, binary = tmp_path / f"{mnemonic}.s", tmp_path / mnemonic
        for operand in operands:
            source.write_text(f"{mnemonic} {operand}\n")
            subprocess.run(["as", "-o", f"{binary}.o", source], check=True, timeout=60)
            subprocess.run(
                ["objcopy", "-O", "binary", "-j", ".text", f"{binary}.o", binary],
                check=True, timeout=60,
            )  # fmt: skip
            code = (b"\x90" * 8 + binary.read_bytes())[-7:]
            found = any(module._is_indirect_call(code[-n:]) for n in range(2, 8))
            assert found == expected, (mnemonic, operand, code.hex())
