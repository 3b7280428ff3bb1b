"""Which of a machine's vCPUs and memory are near each other: its NUMA nodes, and their distances.

Imported only when `-numa` is given.
"""

from __future__ import annotations

from . import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NODES_MAX = 128
LOCAL_DISTANCE = 10  # ACPI 6.4, 5.2.17
DISTANCE_MAX = 255  # which says that a node cannot be reached


class Node:
    """One node: the indexes of its vCPUs, and how many bytes of memory it has; either may miss."""

    __slots__ = ("memory", "vcpus")

    def __init__(self, vcpus: Sequence[int], memory: int) -> None:
        self.vcpus = tuple(vcpus)
        self.memory = memory


class Numa:
    """All nodes by their numbers, which begin at 0; each vCPU is in one of them.

    Their memory lies in that order and adds up to the machine's. `distances` has a row for each
    node, or is empty: the guest takes them to be 10 within a node and 20 between two, then.
    """

    __slots__ = ("distances", "nodes")

    def __init__(self, nodes: Sequence[Node], distances: Sequence[Sequence[int]] = ()) -> None:
        self.nodes = tuple(nodes)
        self.distances = tuple(tuple(row) for row in distances)

    def node_of(self, vcpu: int) -> int:
        """Return the number of a vCPU's node; KeyError."""
        for number, node in enumerate(self.nodes):
            if vcpu in node.vcpus:
                return number
        raise KeyError(vcpu)

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """Yield (node, start, length) of all RAM that the memory map has, in the nodes' order."""
        size = sum(node.memory for node in self.nodes)
        usable = [entry for entry in layout.e820(size) if entry[2] == layout.E820_RAM]
        before = 0  # the RAM of the nodes before
        for number, node in enumerate(self.nodes):
            at = 0  # the RAM of the regions before
            for start, length in layout.ram_regions(size):
                first = start + max(before - at, 0)
                last = start + min(before + node.memory - at, length)
                for piece, piece_length, _ in usable:
                    low, high = max(first, piece), min(last, piece + piece_length)
                    if low < high:
                        yield number, low, high - low
                at += length
            before += node.memory
