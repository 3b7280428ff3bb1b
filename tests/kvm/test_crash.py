"""A thread of `pyvirt run` that dies: the line, and what a core dump has of the guest."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

from ..unit.native.test_crash import died, find, tgkill
from .support import MEMORY
from .test_qmp_run import Monitored

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Kernel = Callable[[str], Path]


pytestmark = pytest.mark.any_kvm


@pytest.mark.parametrize(
    ("comm", "name", "number"),
    [
        ("main", "main", signal.SIGSEGV),
        ("qmp", "qmp", signal.SIGBUS),
        ("vcpu0", "vcpu0", signal.SIGILL),
        ("console serial0", "console), device serial0", signal.SIGFPE),
        ("main", "main", signal.SIGABRT),
    ],
)
def test_each_of_our_own_threads(
    kernel: Kernel, comm: str, name: str, number: signal.Signals
) -> None:
    with Monitored(kernel("spin"), "-machine", "dump-guest-core=off") as guest:
        pid = guest.process.pid
        thread = pid if comm == "main" else find(guest.process.pid, comm)
        tgkill(pid, thread, number)
        line = died(guest.process, number)
        assert re.match(
            rf"pyvirt: {number.name} sent by process {os.getpid()}: "
            rf"thread {thread} \({re.escape(name.rstrip(')'))}",
            line,
        ), line


def vm_flags(pid: int, size: int) -> list[set[str]]:
    """Return the flags of the mappings of at least `size` bytes that are no file of the host's."""
    found, large = [], False
    with open(f"/proc/{pid}/smaps", encoding="ascii") as file:
        for line in file:
            first, _, rest = line.partition(" ")
            if re.fullmatch("[0-9a-f]+-[0-9a-f]+", first):
                begin, end = (int(part, 16) for part in first.split("-"))
                large = end - begin >= size
            elif first == "VmFlags:" and large:
                found.append(set(rest.split()))
    return found


@pytest.mark.parametrize("share", ["off", "on"])
@pytest.mark.parametrize("dump", ["", ",dump-guest-core=off", ",dump-guest-core=on"])
def test_core_dumps_have_guest_memory_where_it_is_asked_for(
    kernel: Kernel, share: str, dump: str
) -> None:
    with Monitored(kernel("spin"), "-machine", f"microvm,mem-share={share}{dump}") as guest:
        (flags,) = vm_flags(guest.process.pid, MEMORY)
        assert ("dd" not in flags) == dump.endswith("on")


def test_guest_memory_cannot_be_cut_by_who_shares_it(kernel: Kernel) -> None:
    with Monitored(kernel("spin"), "-machine", "microvm,mem-share=on") as guest:
        folder = f"/proc/{guest.process.pid}/fd"
        files = (f"{folder}/{fd}" for fd in os.listdir(folder))
        memory = next(file for file in files if "pyvirt-ram" in os.readlink(file))
        for size in (0, 1 << 40):
            with pytest.raises(PermissionError):
                os.truncate(memory, size)
        assert guest.client.execute("system_reset") == {}, "its pages can be given back"
