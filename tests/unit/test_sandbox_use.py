"""What says which entries of the sandbox's lists are made use of, and which by nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyvirt.native import lib
from pyvirt.native.sandbox.bpf import assemble
from pyvirt.native.sandbox.syscalls import NUMBERS
from pyvirt.native.sandbox.table import APART, LISTS, List, rules
from pyvirt.vmm.sandbox import RECORD

from .. import __main__ as suite
from .. import sandbox_rare, sandbox_use
from .native.injection import Captive
from .native.test_crash import THREADS, died, find, started
from .native.test_sandbox import verdict

ROOT = Path(suite.__file__).parents[1]
NOTHING = bytes(sandbox_use.SIZE)
EVERYTHING = b"\1" * sandbox_use.SIZE
ASKS = """
import os
def test_asks():
    with open(os.environ["PYVIRT_SANDBOX_RECORD"], "r+b") as file:
        file.write(b"\\1")
"""


def place(name: str, call: str) -> int:
    """Return where a record has a call that is free on a list."""
    number, one = next((i, one) for i, one in enumerate(LISTS) if one.name == name)
    found = {entry.rule.call: at for at, entry in sandbox_use.places(one)}
    length: int = lib.PV_SANDBOX_LENGTH_MAX
    return number * length + found[call]


@pytest.mark.parametrize("one", LISTS, ids=[one.name for one in LISTS])
def test_each_entry_has_its_place(one: List) -> None:
    found = dict(sandbox_use.places(one))
    assert sorted(found.values()) == sorted(one.entries)
    program = assemble(rules(one.entries))
    for at, entry in found.items():
        rule = entry.rule
        arguments = [0] * 6
        for argument in rule.arguments:
            arguments[argument.place] = argument.values[0]
        assert verdict(program, NUMBERS[rule.call], tuple(arguments)) == program[at].k


def test_who_calls_is_noted_and_who_does_not_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thread that is then taken over, and gets nowhere as ever."""
    file = tmp_path / "record"
    file.write_bytes(NOTHING)
    monkeypatch.setenv(RECORD, str(file))
    process = started("net", "sandbox")
    thread = find(process.pid, THREADS["net"][0], filters=1)
    captive = Captive(process.pid, thread)
    assert captive.call(NUMBERS["execve"], b"/bin/true", 0, 0) == signal.SIGSYS
    captive.let(signal.SIGSYS)
    assert "the system call execve (59)" in died(process, signal.SIGSYS)
    record = file.read_bytes()
    assert record[place("NET", "ppoll")]
    assert record[place("CONTROL", "ppoll")]
    assert record[place("NET", "write")], "the last line"
    assert not record[place("NET", "sendmsg")]
    assert not any(record[place("VSOCK", call)] for call in ("epoll_wait", "write", "futex"))
    names = sandbox_use.unused(record)
    assert "NET: sendmsg" in names
    assert "NET: ppoll" not in names


def test_what_is_not_used_is_told_at_the_end_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert sandbox_use.unused(EVERYTHING) == []
    names = sandbox_use.unused(NOTHING)
    assert "VCPU: ioctl KVM_RUN" in names
    assert not [name for name in names if name.split()[1] in APART]
    group = suite.Group("host", ["tests"], may_be_empty=True)
    assert suite.report([group], [], ["VCPU: read"]) == 1
    assert "no test has needed, of its lists: VCPU: read;" in capsys.readouterr().out
    assert suite.report([group], []) == 0


def test_what_is_rare_is_listed_and_has_a_reason() -> None:
    """An entry that is used after all does no harm there, one that went from the list does."""
    names = {name.removeprefix("CONTROL: ") for name in sandbox_use.unused(NOTHING)}
    assert sandbox_rare.RARE.keys() - names == set()
    assert sandbox_use.needless(EVERYTHING) == []
    needless = set(sandbox_use.needless(NOTHING))
    assert {"openat", "rename", "io_uring_setup"} <= needless <= names
    assert not needless & sandbox_rare.RARE.keys()


def test_records_are_merged() -> None:
    one, two = bytearray(NOTHING), bytearray(NOTHING)
    at = place("RNG", "readv")
    one[at] = two[at + 1] = 1
    missed = len(LISTS) * lib.PV_SANDBOX_LENGTH_MAX
    key = 1 << 63 | 1 << 48 | NUMBERS["openat"] << 32
    for record in (one, two):
        record[missed : missed + 8] = key.to_bytes(8, "little")
    both = sandbox_use.merged([bytes(one), b"", bytes(two)])
    assert both[at]
    assert both[at + 1]
    assert sandbox_use.missed(both) == ["VCPU: openat 0x0"]


def test_the_plugin_keeps_what_is_noted(tmp_path: Path) -> None:
    test = tmp_path / "test_asks.py"
    test.write_text(ASKS)
    kept = tmp_path / "kept"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.sandbox_use"]
    command += ["--sandbox-use", str(kept), "-p", "no:cacheprovider"]
    command += ["--rootdir", str(tmp_path), "-c", "/dev/null", str(test)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60, capture_output=True)
    assert kept.read_bytes() == b"\1" + NOTHING[1:]
