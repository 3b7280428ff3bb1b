"""The sandbox: the table, what is made of it, and what can be done in a thread's name."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.native import lib
from pyvirt.native.sandbox import bpf, generate
from pyvirt.native.sandbox.bpf import Argument, Instruction, Rule, assemble
from pyvirt.native.sandbox.syscalls import NUMBERS
from pyvirt.native.sandbox.table import FAMILIES, IOCTLS, LISTS, PROT_EXEC, calls, rules

from .injection import Captive
from .test_crash import PATIENCE, THREADS, died, find, started

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
OWN_PID = bpf.OWN_PID
LIST = {one.name: one for one in LISTS}


def verdict(
    program: list[Instruction],
    number: int,
    arguments: tuple[int, ...] = (),
    arch: int = bpf.ARCH_X86_64,
) -> int:
    """Run a program as the kernel does."""
    words = {bpf.NR: number, bpf.ARCH: arch}
    for index, value in enumerate((*arguments, *[0] * 6)[:6]):
        words[bpf.ARGUMENTS + 8 * index] = value & 0xFFFFFFFF
        words[bpf.ARGUMENTS + 8 * index + 4] = value >> 32
    accumulator = at = 0
    while True:
        code, jt, jf, k = program[at]
        at += 1
        if code == bpf.LOAD:
            accumulator = words[k]
        elif code == bpf.AND:
            accumulator &= k
        elif code == bpf.EQUAL:
            at += jt if accumulator == k else jf
        else:
            assert code == bpf.RETURN
            return k


def of(name: str, call: str, *arguments: int) -> int:
    return verdict(assemble(rules(LIST[name].entries)), NUMBERS[call], arguments)


def test_the_program_that_is_compiled_is_the_tables() -> None:
    message = "run: python -m pyvirt.native.sandbox.generate"
    assert generate.PROGRAMS.read_text(encoding="utf-8") == generate.programs(), message
    manual = generate.MANUAL.read_text(encoding="utf-8")
    assert generate.renewed(manual) == manual, message


def test_lists_have_the_order_that_c_knows() -> None:
    assert [getattr(lib, f"PV_SANDBOX_{one.name}") for one in LISTS] == list(range(len(LISTS)))
    assert len(LISTS) == lib.PV_SANDBOX_LISTS


def test_numbers_are_those_of_the_kernel() -> None:
    found = re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text(encoding="ascii"))
    here = {name: int(number) for name, number in found}
    assert not {name for name in NUMBERS.keys() & here.keys() if NUMBERS[name] != here[name]}


@pytest.mark.parametrize("name", [*IOCTLS])
def test_requests_are_those_of_the_kernel(name: str) -> None:
    known = getattr(lib, name, None) or getattr(termios, name, None)
    assert known in {None, IOCTLS[name]}


def test_families_are_those_of_the_kernel() -> None:
    for name, number in FAMILIES.items():
        assert getattr(socket, name) == number


def test_another_architecture_ends_the_process() -> None:
    for one in LISTS:
        program = assemble(rules(one.entries))
        assert verdict(program, NUMBERS["read"], arch=0x40000003) == bpf.KILL
        # x32, whose numbers are of the same architecture.
        assert verdict(program, NUMBERS["read"] | 0x40000000) == bpf.TRAP


ARGUMENT = st.builds(
    Argument,
    st.integers(0, 5),
    st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    st.sampled_from([0xFFFFFFFF, 0xFF, 6, 1]),
)
RULE = st.builds(
    Rule,
    st.sampled_from(["read", "write", "ioctl", "mmap"]),
    st.lists(ARGUMENT, max_size=3).map(tuple),
    st.sampled_from([0, errno.ENOSYS]),
)


def expected(given_rules: tuple[Rule, ...], call: str, arguments: tuple[int, ...]) -> int:
    """Say the same, of the rules themselves: the first that fits holds."""
    for rule in given_rules:
        fits = all(
            arguments[one.place] & one.mask & 0xFFFFFFFF in one.values for one in rule.arguments
        )
        if rule.call == call and fits:
            return bpf.ERRNO | rule.error if rule.error else bpf.ALLOW
    return bpf.TRAP


@given(
    st.lists(RULE, max_size=8).map(tuple),
    st.sampled_from(["read", "write", "ioctl", "mmap", "openat"]),
    st.tuples(*[st.integers(0, 9) | st.integers(0, 2**64 - 1)] * 6),
)
def test_a_program_says_what_its_rules_do(
    given_rules: tuple[Rule, ...], call: str, arguments: tuple[int, ...]
) -> None:
    program = assemble(given_rules)
    assert verdict(program, NUMBERS[call], arguments) == expected(given_rules, call, arguments)


def test_a_call_with_too_much_to_check_is_refused() -> None:
    with pytest.raises(ValueError, match="read: 301 instructions"):
        assemble((Rule("read", (Argument(0, tuple(range(298))),)),))


def test_no_call_takes_the_own_process_for_another() -> None:
    """Its number is put into the programs where they have this constant."""
    for one in LISTS:
        at = [i for i in assemble(rules(one.entries)) if i.k == OWN_PID]
        assert [i.code for i in at] == [bpf.EQUAL] * len(at)


@pytest.mark.parametrize("one", LISTS, ids=[one.name for one in LISTS])
def test_what_nobody_may(one: object) -> None:
    program = assemble(rules(one.entries))  # type: ignore[attr-defined]
    for call in ("execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "bpf",
                 "mount", "unshare", "setns", "chroot", "pivot_root", "setuid", "init_module",
                 "kexec_load", "process_vm_writev", "userfaultfd", "perf_event_open", "keyctl",
                 "open_by_handle_at", "personality"):  # fmt: skip
        assert verdict(program, NUMBERS[call]) == bpf.TRAP, call
    for call in ("mmap", "mprotect"):
        never = {bpf.TRAP, bpf.ERRNO | errno.EPERM}
        assert verdict(program, NUMBERS[call], (0, 0, 3 | PROT_EXEC)) in never, call
    assert verdict(program, NUMBERS["socket"], (16,)) != bpf.ALLOW, "AF_NETLINK"
    assert verdict(program, NUMBERS["socket"], (17,)) == bpf.TRAP, "AF_PACKET"
    assert verdict(program, NUMBERS["ioctl"], (0, 0x5412)) == bpf.TRAP, "TIOCSTI"
    assert verdict(program, NUMBERS["tgkill"], (1, 1, 9)) == bpf.TRAP


@pytest.mark.parametrize("name", [one.name for one in LISTS if one.name != "CONTROL"])
def test_what_only_python_may(name: str) -> None:
    for call in ("openat", "open", "unlink", "bind", "listen", "kill", "dup2", "memfd_create"):
        assert of(name, call) == bpf.TRAP, call
    families = {1} if name == "VSOCK" else set()
    found = {family for family in range(46) if of(name, "socket", family) == bpf.ALLOW}
    assert found == families


def test_what_a_vcpu_may_ask_of_kvm() -> None:
    found = {i for i in range(0x100) if of("VCPU", "ioctl", 0, 0xAE00 | i) == bpf.ALLOW}
    assert found == {0x80}
    # Bits above an int are none that the kernel looks at.
    assert of("VCPU", "ioctl", 0, 1 << 32 | IOCTLS["KVM_RUN"]) == bpf.ALLOW


def test_a_process_is_no_thread() -> None:
    thread = 0x3D0F00
    assert of("CONTROL", "clone", thread) == bpf.ALLOW
    assert of("CONTROL", "clone", signal.SIGCHLD) == bpf.TRAP
    assert of("CONTROL", "clone", 0x4100 | signal.SIGCHLD) == bpf.TRAP, "posix_spawn"
    for space in (0x20000, 0x10000000, 0x20000000, 0x40000000):
        assert of("CONTROL", "clone", thread | space) == bpf.TRAP
    assert of("CONTROL", "clone3") == bpf.ERRNO | errno.ENOSYS
    for one in LISTS[1:]:
        assert of(one.name, "clone", thread) == of(one.name, "clone3") == bpf.TRAP


def test_control_has_what_the_threads_that_it_starts_have() -> None:
    """All lists of a thread hold; a device's that is started later is under CONTROL, too."""
    control = {entry.rule for entry in LIST["CONTROL"].entries}
    free = {rule.call for rule in control if not rule.arguments}
    program = assemble(rules(LIST["CONTROL"].entries))
    for one in LISTS:
        for entry in one.entries:
            if entry.rule in control or entry.rule.call in free:
                continue
            assert entry.rule.call == "ioctl", (one.name, entry.rule)
            for value in entry.rule.arguments[0].values:
                assert verdict(program, NUMBERS["ioctl"], (0, value)) == bpf.ALLOW


PASSWD = b"/etc/passwd"
AT_FDCWD = -100
ESCAPES: tuple[tuple[str, tuple[int | bytes, ...]], ...] = (
    ("openat", (AT_FDCWD, PASSWD, os.O_RDONLY)),
    ("socket", (socket.AF_INET, socket.SOCK_STREAM, 0)),
    ("execve", (b"/bin/true", 0, 0)),
    ("ptrace", (16, 1, 0, 0)),
    ("mmap", (0, 4096, 7, 0x22, -1, 0)),
    ("kill", (1, 0)),
    ("clone", (signal.SIGCHLD, 0, 0, 0, 0)),
    ("dup", (0,)),
    ("tgkill", (1, 1, 0)),
)
# The list of each kind, which is that of its first word but for these.
NAMES = {"uring": "disk", "threads": "disk_pool", "python": "control"}
# What Python may, as monitors and hot-plug need it, or fails.
FREE = {"openat", "socket", "kill", "dup", "mmap"}


@pytest.mark.parametrize("kind", THREADS)
def test_a_thread_that_is_taken_over_gets_nowhere(kind: str) -> None:
    process = started(kind, "sandbox")
    comm, name, _ = THREADS[kind]
    thread = find(process.pid, comm, filters=1)
    captive = Captive(process.pid, thread)
    for call, arguments in ESCAPES:
        if kind == "python" and call in FREE:
            continue
        assert captive.call(NUMBERS[call], *arguments) == signal.SIGSYS, call
    captive.let(signal.SIGSYS)
    line = died(process, signal.SIGSYS)
    expected_line = (
        r"pyvirt: SIGSYS at the system call tgkill \(234\) with 0x1, 0x1, 0x0, which is not on "
        rf"the list {NAMES.get(kind, kind)}: thread {thread} \({re.escape(name)}\).*; please report"
    )
    assert re.fullmatch(expected_line, line), line


IO_URING = """
import ctypes, os
from pyvirt.native import lib
assert lib.pv_sandbox_arm(lib.PV_SANDBOX_ON) == 0
print(lib.pv_uring_probe())
"""


def test_a_ring_can_be_made_that_does_no_more_than_disks_ask() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IO_URING], capture_output=True, timeout=PATIENCE, check=True
    )
    assert int(done.stdout) in {0, -errno.ENOSYS, -errno.EPERM, -errno.ENOMEM}


def test_calls_are_few() -> None:
    """A call more is to be argued for."""
    assert len(calls(LIST["CONTROL"])) <= 108
    assert {one.name: len(calls(one)) for one in LISTS[1:] if len(calls(one)) >= 25} == {}
    assert len({call for one in LISTS[1:] for call in calls(one)}) < 60
