"""Looking into the guest, and the few words of the human monitor that tools use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import QmpError
from ...vmm.hotplug import BLOCK
from ..host import RUNNING
from ..schema import Arguments, Command, Field, Integer, Struct, Text, shown
from ..version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..session import Session

_WORD = 4  # bytes that query-mem-gpa returns
_ADDRESS_DIGITS = 16
_REGISTERS = tuple(
    tuple((word.upper(), {"rfl": "rflags"}.get(word, word)) for word in row.split())
    for row in (
        "rax rbx rcx rdx", "rsi rdi rbp rsp", "r8 r9 r10 r11", "r12 r13 r14 r15", "rip rfl",
        "cr0 cr2 cr3 cr4", "efer",
    )
)  # fmt: skip
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr")
_TABLES = ("gdt", "idt")


def _memory(session: Session, given: Arguments) -> object:
    digits = given.gpa.removeprefix("0x")
    if not (digits.isascii() and digits.isalnum() and len(digits) <= _ADDRESS_DIGITS):
        raise QmpError(f"`gpa` {given.gpa} is no hexadecimal address")
    try:
        address = int(digits, 16)
    except ValueError:
        raise QmpError(f"`gpa` {given.gpa} is no hexadecimal address") from None
    try:
        data = session.monitor.host.read_memory(address, _WORD)
    except IndexError:
        raise QmpError(f"`gpa` {given.gpa} is not in the guest's memory") from None
    return f"{int.from_bytes(data, 'little'):X}"


def _register(session: Session, given: Arguments) -> object:
    host = session.monitor.host
    count = len(host.vcpu_threads())
    if given.vcpu >= count:
        raise QmpError(f"`vcpu` {given.vcpu}: the machine has {count}, counted from 0")
    try:
        value = host.read_register(given.vcpu, given.addr)
    except KeyError:
        raise QmpError(f"`addr` {given.addr} is no register; give one such as rip or cr3") from None
    return f"{value:X}"


def _registers(session: Session, _: Arguments) -> object:
    return [
        {"cpu-index": vcpu, "registers": values}
        for vcpu, values in enumerate(session.monitor.host.read_registers())
    ]


def _nmi(session: Session, _: Arguments) -> object:
    session.monitor.host.inject_nmi()
    return {}


def _info_registers(session: Session, vcpu: int) -> str:
    """Return a vCPU's registers, laid out as QEMU does."""
    registers = session.monitor.host.read_registers()
    if vcpu >= len(registers):
        raise QmpError(f"`cpu-index` {vcpu}: the machine has {len(registers)}, counted from 0")
    return _layout(vcpu, registers[vcpu])


def _layout(vcpu: int, registers: dict[str, int]) -> str:
    lines = [f"CPU#{vcpu}"]
    lines += [
        " ".join(f"{word:3}={registers.get(name, 0):016x}" for word, name in row)
        for row in _REGISTERS
    ]
    lines += [
        f"{name.upper():3}={registers.get(name, 0):04x} {registers.get(name + '_base', 0):016x}"
        for name in _SEGMENTS
    ]
    lines += [f"{name.upper()}=     {registers.get(name + '_base', 0):016x}" for name in _TABLES]
    return "\r\n".join(lines)


def _info_all_registers(session: Session, _: int) -> str:
    every = session.monitor.host.read_registers()
    return "\r\n\r\n".join(_layout(vcpu, registers) for vcpu, registers in enumerate(every))


def _info_status(session: Session, _: int) -> str:
    state = session.monitor.host.state()
    return f"VM status: {'running' if state == RUNNING else state}"


def _info_name(session: Session, _: int) -> str:
    return session.monitor.host.name


def _info_version(_: Session, __: int) -> str:
    return str(VERSION["package"])


def _info_snapshots(_: Session, __: int) -> str:
    return "There is no snapshot available."


def _info_block(session: Session, _: int) -> str:
    host = session.monitor.host
    return "\r\n".join(
        f"{device.id}: slot {device.slot}, {image.path}, {image.size} bytes"
        + (", read-only" if image.readonly else "")
        for device in host.inventory.devices(BLOCK)
        for image in (host.image(device.backend.resource),)
    )


_HUMAN: dict[str, Callable[[Session, int], str]] = {
    "info block": _info_block,
    "info name": _info_name,
    "info registers": _info_registers,
    "info registers -a": _info_all_registers,
    "info snapshots": _info_snapshots,
    "info status": _info_status,
    "info version": _info_version,
}


def _human(session: Session, given: Arguments) -> object:
    line = " ".join(given.command_line.split())
    if line not in _HUMAN:
        raise QmpError(f"Unsupported command: {shown(line)}; there are {', '.join(_HUMAN)}")
    return _HUMAN[line](session, given.cpu_index) + "\r\n"


COMMANDS = (
    Command(
        "query-mem-gpa",
        "Returns the 32-bit word at a guest-physical address, in hexadecimal.",
        _memory,
        Struct(Field("gpa", Text(18), "the address, hexadecimal")),
        since="v2",
        example=('{"gpa": "13c4d1d00"}', '"B9000001"'),
    ),
    Command(
        "query-vcpu-reg",
        "Returns a register of a vCPU, in hexadecimal; the guest stands still meanwhile.",
        _register,
        Struct(
            Field(
                "addr", Text(16), "the register's name: rax to r15, rip, rflags, cr0 to cr4, efer"
            ),
            Field("vcpu", Integer(0, 253), "the vCPU, counted from 0"),
        ),
        since="v2",
        example=('{"addr": "rip", "vcpu": 0}', '"FFFFFFFF81C013F0"'),
    ),
    Command(
        "x-query-registers",
        "Returns the registers of all vCPUs at one moment, segments by their selectors; the guest "
        "stands still meanwhile.",
        _registers,
        since="pyvirt",
        example=("", '[{"cpu-index": 0, "registers": {"rax": 0, "rip": 18446744071592580080}}]'),
    ),
    Command(
        "inject-nmi",
        "Raises a non-maskable interrupt in every vCPU. A Linux that was told to "
        "(`unknown_nmi_panic`) panics and says where it was, even with interrupts off.",
        _nmi,
        since="pyvirt",
        example=("", "{}"),
    ),
    Command(
        "human-monitor-command",
        f"Runs one of: {', '.join(_HUMAN)}.",
        _human,
        Struct(
            Field("command-line", Text(4096), "the command"),
            Field(
                "cpu-index",
                Integer(0, 253),
                "whose registers",
                optional=True,
                default=0,
            ),
        ),
        since="v2",
        example=('{"command-line": "info snapshots"}', '"There is no snapshot available.\\r\\n"'),
    ),
)
