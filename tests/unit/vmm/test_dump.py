"""Guest memory as files: raw, and as an ELF core that other programs read."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from pyvirt.errors import BackendError
from pyvirt.vmm import dump
from pyvirt.vmm.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
SIZE = 128 * MIB
NAMES = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11"),
    *("r12", "r13", "r14", "r15", "rip", "rflags", "cs", "ss", "ds", "es", "fs", "gs"),
    *("fs_base", "gs_base"),
)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(SIZE)
    yield memory
    memory.close()


def refusal(path: Path, memory: GuestMemory) -> str:
    with pytest.raises(BackendError) as info:
        dump.save(str(path), memory, [(0, 4096)])
    return str(info.value)


def test_pieces_one_behind_the_other(memory: GuestMemory, tmp_path: Path) -> None:
    memory.write(0x1000, b"abc")
    memory.write(5 * MIB - 1, b"de")
    path = tmp_path / "out"
    dump.save(str(path), memory, [(0x1000, 4), (5 * MIB - 1, 2)])
    assert path.read_bytes() == b"abc\0de"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["out"]


def test_zeroes_are_holes(memory: GuestMemory, tmp_path: Path) -> None:
    memory.write(100 * MIB, b"x")
    path = tmp_path / "out"
    dump.save(str(path), memory, [(0, SIZE)])
    assert path.stat().st_size == SIZE
    assert path.stat().st_blocks * 512 <= 2 * MIB
    with path.open("rb") as file:
        file.seek(100 * MIB)
        assert file.read(2) == b"x\0"


def test_what_is_there_stays_when_it_fails(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    with pytest.raises(IndexError):
        dump.save(str(path), memory, [(0, 4096), (SIZE, 1)])
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["out"]
    dump.save(str(path), memory, [(0, 1)])
    assert path.read_bytes() == b"\0"


def test_where_no_file_can_be(memory: GuestMemory, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert refusal(fifo, memory) == f"{fifo}: it is there and no regular file; name another"
    assert refusal(tmp_path, memory) == f"{tmp_path}: it is there and no regular file; name another"
    lost = tmp_path / "no" / "out"
    assert refusal(lost, memory) == f"{lost}: No such file or directory"
    assert sorted(os.listdir(tmp_path)) == ["fifo"]


def test_core(memory: GuestMemory, tmp_path: Path) -> None:
    memory.write(0x1000, b"inside")
    vcpus = [{name: 0x100 * vcpu + at for at, name in enumerate(NAMES)} for vcpu in (1, 2)]
    path = tmp_path / "core"
    dump.save_core(str(path), memory, vcpus)
    said = subprocess.run(
        ["readelf", "-hlnW", path], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "CORE (Core file)" in said
    assert said.count("NT_PRSTATUS") == 2
    (offset,) = re.findall(rf"LOAD +0x(\w+) 0x0+ 0x0+ 0x0*{SIZE:x} 0x0*{SIZE:x} RWE", said)
    with path.open("rb") as file:
        file.seek(int(offset, 16) + 0x1000)
        assert file.read(6) == b"inside"


def test_gdb_s_view_of_the_registers(memory: GuestMemory, tmp_path: Path) -> None:
    """The note's places, against the structure that the C compiler knows."""
    source = tmp_path / "places.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <sys/procfs.h>\n#include <sys/user.h>\n"
        "#define R(name) offsetof(struct elf_prstatus, pr_reg) "
        "+ offsetof(struct user_regs_struct, name)\n"
        'int main(void) { printf("%zu %zu %zu %zu %zu\\n", sizeof(struct elf_prstatus), '
        "offsetof(struct elf_prstatus, pr_pid), R(rip), R(rsp), R(gs_base)); }\n"
    )
    program = tmp_path / "places"
    subprocess.run(["gcc", "-o", program, source], check=True, timeout=60)
    said = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60)
    size, pid, rip, rsp, gs_base = map(int, said.stdout.split())
    values = {name: 0x1000 + at for at, name in enumerate(NAMES)}
    note = dump._prstatus(6, values)
    status = note[20:]
    assert len(status) == size
    for place, value in ((rip, values["rip"]), (rsp, values["rsp"]), (gs_base, values["gs_base"])):
        assert int.from_bytes(status[place : place + 8], "little") == value
    assert int.from_bytes(status[pid : pid + 4], "little") == 7
