"""A pytest plugin that has monitors note which entries of the sandbox's lists they make use of.

After a run of all tests `needless` names the entries that none has needed, and no reason is known
for: `pytest -p tests.sandbox_use --sandbox-use FILE`. The file is renewed after each test that adds
to it, so that nothing is lost with a lab; what it has to begin with is not noted again.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from pyvirt.native import lib
from pyvirt.native.sandbox import bpf
from pyvirt.native.sandbox.syscalls import NUMBERS
from pyvirt.native.sandbox.table import APART, LISTS, Entry, List, rules
from pyvirt.vmm.sandbox import RECORD

from . import sandbox_rare

SIZE = lib.PV_SANDBOX_RECORD_BYTES
_LENGTH = lib.PV_SANDBOX_LENGTH_MAX
_MISSED = len(LISTS) * _LENGTH  # where the calls on no list begin
_FIRST = 4  # the place of a program's first call
_CONTROL = LISTS[0]
_PYTHON = f"{_CONTROL.name}: "  # before the names of its entries


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sandbox-use", type=Path, help="keep what sandboxes are used for here")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("sandbox_use")
    if path and not hasattr(config, "workerinput"):  # a worker of xdist has its controller's
        config.pluginmanager.register(Keeper(path))


class Keeper:
    """Has a record for this kernel's processes, and a copy of it where other kernels see it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = path.read_bytes() if path.exists() else bytes(SIZE)
        fd, self._name = tempfile.mkstemp(prefix="pyvirt-use-", dir="/dev/shm")
        os.fchmod(fd, 0o666)  # some tests have monitors of other users
        os.write(fd, self._kept)
        os.close(fd)
        os.environ[RECORD] = self._name

    def pytest_runtest_logfinish(self) -> None:
        record = Path(self._name).read_bytes()
        if record != self._kept:
            self._kept = record
            self._path.write_bytes(record)

    def pytest_unconfigure(self) -> None:
        self.pytest_runtest_logfinish()
        del os.environ[RECORD]
        os.unlink(self._name)


def merged(records: Iterable[bytes]) -> bytes:
    """Return one record of what several have."""
    found = bytearray(SIZE)
    missed: set[int] = set()
    for record in records:
        if len(record) < SIZE:
            continue  # of a lab that has ended while it was written
        for at in range(_MISSED):
            found[at] |= record[at]
        missed.update(key for (key,) in struct.iter_unpack("<Q", record[_MISSED:]))
    keys = sorted(missed - {0})[: lib.PV_SANDBOX_MISSED_MAX]
    struct.pack_into(f"<{len(keys)}Q", found, _MISSED, *keys)
    return bytes(found)


def places(one: List) -> Iterator[tuple[int, Entry]]:
    """Yield the entries of a list, each with the place of the instruction that lets it pass."""
    program = bpf.assemble(rules(one.entries))
    names = {number: name for name, number in NUMBERS.items()}
    at = _FIRST
    while program[at].code == bpf.EQUAL:
        last = at + program[at].jf
        own = iter([entry for entry in one.entries if entry.rule.call == names[program[at].k]])
        for place in range(at + 1, last + 1):
            if program[place].code == bpf.RETURN and program[place].k != bpf.TRAP:
                yield place, next(own)
        at = last + 1


def unused(record: bytes) -> list[str]:
    """Return the entries that nobody has made use of."""
    # What devices' threads may do, Python's may that start them.
    of_devices = {entry.rule for one in LISTS[1:] for entry in one.entries}
    found = []
    for number, one in enumerate(LISTS):
        for place, entry in places(one):
            call = entry.rule.call
            if call in APART or (one is _CONTROL and entry.rule in of_devices):
                continue
            if not record[number * _LENGTH + place]:
                found.append(f"{one.name}: {call} {entry.shown}".rstrip())
    return found


def needless(record: bytes) -> list[str]:
    """Return those of Python's list that are not there for what no test brings about at will."""
    names = (one.removeprefix(_PYTHON) for one in unused(record) if one.startswith(_PYTHON))
    return [name for name in names if name not in sandbox_rare.RARE]


def missed(record: bytes) -> list[str]:
    """Return the calls that were on no list, and told of with -sandbox log."""
    names = {number: name for name, number in NUMBERS.items()}
    found = []
    for (key,) in struct.iter_unpack("<Q", record[_MISSED:]):
        if key:
            name = names.get(key >> 32 & 0xFFFF, "?")
            found.append(f"{LISTS[key >> 48 & 0x7FFF].name}: {name} {key & 0xFFFFFFFF:#x}")
    return sorted(found)
