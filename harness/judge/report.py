"""What is known of a VM, in sections for the report of a test that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import PyvirtError
from . import evidence
from .backtrace import backtrace as walk

if TYPE_CHECKING:
    from ..vm.life import Life
    from ..vm.vm import VM

CONSOLE = "guest console (last lines)"
KERNEL = "kernel report"
VCPU = "vCPU state"
QMP = "QMP log"
REPRODUCE = "reproduce"
FILES = "log files"
_QMP_LINES = 40


def sections(vm: Life) -> dict[str, str]:
    """Return texts by the titles of their sections; boots nothing, and raises nothing."""
    said = vm.qmp_log  # without what is asked from here on
    found = {CONSOLE: console(vm)}
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


def console(vm: Life) -> str:
    """Return the console's last lines."""
    return evidence.last_lines(vm.console)


def vcpu_state(vm: Life) -> str:
    """Return where the vCPUs are; of a monitor that is gone, what it said last."""
    if vm.has_monitor:
        try:
            return evidence.vcpus(vm.qmp, vm.symbols())
        except PyvirtError as error:
            return f"({error})"
    return vm.messages.strip()


def backtrace(vm: VM, vcpu: int) -> list[str]:
    """Return where one vCPU is, and its callers; PyvirtError."""
    names = vm.symbols()
    was_running = vm.qmp.execute("query-status")["running"]
    vm.qmp.execute("stop")
    try:
        memory = evidence.Memory(vm.qmp, vcpu)
        return walk(vm.regs(vcpu), memory.read, names)
    finally:
        if was_running:
            vm.qmp.execute("cont")
