"""`-numa`: nodes of vCPUs and memory, and their distances, in the words of QEMU and StratoVirt."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyvirt.cli.options.config_print import show
from pyvirt.cli.options.parse import parse
from pyvirt.cli.options.table import BY_NAME
from pyvirt.vmm.memory import MIB
from pyvirt.vmm.numa import Numa

from ...refusal import refusal


def memory(*names: str, size: str = "128M") -> list[str]:
    """Return the options of objects with those ids."""
    return [
        word for name in names for word in ("-object", f"memory-backend-ram,id={name},size={size}")
    ]


def numa(*values: str) -> list[str]:
    return [word for value in values for word in ("-numa", value)]


def read(*argv: str) -> Numa:
    found = parse(list(argv)).numa
    assert found is not None
    return found


TWO = [*numa("node,cpus=0-1,memdev=a", "node,cpus=2-3,memdev=b"), *memory("a", "b"), "-smp", "4"]


def test_none_unless_asked_for() -> None:
    assert parse([]).numa is None
    assert parse([*memory("m"), "-machine", "memory-backend=m"]).numa is None


def test_two_nodes() -> None:
    options = parse([*TWO, "-m", "256M"])
    assert options.numa is not None
    assert [node.vcpus for node in options.numa.nodes] == [(0, 1), (2, 3)]
    assert [node.memory for node in options.numa.nodes] == [128 * MIB, 128 * MIB]
    assert [memdev.id for memdev in options.memdevs] == ["a", "b"]
    assert options.numa.distances == ()
    assert parse(TWO).memory == 256 * MIB, "the sum, where -m is not given"


@pytest.mark.parametrize("cpus", ["cpus=0-1,cpus=4-5", "cpus=0-1:4-5", "cpus=0:1:4:5"])
def test_vcpus_in_several_ranges(cpus: str) -> None:
    found = read(*numa(f"node,{cpus},memdev=a", "node,cpus=2-3"), *memory("a"), "-smp", "6")
    assert [node.vcpus for node in found.nodes] == [(0, 1, 4, 5), (2, 3)]


def test_memory_lies_in_the_order_of_the_nodes_numbers() -> None:
    words = numa("node,nodeid=1,memdev=b,cpus=0", "node,nodeid=0,memdev=a,cpus=1")
    options = parse([*words, *memory("b"), *memory("a", size="64M"), "-smp", "2"])
    assert options.numa is not None
    assert [memdev.id for memdev in options.memdevs] == ["a", "b"]
    assert [node.memory // MIB for node in options.numa.nodes] == [64, 128]
    assert [node.vcpus for node in options.numa.nodes] == [(1,), (0,)]


def test_nodes_may_lack_vcpus_or_memory() -> None:
    found = read(*numa("node,cpus=0", "node,memdev=a", "node"), *memory("a"))
    assert [(node.vcpus, node.memory // MIB) for node in found.nodes] == [
        ((0,), 0), ((), 128), ((), 0)
    ]  # fmt: skip


def test_sockets_are_in_a_node_each_unless_told_otherwise() -> None:
    words = [*numa("node,memdev=a", "node,memdev=b"), *memory("a", "b")]
    assert [node.vcpus for node in read(*words, "-smp", "4,sockets=2").nodes] == [(0, 1), (2, 3)]
    assert [node.vcpus for node in read(*words, "-smp", "4").nodes] == [(0, 1, 2, 3), ()]


def test_vcpus_by_their_place() -> None:
    found = read(
        *numa("node,memdev=a", "node,memdev=b"),
        *numa("cpu,node-id=1,socket-id=0", "cpu,node-id=0,socket-id=1,core-id=0"),
        *numa("cpu,node-id=0,socket-id=1,core-id=1,thread-id=0,die-id=0"),
        *numa("cpu,node-id=1,socket-id=1,core-id=1,thread-id=1"),
        *memory("a", "b"),
        *("-smp", "8,sockets=2,cores=2,threads=2"),
    )
    assert [node.vcpus for node in found.nodes] == [(4, 5, 6), (0, 1, 2, 3, 7)]


def test_vcpus_that_are_not_there_yet_may_be_named() -> None:
    words = [*numa("node,cpus=0-3,memdev=a"), *memory("a"), "-smp", "2,maxcpus=4"]
    assert [node.vcpus for node in read(*words).nodes] == [(0, 1)]


def test_distances_are_completed() -> None:
    three = [*numa("node,memdev=a", "node", "node"), *memory("a")]
    found = read(*three, *numa("dist,src=0,dst=1,val=20", "dist,src=2,dst=0,val=31",
                               "dist,src=1,dst=2,val=255"))  # fmt: skip
    assert found.distances == ((10, 20, 31), (20, 10, 255), (31, 255, 10))
    two = [*numa("node,memdev=a", "node"), *memory("a")]
    one_way = numa("dist,src=0,dst=1,val=20", "dist,src=1,dst=0,val=30", "dist,src=0,dst=0,val=10")
    assert read(*two, *one_way).distances == ((10, 20), (30, 10))


def test_128_nodes() -> None:
    found = read(*numa(*["node"] * 127, "node,memdev=a"), *memory("a"))
    assert len(found.nodes) == 128


ONE = [*numa("node,memdev=a"), *memory("a")]
PAIR = [*numa("node,memdev=a", "node"), *memory("a")]
DISC = "-machine discovery=cmdline leaves out; drop one of them"
REFUSED = [
    (["-numa", "knot"], "-numa knot: not one of node, dist, cpu"),
    (["-numa", "node,cpu=1"],
     "-numa node cpu: not understood here; accepted are nodeid, memdev, cpus"),
    (["-numa", "node,mem=1G"], ("-numa node,mem: not of this machine; give memdev=ID, "
     "and -object memory-backend-ram,id=ID,size=SIZE")),
    (["-numa", "node,nodeid=128"], "-numa node nodeid 128: not a number from 0 to 127"),
    (numa(*["node"] * 129), "-numa node: more than 128 nodes; give fewer"),
    ([*ONE, *numa("node,nodeid=0")],
     "-numa node,nodeid=0: there is a node 0; give another nodeid"),
    (["-numa", "node,nodeid=1"], ("-numa: there is no node 0, and one of a higher number; "
     "add -numa node,nodeid=0, or number them from 0")),
    ([*ONE, *numa("node,memdev=a")],
     "-numa node,memdev=a: memdev=a is node 0's; give each node its own"),
    (["-numa", "node,memdev=x"], ("-numa node,nodeid=0,memdev=x: there is no such object; "
     "add -object memory-backend-memfd,id=x,size=SIZE")),
    ([*ONE, *memory("b")], ("-object memory-backend-ram,id=b: nothing uses it; "
     "add -machine memory-backend=b, or memdev=b to a -numa node")),
    ([*TWO, "-m", "1G"], ("-numa: the nodes' memory adds up to 256 MiB, and -m says 1024; "
     "give each node memdev=ID, of sizes that add up to that")),
    (["-numa", "node"], ("-numa: the nodes' memory adds up to 0 MiB, and -m says 256; "
     "give each node memdev=ID, of sizes that add up to that")),
    ([*numa("node,memdev=a"), *memory("a", size="64M")], ("-numa: the nodes' memory adds up to "
     "64 MiB, not between 128M and 512G; give other sizes")),
    ([*numa("node,memdev=a"), *memory("a", size="0")], ("-object memory-backend-ram,id=a,size 0: "
     "not between 1M and 512G; give a size in that range")),
    ([*numa("node,cpus=4,memdev=a"), *memory("a"), "-smp", "4"],
     "-numa node,cpus=4,memdev=a: there is no vCPU 4; the last is 3, by -smp"),
    ([*numa("node,cpus=0-1,memdev=a", "node,cpus=1"), *memory("a"), "-smp", "2"],
     "-numa node,cpus=1: vCPU 1 is in node 0 already; put it in one"),
    ([*numa("node,cpus=0,cpus=0,memdev=a"), *memory("a")],
     "-numa node,cpus=0,cpus=0,memdev=a: vCPU 0 is in node 0 already; put it in one"),
    ([*numa("node,cpus=1-0")], "-numa node cpus 1-0: 1-0 ends before it begins; give 0-1"),
    ([*numa("node,cpus=")], "-numa node cpus : not a number from 0 to 1023"),
    ([*numa("node,cpus=0,memdev=a"), *memory("a"), "-smp", "2"], ("-numa: vCPU 1 is in no node, "
     "and others are; add cpus=1 to one, or leave cpus= out everywhere")),
    ([*ONE, *numa("cpu,node-id=1,core-id=0")],
     ("-numa cpu,node-id=1,core-id=0: there is no node 1; add -numa node,nodeid=1")),
    ([*ONE, *numa("cpu,node-id=0,core-id=7")],
     "-numa cpu,node-id=0,core-id=7: there is no such vCPU; see -smp for how many are"),
    ([*ONE, *numa("cpu,node-id=0")], ("-numa cpu,node-id=0: give node-id=N, and one or more of "
     "socket-id, die-id, core-id, thread-id")),
    ([*PAIR, *numa("dist,src=0,dst=1,val=9")], "-numa dist val 9: not a number from 10 to 255"),
    ([*PAIR, *numa("dist,src=0,dst=1,val=256")], "-numa dist val 256: not a number from 10 to 255"),
    ([*PAIR, *numa("dist,src=0,dst=0,val=20")], ("-numa dist,src=0,dst=0,val=20: "
     "10 is how far a node is from itself; give that")),
    ([*PAIR, *numa("dist,src=0,dst=1,val=10")], ("-numa dist,src=0,dst=1,val=10: "
     "10 is how far a node is from itself; give 11 or more")),
    ([*PAIR, *numa("dist,src=0,dst=2,val=20")],
     "-numa dist,src=0,dst=2,val=20: there is no node 2; add -numa node,nodeid=2"),
    ([*PAIR, *numa("dist,src=0,dst=1")], "-numa dist,src=0,dst=1: give src=N, dst=N and val=N"),
    ([*PAIR, *numa("dist,src=0,dst=1,val=20", "dist,src=0,dst=1,val=20")],
     "-numa dist,src=0,dst=1,val=20: this distance is given already; give it once"),
    ([*PAIR, *numa("node", "dist,src=0,dst=1,val=20", "dist,src=1,dst=2,val=20")],
     ("-numa dist: none between the nodes 0 and 2; add -numa dist,src=0,dst=2,val=N")),
    ([*PAIR, *numa("node", "dist,src=0,dst=1,val=20", "dist,src=1,dst=0,val=30",
                   "dist,src=1,dst=2,val=20", "dist,src=0,dst=2,val=20")],
     ("-numa dist: a pair of nodes has different distances, and from 2 to 0 there is none; "
      "add -numa dist,src=2,dst=0,val=N")),
    ([*TWO, "-mem-path", "/m"], ("-mem-path /m: not with -numa; give each node memdev=ID, and "
     "-object memory-backend-file,id=ID,size=SIZE,mem-path=/m")),
    ([*TWO, "-machine", "memory-backend=a"],
     "-machine memory-backend=a: not with -numa; give memdev= there"),
    ([*TWO, "-machine", "discovery=cmdline"], f"-numa: needs ACPI, which {DISC}"),
    ([*TWO, "-append", "quiet acpi=off"],
     "-numa: needs ACPI, which acpi=off in -append leaves out; drop it"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), REFUSED)
def test_what_is_refused(argv: list[str], message: str) -> None:
    assert refusal(lambda: parse(argv)) == message


def test_pieces_are_limited_where_others_map_them() -> None:
    names = [f"m{n}" for n in range(9)]
    words = [*numa(*(f"node,memdev={name}" for name in names)), *memory(*names)]
    disk = ["-chardev", "socket,id=c,path=/s", "-device", "vhost-user-blk-device,id=d,chardev=c"]
    assert len(parse(words).memdevs) == 9
    assert refusal(lambda: parse(words + disk)) == (
        "-numa: the memory has 9 pieces, and what serves the device d maps 8 at most; "
        "give fewer nodes memory"
    )
    words = [*numa(*(f"node,memdev={name}" for name in names[:8])), *memory(*names[:8])]
    assert len(parse(words + disk).memdevs) == 8
    words = [word.replace("128M", "500M") for word in words]
    assert "9 pieces" in refusal(lambda: parse(words + disk)), "one is on both sides of the gap"


def test_a_file_of_options_has_them(tmp_path: Path) -> None:
    words = [*TWO, *numa("dist,src=0,dst=1,val=21")]
    words[1] = "node,cpus=0,cpus=1,memdev=a"
    for form in ("toml", "json"):
        path = tmp_path / f"machine.{form}"
        path.write_text(show(parse(words).given, BY_NAME, form))
        found = parse(["-config", str(path)]).numa
        assert found is not None
        assert [node.vcpus for node in found.nodes] == [(0, 1), (2, 3)]
        assert found.distances == ((10, 21), (21, 10))


def test_an_error_in_a_file_has_its_place(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text('[[numa]]\ntype = "node"\ncpus = [0, 7]\n')
    assert refusal(lambda: parse(["-config", str(path)])) == (
        f"{path}:3:1: -numa node,cpus=0:7: there is no vCPU 7; the last is 0, by -smp"
    )
