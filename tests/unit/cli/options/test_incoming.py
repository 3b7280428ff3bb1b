"""`-incoming`: where a guest comes from, and what has to fit it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from pyvirt.cli.options import incoming
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config
from pyvirt.errors import StateError
from pyvirt.vmm.memory import MIB, GuestMemory
from pyvirt.vmm.snapshot import shape, state_file
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.memory_file import Writer
from pyvirt.vmm.topology import Topology

from ...refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyvirt.vmm.snapshot.restore import Incoming

IDENTITY = bytes(16)
SIZE = 192 * MIB


@pytest.fixture
def snapshot(tmp_path: Path) -> str:
    """Return a folder with what is looked at before there is a machine."""
    path = str(tmp_path / "with,comma")
    memory = GuestMemory(SIZE)
    found = shape.Shape(SIZE, Topology(4, sockets=2, cores=2), pit=False, hotplug=True, acpi=False)
    fields = {"snapshot": IDENTITY.hex(), "machine": found.save()}
    Folder(path).write(Writer(memory, IDENTITY).write, lambda: state_file.encode(fields))
    memory.close()
    return path


@pytest.fixture
def opened() -> Iterator[list[Incoming]]:
    found: list[Incoming] = []
    yield found
    for one in found:
        one.close()


def words(path: str, more: str = "") -> list[str]:
    return ["-incoming", f"file:{path.replace(',', ',,')}{more}"]


def test_the_machine_has_the_snapshots_shape(snapshot: str, opened: list[Incoming]) -> None:
    options = parse(words(snapshot))
    opened.append(incoming.open_snapshot(options))
    made = config(options)
    assert (made.memory, made.vcpus, made.pit, made.hotplug) == (SIZE, 4, False, True)
    assert made.discovery == "cmdline"
    assert (made.topology.sockets, made.topology.cores) == (2, 2)
    assert made.content is opened[0]


def test_the_same_may_be_said_again(snapshot: str, opened: list[Incoming]) -> None:
    options = parse([*words(snapshot), "-m", "192M", "-smp", "4", "-machine", "pit=off"])
    opened.append(incoming.open_snapshot(options))


@pytest.mark.parametrize(
    ("more", "is_mapped"), [("", True), (",mapped=on", True), (",mapped=off", False)]
)
def test_mapped_or_not(snapshot: str, opened: list[Incoming], more: str, is_mapped: bool) -> None:
    options = parse(words(snapshot, more))
    opened.append(incoming.open_snapshot(options))
    assert (options.content is not None) == is_mapped


@pytest.mark.parametrize("other", ["-machine mem-share=on", "-mem-path /dev/shm"])
def test_memory_of_another_kind_is_filled(
    snapshot: str, opened: list[Incoming], other: str
) -> None:
    options = parse([*words(snapshot), *other.split()])
    opened.append(incoming.open_snapshot(options))
    assert options.content is None
    options = parse([*words(snapshot, ",mapped=on"), *other.split()])
    assert "give mapped=off" in refusal(lambda: incoming.open_snapshot(options))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-m", "256M"], "-m 256M: the snapshot in {} has 192 MiB; give that, or leave it out"),
        (["-smp", "2"], "-smp 2: the snapshot in {} has 4 vCPUs; give that, or leave it out"),
    ],
)
def test_another_shape_is_refused(snapshot: str, given: list[str], message: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    options = parse([*words(snapshot), *given])
    assert refusal(lambda: incoming.open_snapshot(options)) == message.format(snapshot)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tcp:a:1", "-incoming tcp:a:1: a guest comes from a folder only; give file:DIR"),
        ("defer", "a guest comes from a folder only"),
        ("file:", "-incoming file:: not the name of a file"),
        ("file:a,mapped=maybe", "-incoming mapped maybe: not one of on, yes, true"),
        ("file:a,b", "-incoming b: not understood here; accepted is mapped"),
        ("file:a,mapped=on,mapped=on", "mapped is given twice"),
    ],
)
def test_words_that_cannot_be(text: str, message: str) -> None:
    assert message in refusal(lambda: parse(["-incoming", text]))


def test_a_shape_that_cannot_be_is_named(tmp_path: Path) -> None:
    for change, problem in (
        ({"memory": 1}, "machine.memory: 1 is not between"),
        ({"memory": SIZE + 4096}, "machine.memory: 201330688 is no multiple of 1 MiB"),
        ({"vcpus": 9}, "machine.vcpus: 9 are more than the sockets hold"),
        ({"cores": 0}, "machine.cores: 0 is not between 1 and 254"),
    ):
        found = shape.Shape(SIZE, Topology(4), pit=True, hotplug=False, acpi=True).save() | change
        fields: dict[str, object] = {"snapshot": IDENTITY.hex(), "machine": found}
        (tmp_path / "state").write_bytes(state_file.encode(fields))
        with pytest.raises(StateError) as info:
            incoming.open_snapshot(parse(words(str(tmp_path))))
        assert str(info.value).startswith(f"-incoming file:{tmp_path}: state: {problem}")
