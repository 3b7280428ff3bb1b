"""`-incoming`: where a guest comes from, and what has to fit it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.cli.options import incoming
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config
from pyvirt.errors import StateError
from pyvirt.vmm.memory import MIB, GuestMemory
from pyvirt.vmm.numa import Node, Numa
from pyvirt.vmm.snapshot import shape, state_file
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.memory_file import Writer
from pyvirt.vmm.snapshot.restore import open_folder
from pyvirt.vmm.topology import Topology

from ...refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

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


NODES = Numa((Node((0, 1), 128 * MIB), Node((2, 3), 64 * MIB)), ((10, 30), (30, 10)))
GIVEN = [
    *("-m", "192M", "-smp", "4", "-object", "memory-backend-ram,id=a,size=128M"),
    *("-object", "memory-backend-ram,id=b,size=64M", "-numa", "node,memdev=a,cpus=0-1"),
    *("-numa", "node,memdev=b,cpus=2-3"),
]
DISTANCES = ["-numa", "dist,src=0,dst=1,val=30"]


def write(path: str, layers: list[dict[str, int]] | None = None, **machine: Any) -> None:
    """Write a state again, with other fields of its machine; None takes one away."""
    state = json.loads((Path(path) / "state").read_bytes().split(b"\n", 1)[1])
    fields = state["machine"] | machine
    state["machine"] = {name: value for name, value in fields.items() if value is not ...}
    if layers is not None:
        state["layers"] = layers
    del state["pyvirt"]
    (Path(path) / "state").write_bytes(state_file.encode(state))


def test_nodes_are_the_snapshots(snapshot: str, opened: list[Incoming]) -> None:
    write(snapshot, numa=shape.numa_fields(NODES))
    for given in ([], [*GIVEN, *DISTANCES]):
        options = parse([*words(snapshot), *given])
        opened.append(incoming.open_snapshot(options))
        assert shape.numa_fields(config(options).numa) == shape.numa_fields(NODES)


def test_other_nodes_are_refused(snapshot: str, opened: list[Incoming]) -> None:
    options = parse([*words(snapshot), *GIVEN])
    assert refusal(lambda: incoming.open_snapshot(options)) == (
        f"-numa: the snapshot in {snapshot} has no nodes; give the same, or leave -numa out"
    )
    write(snapshot, numa=shape.numa_fields(NODES))
    assert "has 2 nodes, not like these; give" in refusal(lambda: incoming.open_snapshot(options))
    # One that is older does not tell.
    write(snapshot, numa=...)
    opened.append(incoming.open_snapshot(options))
    assert config(options).numa is options.numa is not None


@pytest.mark.parametrize(
    ("nodes", "rows", "problem"),
    [
        ([([0, 1], 128), ([2], 64)], [], "machine.numa.nodes: not each vCPU is in one of them"),
        ([([0, 1], 128), ([2, 3], 65)], [], "machine.numa: its nodes have other memory than the"),
        ([([0, 1], 128), ([2, 4], 64)], [], "machine.numa.nodes.1.vcpus.1: 4 is not between"),
        ([([0, 1, 2, 3], 192)], [[10, 20]], "numa.distances.0.row: has 2 entries, and 1 are the"),
        ([([0, 1, 2, 3], 192)], [[]], "machine.numa.distances: not 1 rows of 1"),
        ([([0, 1, 2, 3], 192)], [[9]], "machine.numa.distances.0.row.0: 9 is not between 10"),
    ],
)
def test_nodes_that_cannot_be(
    snapshot: str, nodes: list[tuple[list[int], int]], rows: list[list[int]], problem: str
) -> None:
    fields = [{"vcpus": vcpus, "memory": size * MIB} for vcpus, size in nodes]
    write(snapshot, numa={"nodes": fields, "distances": [{"row": row} for row in rows]})
    with pytest.raises(StateError) as info:
        incoming.open_snapshot(parse(words(snapshot)))
    assert problem in str(info.value)


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


def test_a_disk_of_a_fork_begins_with_what_its_templates_has(
    snapshot: str, opened: list[Incoming], tmp_path: Path
) -> None:
    found = open_folder(snapshot)
    opened.append(found)
    found.layers[1] = (os.memfd_create("layer", os.MFD_CLOEXEC),)
    image = tmp_path / "image"
    one, two = ["-disk", f"{image},readonly=on"], ["-disk", f"{image},overlay=memory"]
    options = parse([*one, *two])
    incoming.take_template(options, found)
    assert [disk.layers for disk in options.disks] == [(), found.layers[1]]
    assert refusal(lambda: incoming.take_template(parse([*two, *one]), found)) == (
        f"-disk {image}: the disk of the snapshot in {snapshot} has an overlay, and this one none; "
        "give overlay=memory or overlay=FOLDER"
    )
    assert refusal(lambda: incoming.take_template(parse(two), found)) == (
        f"fork: the snapshot in {snapshot} has a disk with an overlay in slot 1; give the "
        "same by -disk or -drive, with overlay=memory or overlay=FOLDER"
    )


def test_a_disk_begins_with_what_the_snapshots_has(
    snapshot: str, opened: list[Incoming], tmp_path: Path
) -> None:
    write(snapshot, layers=[{"slot": 0, "count": 1}])
    disk = ["-disk", f"{tmp_path / 'image'},overlay=memory"]
    file = Path(snapshot) / "overlay-0"
    with pytest.raises(StateError, match=f"{file}: No such file or directory; keep the files of"):
        incoming.open_snapshot(parse([*words(snapshot), *disk]))
    for content in (b"", IDENTITY[1:], IDENTITY + b"more"):
        file.write_bytes(content)
        with pytest.raises(StateError, match=f"{file}: is of another snapshot than the state"):
            incoming.open_snapshot(parse([*words(snapshot), *disk]))
    file.write_bytes(b"something" + IDENTITY)
    options = parse([*words(snapshot), *disk])
    opened.append(incoming.open_snapshot(options))
    ((layer,),) = (one.layers for one in options.disks)
    assert os.pread(layer, 9, 0) == b"something"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(layer, b"x")
    assert refusal(lambda: incoming.open_snapshot(parse(words(snapshot)))) == (
        f"-incoming: the snapshot in {snapshot} has a disk with an overlay in slot 0; give the "
        "same by -disk or -drive, with overlay=memory or overlay=FOLDER"
    )


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ([{"slot": 0, "count": 2}], "layers.0.count: 2 is not between 1 and 1"),
        ([{"slot": 256, "count": 1}], "layers.0.slot: 256 is not between 0 and 255"),
        ([{"slot": 0, "count": 1}] * 2, "layers.1.slot: 0 comes twice"),
    ],
)
def test_layers_that_cannot_be(snapshot: str, layers: list[dict[str, int]], problem: str) -> None:
    write(snapshot, layers=layers)
    (Path(snapshot) / "overlay-0").write_bytes(IDENTITY)
    with pytest.raises(StateError, match=problem):
        incoming.open_snapshot(parse(words(snapshot)))
