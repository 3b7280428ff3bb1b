"""The options that say what memory is made of."""

from __future__ import annotations

import pytest
from pyvirt.cli.options.parse import parse
from pyvirt.vmm.memory import MIB

from ...refusal import refusal

MEMFD = "memory-backend-memfd,id=m,size=1G"
USE = ("-machine", "memory-backend=m")


def backing(*words: str) -> tuple[object, ...]:
    (memdev,) = parse(list(words)).memdevs
    found = memdev.backing
    assert found is not None
    return found.path, found.huge_page, found.shared, found.seal


def test_none_unless_asked_for() -> None:
    options = parse(["-machine", "mem-share=on"])
    assert (options.memdevs, options.prealloc, options.share) == ((), False, True)
    assert parse(["-mem-prealloc"]).prealloc


def test_a_path() -> None:
    assert backing("-mem-path", "/dev/hugepages") == ("/dev/hugepages", 0, False, True)
    assert backing("-mem-path", "/m", "-machine", "mem-share=on")[2] is True


def test_objects() -> None:
    assert backing("-object", MEMFD, *USE) == ("", 0, True, True)
    huge = backing("-object", f"{MEMFD},hugetlb=on,share=off,seal=off", *USE)
    assert huge == ("", 2 * MIB, False, False)
    assert backing("-object", f"{MEMFD},hugetlb=on,hugetlbsize=1G", *USE)[1] == 1024 * MIB
    file = "memory-backend-file,id=m,size=256M,mem-path=/m,share=on"
    assert backing("-object", file, *USE) == ("/m", 0, True, True)
    options = parse(["-object", "memory-backend-ram,id=m,size=1G,share=on,prealloc=on", *USE])
    (memdev,) = options.memdevs
    assert (memdev.backing, memdev.shared, memdev.prealloc) == (None, True, True)
    assert (memdev.policy, memdev.host_nodes) == ("default", ())
    assert options.memory == 1024 * MIB


@pytest.mark.parametrize("nodes", ["host-nodes=0-2:4", "host-nodes=0-2,host-nodes=4"])
def test_nodes_of_the_host(nodes: str) -> None:
    (memdev,) = parse(["-object", f"{MEMFD},policy=interleave,{nodes}", *USE]).memdevs
    assert (memdev.policy, memdev.host_nodes) == ("interleave", (0, 1, 2, 4))


REFUSED = [
    (["-object", MEMFD], ("-object memory-backend-memfd,id=m: nothing uses it; "
     "add -machine memory-backend=m, or memdev=m to a -numa node")),
    ([*USE], ("-machine memory-backend=m: there is no such object; "
     "add -object memory-backend-memfd,id=m,size=SIZE")),
    ([*USE, "-mem-path", "/m"], ("-machine memory-backend=m: not with -mem-path /m; "
     "give one of the two")),
    (["-object", MEMFD, *USE, "-m", "512"], ("-object memory-backend-memfd,id=m: its size is "
     "1024 MiB, and -m says 512; give the same, or leave -m out")),
    (["-object", "memory-backend-memfd,id=m", *USE],
     "-object memory-backend-memfd,id=m: has no size; give size=SIZE"),
    (["-object", "memory-backend-memfd,id=m,size=1", *USE],
     ("-object memory-backend-memfd,id=m,size 1: not between 128M and 512G; "
     "give a size in that range")),
    (["-object", "memory-backend-file,id=m,size=1G", *USE],
     "-object memory-backend-file,id=m: has no mem-path; give mem-path=FOLDER|FILE"),
    (["-object", "memory-backend-ram,id=m,size=1G,hugetlb=on", *USE],
     "-object memory-backend-ram,id=m,hugetlb: is of memory-backend-memfd; use that"),
    (["-object", f"{MEMFD},hugetlbsize=2M", *USE],
     "-object memory-backend-memfd,id=m,hugetlbsize: goes with hugetlb=on; give both"),
    (["-object", f"{MEMFD},hugetlb=on,hugetlbsize=4M", *USE],
     "-object hugetlbsize 4M: not one of 2M, 1G"),
    (["-object", f"{MEMFD},host-nodes=0", *USE], ("-object memory-backend-memfd,id=m,host-nodes: "
     "goes with a policy; give one of preferred, bind, interleave")),
    (["-object", f"{MEMFD},policy=bind", *USE],
     "-object memory-backend-memfd,id=m,policy=bind: of no nodes; give host-nodes=N"),
    (["-object", f"{MEMFD},policy=near,host-nodes=0", *USE], ("-object memory-backend-memfd,id=m,"
     "policy near: not one of default, preferred, bind, interleave")),
    (["-object", f"{MEMFD},policy=bind,host-nodes=3-1", *USE],
     "-object host-nodes 3-1: 3-1 ends before it begins; give 1-3"),
    (["-object", f"{MEMFD},policy=bind,host-nodes=x", *USE],
     "-object host-nodes x: not a number from 0 to 1023"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "message"), REFUSED)
def test_what_is_refused(argv: list[str], message: str) -> None:
    assert refusal(lambda: parse(argv)) == message
