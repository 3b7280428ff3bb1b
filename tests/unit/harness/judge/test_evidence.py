"""What a failed test shows of its VM."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any, cast

import pytest
from pyvirt.harness.judge import evidence, report
from pyvirt.harness.judge.symbols import Symbols
from pyvirt.harness.vm.console import Console
from pyvirt.qmp.client import Client, CommandError

from ..kernel_log import BOOT, stamped, warning
from .test_backtrace import MODULE, STACK, SYMBOLS, TOP, Memory, returns

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvirt.harness.judge.subject import Subject

NAMES = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11"),
    *("r12", "r13", "r14", "r15", "cr0", "cr2", "cr3", "cr4", "efer", "fs_base", "gs_base"),
)
REGISTERS = dict.fromkeys(NAMES, 0) | {
    "rip": returns("leaf", 4), "rsp": TOP - 0x100, "rflags": 0x46, "cs": 0x10
}  # fmt: skip


class Monitor:
    """The commands that evidence asks for, of a machine with two vCPUs."""

    def __init__(self) -> None:
        self.memory = Memory()
        for page in range(STACK, TOP, 4096):
            self.memory.put(page, bytes(4096))
        self.asked: list[str] = []
        self.is_running = True
        self.refuses = ""

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self.asked.append(command)
        if command == self.refuses:
            raise CommandError(command, "GenericError", "the machine has ended")
        if command == "query-status":
            return {"running": self.is_running}
        if command == "x-query-registers":
            user = REGISTERS | {"cs": 0x33, "rflags": 0x246, "rip": 0x46F1AB}
            return [{"cpu-index": n, "registers": r} for n, r in enumerate((REGISTERS, user))]
        if command == "x-read-memory":
            assert arguments is not None
            try:
                data = self.memory.read(arguments["val"], arguments["size"])
            except IndexError:
                raise CommandError(command, "GenericError", "not there") from None
            return {"data": base64.b64encode(data).decode()}
        return {}

    def client(self) -> Client:
        return cast("Client", self)


def test_every_vcpu() -> None:
    monitor = Monitor()
    monitor.memory.put_words(TOP - 0x80, returns("inner"), returns("main"))
    text = evidence.vcpus(monitor.client(), SYMBOLS)
    first, second = text.split("\n\nvCPU 1: ")
    assert first.splitlines()[:5] == [
        "vCPU 0: kernel mode, interrupts off",
        f"rip {returns('leaf', 4):#x} leaf+0x4/0x100",
        "  ? inner+0x15/0x100",
        "  ? main+0x15/0x100",
        "",
    ]
    assert f"rsp     {TOP - 0x100:016x}" in first
    assert second.splitlines()[:2] == [
        "user mode, interrupts on",
        "rip 0x46f1ab (in user space)",
    ]
    # One read a page, and the machine runs again.
    assert monitor.asked.count("x-read-memory") <= 4
    assert monitor.asked[-1] == "cont"


def test_a_machine_that_stood_stays_so() -> None:
    monitor = Monitor()
    monitor.is_running = False
    evidence.vcpus(monitor.client(), SYMBOLS)
    assert "cont" not in monitor.asked


@pytest.mark.parametrize("command", ["stop", "x-query-registers"])
def test_a_machine_that_has_ended(command: str) -> None:
    monitor = Monitor()
    monitor.refuses = command
    text = evidence.vcpus(monitor.client(), Symbols([]))
    assert text == f"({command}: the machine has ended (GenericError))"


def test_a_stack_that_is_not_there() -> None:
    monitor = Monitor()
    monitor.refuses = "x-read-memory"
    text = evidence.vcpus(monitor.client(), SYMBOLS)
    assert f"  (the stack at {TOP - 0x100:#x} cannot be read)" in text.splitlines()


class Living:
    """What a report wants of a VM; its module's functions are known while it runs."""

    has_monitor = True
    messages = ""

    def __init__(self, qmp: Client, *, is_running: bool) -> None:
        self.qmp = qmp
        self.is_running = is_running

    def symbols(self) -> Symbols:
        return SYMBOLS

    def symbols_of_boot(self) -> Symbols:
        return Symbols([(MODULE, "spin [frob]"), (MODULE + 0x400, "")])


@pytest.mark.parametrize(
    ("is_running", "name"), [(True, "spin+0x234/0x400 [frob]"), (False, "(in a module)")]
)
def test_a_module_is_named_by_this_boot_or_not_at_all(
    is_running: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTERS, "rip", MODULE + 0x234)
    vm = cast("Subject", Living(Monitor().client(), is_running=is_running))
    assert report.vcpu_state(vm).splitlines()[1] == f"rip {MODULE + 0x234:#x} {name}"


def test_a_report_with_its_title() -> None:
    console = Console()
    console.feed(stamped(BOOT + warning()))
    console.close()
    (splat,) = console.splats
    lines = evidence.kernel_report(splat).splitlines()
    assert lines[0] == f"warned: WARNING: at drivers/frob.c:91 frob [{splat.fingerprint}]"
    assert tuple(lines[1:]) == splat.lines


def test_a_report_stands_once() -> None:
    console = Console()
    log = stamped(BOOT + warning() + "random: crng init done\n").splitlines(keepends=True)
    console.feed(b"".join([*log[:8], b"a program's words\r\n", *log[8:]]))
    console.close()
    (splat,) = console.splats
    lines = evidence.last_lines(console, reports=False).splitlines()
    assert not set(lines) & set(splat.lines)
    assert lines[-4:] == [
        log[4].decode().strip(),
        f"({splat.title}: see the kernel report)",
        "a program's words",
        log[-1].decode().strip(),
    ]
    # Where nothing else shows the report, the console does.
    assert set(splat.lines) < set(evidence.last_lines(console).splitlines())


def test_the_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console()
    assert evidence.last_lines(console) == "(nothing)"
    console.feed(b"".join(b"line %d\r\n" % n for n in range(5)))
    assert evidence.last_lines(console) == "\n".join(f"line {n}" for n in range(5))
    assert evidence.last_lines(console, 2) == "(3 lines before)\nline 3\nline 4"
    now: Callable[[], float] = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 12.0)
    assert evidence.last_lines(console, 1) == "(4 lines before)\nline 4\n(nothing more for 12 s)"
