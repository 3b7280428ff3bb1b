"""The option that groups vCPUs and memory into nodes: `-numa`. Imported only when it is given.

Its rules are QEMU's (docs of `-numa` there), but that every vCPU has to be in a node if one is.
"""

from __future__ import annotations

from ...errors import ConfigError
from ...vmm.numa import DISTANCE_MAX, LOCAL_DISTANCE, NODES_MAX, Node, Numa
from ...vmm.topology import Topology
from . import members
from .members import pairs, placed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from .parsed import Options

_NODE_MAX = NODES_MAX - 1
_NUMBER = members.number(0, _NODE_MAX)
_NODE: tuple[members.Member, ...] = (
    ("nodeid", "nodeid", _NUMBER),
    ("memdev", "memdev", members.name),
    ("cpus", "cpus", members.numbers),
)
_DISTANCE: tuple[members.Member, ...] = (
    ("src", "src", _NUMBER),
    ("dst", "dst", _NUMBER),
    ("val", "val", members.number(LOCAL_DISTANCE, DISTANCE_MAX)),
)
_LEVELS = ("socket-id", "die-id", "core-id", "thread-id")
_CPU: tuple[members.Member, ...] = (
    ("node-id", "node-id", _NUMBER),
    *((level, level, members.number(0, 253)) for level in _LEVELS),
)
_KINDS = {"node": _NODE, "dist": _DISTANCE, "cpu": _CPU}


class Nodes:
    """What the options say, in their order."""

    __slots__ = ("_distances", "_memdevs", "_most", "_nodes", "_topology")

    def __init__(self, texts: Sequence[str], options: Options) -> None:
        """Read all values of `-numa`, for the vCPUs that the other options ask for; ConfigError."""
        if options.discovery == "cmdline":
            raise ConfigError(
                "-numa: needs ACPI, which -machine discovery=cmdline leaves out; drop one of them"
            )
        if options.discovery == "auto" and "acpi=off" in (options.append or "").split():
            raise ConfigError("-numa: needs ACPI, which acpi=off in -append leaves out; drop it")
        self._topology = options.topology or Topology(options.smp)
        # vCPUs that may be named are more than there are, where -smp has a maxcpus.
        self._most = self._topology.sockets * self._topology.in_socket
        self._nodes: dict[int, set[int]] = {}  # vCPUs
        self._memdevs: dict[int, str] = {}
        self._distances: dict[tuple[int, int], int] = {}
        takers = {"node": self._take_node, "cpu": self._take_cpu, "dist": self._take_distance}
        # Nodes first: the others name them.
        for kind, take in takers.items():
            for text in texts:
                placed(text, self._read, kind, take)
        self._complete()

    def _read(self, wanted: str, take: Any, text: str) -> None:
        kind, _, rest = text.partition(",")
        kind = kind.removeprefix("type=")
        if kind not in _KINDS:
            raise ConfigError(f"-numa {text}: not one of {', '.join(_KINDS)}")
        if kind == wanted:
            option = f"-numa {kind}"
            given = pairs("-numa", rest, "") if rest else []
            if kind == "node" and any(key == "mem" for key, _ in given):
                raise ConfigError(
                    f"{option},mem: not of this machine; give memdev=ID, "
                    "and -object memory-backend-ram,id=ID,size=SIZE"
                )
            take(text, members.read(option, given, _KINDS[kind]))

    def _take_node(self, text: str, fields: Mapping[str, Any]) -> None:
        number = fields.get("nodeid", len(self._nodes))
        if number > _NODE_MAX:
            raise ConfigError(f"-numa {text}: more than {NODES_MAX} nodes; give fewer")
        if number in self._nodes:
            raise ConfigError(f"-numa {text}: there is a node {number}; give another nodeid")
        memdev = fields.get("memdev", "")
        for other, name in self._memdevs.items():
            if memdev == name:
                raise ConfigError(
                    f"-numa {text}: memdev={name} is node {other}'s; give each node its own"
                )
        self._nodes[number] = set()
        if memdev:
            self._memdevs[number] = memdev
        for vcpu in fields.get("cpus", ()):
            if vcpu >= self._most:
                raise ConfigError(
                    f"-numa {text}: there is no vCPU {vcpu}; the last is {self._most - 1}, by -smp"
                )
            self._place(text, vcpu, number)

    def _take_cpu(self, text: str, fields: Mapping[str, Any]) -> None:
        if "node-id" not in fields or len(fields) == 1:
            raise ConfigError(
                f"-numa {text}: give node-id=N, and one or more of {', '.join(_LEVELS)}"
            )
        self._check(text, fields["node-id"])
        levels = [fields.get(level) for level in _LEVELS]
        found = [
            vcpu
            for vcpu in range(self._most)
            if all(level in {None, own} for level, own in self._levels(levels, vcpu))
        ]
        if not found:
            raise ConfigError(f"-numa {text}: there is no such vCPU; see -smp for how many are")
        for vcpu in found:
            self._place(text, vcpu, fields["node-id"])

    def _levels(self, levels: list[int | None], vcpu: int) -> zip[tuple[int | None, int]]:
        return zip(levels, self._topology.place(vcpu), strict=True)

    def _take_distance(self, text: str, fields: Mapping[str, Any]) -> None:
        if len(fields) < len(_DISTANCE):
            raise ConfigError(f"-numa {text}: give src=N, dst=N and val=N")
        source, target, value = fields["src"], fields["dst"], fields["val"]
        self._check(text, source)
        self._check(text, target)
        if (source == target) != (value == LOCAL_DISTANCE):
            raise ConfigError(
                f"-numa {text}: {LOCAL_DISTANCE} is how far a node is from itself; "
                + ("give that" if source == target else f"give {LOCAL_DISTANCE + 1} or more")
            )
        if (source, target) in self._distances:
            raise ConfigError(f"-numa {text}: this distance is given already; give it once")
        self._distances[source, target] = value

    def _check(self, text: str, number: int) -> None:
        if number not in self._nodes:
            raise ConfigError(
                f"-numa {text}: there is no node {number}; add -numa node,nodeid={number}"
            )

    def _place(self, text: str, vcpu: int, number: int) -> None:
        for other, vcpus in self._nodes.items():
            if vcpu in vcpus:
                raise ConfigError(
                    f"-numa {text}: vCPU {vcpu} is in node {other} already; put it in one"
                )
        self._nodes[number].add(vcpu)

    def _complete(self) -> None:
        count = len(self._nodes)
        for number in range(count):
            if number not in self._nodes:
                raise ConfigError(
                    f"-numa: there is no node {number}, and one of a higher number; "
                    f"add -numa node,nodeid={number}, or number them from 0"
                )
        vcpus = range(self._topology.vcpus)
        if not any(self._nodes.values()):
            # As QEMU has it: a socket is in one node.
            for vcpu in vcpus:
                self._nodes[self._topology.place(vcpu)[0] % count].add(vcpu)
        placed = set().union(*self._nodes.values())
        missing = next((vcpu for vcpu in vcpus if vcpu not in placed), None)
        if missing is not None:
            raise ConfigError(
                f"-numa: vCPU {missing} is in no node, and others are; "
                f"add cpus={missing} to one, or leave cpus= out everywhere"
            )

    @property
    def memdevs(self) -> list[tuple[int, str]]:
        """Return each node that has memory, ascending, and the id of that."""
        return sorted(self._memdevs.items())

    def finish(self, sizes: Mapping[str, int]) -> Numa:
        """Return the nodes, with the sizes in bytes of memory by its id; ConfigError."""
        nodes = [
            Node(
                sorted(vcpu for vcpu in vcpus if vcpu < self._topology.vcpus),
                sizes[self._memdevs[number]] if number in self._memdevs else 0,
            )
            for number, vcpus in sorted(self._nodes.items())
        ]
        return Numa(nodes, self._matrix(len(nodes)) if self._distances else ())

    def _matrix(self, count: int) -> list[list[int]]:
        """Complete the distances: those to a node itself, and of symmetrical pairs the other."""
        given = self._distances
        is_asymmetrical = any(
            given.get((target, source), value) != value for (source, target), value in given.items()
        )
        for source in range(count):
            for target in range(source):
                both = ((source, target), (target, source))
                found = [pair for pair in both if pair in given]
                if not found:
                    raise ConfigError(
                        f"-numa dist: none between the nodes {target} and {source}; "
                        f"add -numa dist,src={target},dst={source},val=N"
                    )
                if is_asymmetrical and len(found) == 1:
                    there, back = found[0]
                    raise ConfigError(
                        f"-numa dist: a pair of nodes has different distances, and from {back} to "
                        f"{there} there is none; add -numa dist,src={back},dst={there},val=N"
                    )
        return [
            [
                LOCAL_DISTANCE
                if source == target
                else given.get((source, target)) or given[target, source]
                for target in range(count)
            ]
            for source in range(count)
        ]
