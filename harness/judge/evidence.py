"""The state of a VM as text, for people who read why a test failed."""

from __future__ import annotations

import base64
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...qmp.client import Client, CommandError
from .backtrace import backtrace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..text import Line
    from .splat import Splat
    from .subject import Console
    from .symbols import Symbols

REPORT = "kernel report"  # title of what `kernel_report` returns
_PAGE = 4096
_LINES = 60
_SILENCE_S = 1.0  # less is not worth a line
_REGISTERS = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
    ("cr0", "cr2", "cr3", "cr4"),
    ("efer", "fs_base", "gs_base", "rflags"),
)
_INTERRUPT_FLAG = 1 << 9
_CPL = 3


def kernel_report(splat: Splat) -> str:
    """Return a report of the kernel's, under its kind, title and fingerprint."""
    head = f"{splat.kind}: {splat.title} [{splat.fingerprint}]"
    return "\n".join([head, *splat.lines])


def last_lines(console: Console, count: int = _LINES, *, reports: bool = True) -> str:
    """Return the newest lines of a console, and how long it has been silent.

    Without `reports`, a line stands for each of the kernel's, which are shown elsewhere.
    """
    lines = console.since()
    if not reports:
        lines = _without(lines, console.splats)
    return _shown([line.text for line in lines], console, count)


def _without(lines: list[Line], splats: Sequence[Splat]) -> list[Line]:
    """Return the lines with one in place of each report; what programs said within it stays."""
    starts = [line.mark for line in lines]
    found: list[Line | None] = list(lines)
    for splat in splats:
        at = bisect_right(starts, splat.mark) - 1
        wanted = list(reversed(splat.lines))
        if at < 0 or not lines[at].text.endswith(wanted[-1]):
            continue  # its beginning is not kept any more
        for index in range(at, len(lines)):
            if wanted and lines[index].text.endswith(wanted[-1]):
                wanted.pop()
                found[index] = None
        found[at] = lines[at]._replace(text=f"({splat.title}: see the {REPORT})")
    return [line for line in found if line is not None]


def _shown(lines: list[str], console: Console, count: int) -> str:
    silence = time.monotonic() - console.last_byte_at
    shown = lines[-count:]
    if len(lines) > count:
        shown.insert(0, f"({len(lines) - count} lines before)")
    if silence >= _SILENCE_S:
        shown.append(f"(nothing more for {silence:.0f} s)")
    return "\n".join(shown or ["(nothing)"])


def vcpu_state(registers: Mapping[str, int], stack: Sequence[str]) -> str:
    """Return where a vCPU is (`stack` is what `backtrace` returns), and its registers."""
    mode = "user" if registers["cs"] & _CPL else "kernel"
    interrupts = "on" if registers["rflags"] & _INTERRUPT_FLAG else "off"
    rows = ["  ".join(f"{name:7} {registers[name]:016x}" for name in row) for row in _REGISTERS]
    return "\n".join([f"{mode} mode, interrupts {interrupts}", *stack, "", *rows])


def vcpus(qmp: Client, symbols: Symbols) -> str:
    """Return `vcpu_state` for every vCPU; the machine stands meanwhile. BackendError.

    It takes hundreds of commands: the monitor's socket is to have `throttle=off`.
    """
    was_running = qmp.execute("query-status")["running"]
    try:
        qmp.execute("stop")
        return "\n\n".join(
            f"vCPU {one['cpu-index']}: {_state(qmp, symbols, one)}"
            for one in qmp.execute("x-query-registers")
        )
    except CommandError as error:
        return f"({error})"
    finally:
        if was_running:
            qmp.execute("cont")


def _state(qmp: Client, symbols: Symbols, one: dict[str, Any]) -> str:
    memory = Memory(qmp, one["cpu-index"])
    registers = one["registers"]
    return vcpu_state(registers, backtrace(registers, memory.read, symbols))


def registers(qmp: Client, vcpu: int) -> dict[str, int]:
    """Return the registers of a vCPU by name, segments by their selectors; ConfigError."""
    everything = qmp.execute("x-query-registers")
    if not 0 <= vcpu < len(everything):
        raise ConfigError(f"regs: vcpu {vcpu}: there are {len(everything)}, counted from 0")
    return dict(everything[vcpu]["registers"])


class Memory:
    """Virtual memory as a vCPU of a standing machine sees it, each page asked for once."""

    def __init__(self, qmp: Client, vcpu: int) -> None:
        self._qmp = qmp
        self._vcpu = vcpu
        self._pages: dict[int, bytes] = {}  # b"" for one that is not there

    def read(self, address: int, length: int) -> bytes:
        """Return bytes; IndexError."""
        data = b""
        while len(data) < length:
            page, offset = divmod(address + len(data), _PAGE)
            data += self._page(page)[offset : offset + length - len(data)]
        return data

    def _page(self, number: int) -> bytes:
        if number not in self._pages:
            where = {"val": number * _PAGE, "size": _PAGE, "virtual": True, "cpu-index": self._vcpu}
            try:
                answer = self._qmp.execute("x-read-memory", where)
                self._pages[number] = base64.b64decode(answer["data"])
            except CommandError:
                self._pages[number] = b""
        if not self._pages[number]:
            raise IndexError(f"{number * _PAGE:#x} is not there")
        return self._pages[number]
