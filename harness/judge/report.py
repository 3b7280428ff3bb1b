"""What is known of a VM, in sections for the report of a test that failed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ...errors import PyvirtError
from . import evidence
from .backtrace import backtrace as walk
from .symbols import IN_A_MODULE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .subject import Subject
    from .symbols import Symbols

CONSOLE = "guest console (last lines)"
KERNEL = evidence.REPORT
VCPU = "vCPU state"
QMP = "QMP log"
REPRODUCE = "reproduce"
FILES = "log files"
_QMP_LINES = 40


def sections(vm: Subject) -> dict[str, str]:
    """Return texts by the titles of their sections; boots nothing, and raises nothing."""
    said = vm.qmp_log  # without what is asked from here on
    found = {CONSOLE: evidence.last_lines(vm.console, reports=False)}
    if vm.splats():
        found[KERNEL] = "\n\n".join(evidence.kernel_report(splat) for splat in vm.splats())
    state = vcpu_state(vm)
    if state:
        found[VCPU] = state
    if said:
        found[QMP] = "\n".join(said[-_QMP_LINES:])
    if vm.words:
        found[REPRODUCE] = vm.reproduce()
        found[FILES] = str(vm.log_dir)
    return found


def console(vm: Subject) -> str:
    """Return the console's last lines."""
    return evidence.last_lines(vm.console)


def vcpu_state(vm: Subject) -> str:
    """Return where the vCPUs are; of a monitor that is gone, what it said last."""
    if vm.has_monitor:
        try:
            return _named(vm, lambda names: evidence.vcpus(vm.qmp, names))
        except PyvirtError as error:
            return f"({error})"
    return vm.messages.strip()


def backtrace(vm: Subject, vcpu: int) -> list[str]:
    """Return where one vCPU is, and its callers; PyvirtError."""
    return _named(vm, lambda names: "\n".join(_backtrace(vm, vcpu, names))).split("\n")


def _named(vm: Subject, look: Callable[[Symbols], str]) -> str:
    """Return what `look` finds, once more with this boot's modules where it is in one.

    A guest that is asked for them must be alive.
    """
    text = look(vm.symbols())
    if IN_A_MODULE in text and vm.is_running:
        with contextlib.suppress(PyvirtError):
            text = look(vm.symbols_of_boot())
    return text


def _backtrace(vm: Subject, vcpu: int, names: Symbols) -> list[str]:
    was_running = vm.qmp.execute("query-status")["running"]
    vm.qmp.execute("stop")
    try:
        memory = evidence.Memory(vm.qmp, vcpu)
        return walk(evidence.registers(vm.qmp, vcpu), memory.read, names)
    finally:
        if was_running:
            vm.qmp.execute("cont")
