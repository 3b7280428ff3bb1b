"""What a machine is made of, as far as a state fits no other."""

from __future__ import annotations

import os
import time

from ...devices.virtio.device import Pluggable
from ...errors import PyvirtError, StateError
from ..layout import DEMAND_SLOTS_MAX
from ..memory import MIB, SIZE_MAX, SIZE_MIN
from ..slots import BLOCK, NET
from ..topology import Topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...state import Fields
    from ..config import MachineConfig
    from ..log import Log
    from ..machine import Machine
    from ..numa import Numa

_VCPUS_MAX = 254
_U64_MAX = (1 << 64) - 1
_LEVELS = ("sockets", "dies", "cores", "threads")
# By virtio device ID (virtio 1.2, 5).
_KINDS = {
    1: "a NIC",
    2: "a disk",
    3: "a virtio-serial",
    4: "a virtio-rng",
    5: "a balloon",
    19: "a vsock",
    26: "a file system",
}
_TYPE_MAX = 0xFF
_PLUGGABLE = {2: BLOCK, 1: NET}


class Shape:
    """Memory in bytes, vCPUs, and what else the guest has come to rely on.

    `numa` is None without nodes. `knows_numa` is false of a state that does not tell. `places` are
    the slots of the devices where those come on demand, and None where they are prepared.
    """

    __slots__ = ("acpi", "hotplug", "knows_numa", "memory", "numa", "pit", "places", "topology")

    def __init__(
        self,
        memory: int,
        topology: Topology,
        *,
        pit: bool,
        hotplug: bool,
        acpi: bool,
        numa: Numa | None = None,
        knows_numa: bool = True,
        places: tuple[int, ...] | None = None,
    ) -> None:
        self.places = places
        self.knows_numa = knows_numa
        self.numa = numa
        self.memory = memory
        self.topology = topology
        self.pit = pit
        self.hotplug = hotplug
        self.acpi = acpi

    def save(self) -> dict[str, object]:
        """Return it as fields."""
        levels = {name: getattr(self.topology, name) for name in _LEVELS}
        return {
            "memory": self.memory,
            "vcpus": self.topology.vcpus,
            **levels,
            "pit": self.pit,
            "hotplug": self.hotplug,
            "acpi": self.acpi,
            "numa": numa_fields(self.numa),
            **({"slots": list(self.places)} if self.places is not None else {}),
        }


def numa_fields(numa: Numa | None) -> dict[str, object] | None:
    """Return nodes as fields, which are equal where the nodes are."""
    if numa is None:
        return None
    nodes = [{"memory": one.memory, "vcpus": list(one.vcpus)} for one in numa.nodes]
    return {"nodes": nodes, "distances": [{"row": list(row)} for row in numa.distances]}


def of(config: MachineConfig, places: tuple[int, ...] | None = None) -> Shape:
    """Return that of a machine; PyvirtError where it has what cannot be saved."""
    if config.testdev:
        raise PyvirtError("-device pc-testdev: a snapshot does not keep it; leave it out")
    return Shape(
        config.memory,
        config.topology,
        pit=config.pit,
        hotplug=config.hotplug,
        acpi=config.discovery == "acpi",
        numa=config.numa,
        places=places,
    )


def read(fields: Fields) -> Shape:
    """Return that in a state; StateError."""
    memory = fields.integer("memory", SIZE_MIN, SIZE_MAX)
    if memory % MIB:
        raise fields.wrong("memory", f"{memory} is no multiple of 1 MiB")
    vcpus = fields.integer("vcpus", 1, _VCPUS_MAX)
    levels = {name: fields.integer(name, 1, _VCPUS_MAX) for name in _LEVELS}
    topology = Topology(vcpus, **levels)
    if topology.sockets * topology.in_socket < vcpus:
        raise fields.wrong("vcpus", f"{vcpus} are more than the sockets hold")
    flags = {name: fields.flag(name) for name in ("pit", "hotplug", "acpi")}
    knows_numa = fields.has("numa")
    numa = _read_numa(fields, vcpus) if knows_numa else None
    if numa is not None and sum(node.memory for node in numa.nodes) != memory:
        raise fields.wrong("numa", "its nodes have other memory than the machine")
    places = _read_places(fields) if fields.has("slots") else None
    return Shape(memory, topology, numa=numa, knows_numa=knows_numa, places=places, **flags)


def _read_places(fields: Fields) -> tuple[int, ...]:
    places = tuple(fields.integers("slots", 0, DEMAND_SLOTS_MAX - 1, most=DEMAND_SLOTS_MAX))
    if len(set(places)) < len(places):
        raise fields.wrong("slots", "two devices are in one")
    return places


def _read_numa(fields: Fields, vcpus: int) -> Numa | None:
    given = fields.optional("numa")
    if given is None:
        return None
    from ..numa import DISTANCE_MAX, LOCAL_DISTANCE, NODES_MAX, Node, Numa  # noqa: PLC0415  (few)

    nodes = [
        Node(one.integers("vcpus", 0, vcpus - 1, most=vcpus), one.integer("memory", 0, SIZE_MAX))
        for one in given.items("nodes", NODES_MAX)
    ]
    if sorted(index for node in nodes for index in node.vcpus) != list(range(vcpus)):
        raise given.wrong("nodes", "not each vCPU is in one of them")
    rows = [
        one.integers("row", LOCAL_DISTANCE, DISTANCE_MAX, most=len(nodes))
        for one in given.items("distances", NODES_MAX)
    ]
    if rows and {len(rows), *map(len, rows)} != {len(nodes)}:
        raise given.wrong("distances", f"not {len(nodes)} rows of {len(nodes)}")
    return Numa(nodes, rows)


def devices(machine: Machine) -> list[dict[str, object]]:
    """Return what is in the slots, less the devices' own states."""
    assert machine.slots is not None
    found: list[dict[str, object]] = []
    for transport in machine.slots.ordered():
        device = transport.device
        found.append(
            {
                "type": device.device_type,
                "filled": bool(device.backend) if isinstance(device, Pluggable) else True,
                "image": _image(device),
            }
        )
    return found


def vacancies(saved: list[Fields]) -> dict[int, tuple[str, int]]:
    """Return the slots for disks and NICs that nothing was behind: kind, and place within it."""
    found: dict[int, tuple[str, int]] = {}
    counts = dict.fromkeys(_PLUGGABLE.values(), 0)
    for slot, fields in enumerate(saved):
        kind = _PLUGGABLE.get(fields.integer("type", 0, _TYPE_MAX))
        if kind is None:
            continue
        if not fields.flag("filled"):
            found[slot] = kind, counts[kind]
        counts[kind] += 1
    return found


def _image(device: object) -> dict[str, object] | None:
    """Return the size of a disk's image, and when it was written to last."""
    fd = _image_fd(device)
    if fd < 0:
        return None
    status = os.fstat(fd)
    return {"size": os.lseek(fd, 0, os.SEEK_END), "mtime": status.st_mtime_ns}


def _image_fd(device: object) -> int:
    disk = getattr(getattr(device, "resource", None), "disk", None)
    return disk.fd if disk is not None else -1


def check_devices(machine: Machine, saved: list[Fields], log: Log) -> None:
    """Refuse other devices than the guest had (StateError); warn of disks it has not left so."""
    assert machine.slots is not None
    here = [transport.device for transport in machine.slots.ordered()]
    if len(here) != len(saved):
        raise StateError(
            f"state: the guest had {len(saved)} virtio devices, and here are {len(here)}; give the "
            "same ones in the same order"
        )
    for slot, (device, fields) in enumerate(zip(here, saved, strict=True)):
        was = fields.integer("type", 0, _TYPE_MAX)
        if was != device.device_type:
            kinds = [_KINDS.get(one, f"type {one}") for one in (was, device.device_type)]
            raise StateError(
                f"state: the guest had {kinds[0]} in slot {slot}, and here is {kinds[1]}; give the "
                "same devices in the same order"
            )
        filled = fields.flag("filled")
        if filled and isinstance(device, Pluggable) and not device.backend:
            kind = _KINDS.get(was, "something")
            raise StateError(
                f"state: the guest had {kind} in slot {slot}, which is empty here; give one there"
            )
        _check_image(device, fields.optional("image"), log)


def _check_image(device: object, saved: Fields | None, log: Log) -> None:
    fd = _image_fd(device)
    if saved is None:
        return
    size, mtime = saved.integer("size", 0, _U64_MAX), saved.integer("mtime", -_U64_MAX, _U64_MAX)
    if fd < 0:
        return
    name = getattr(device, "backend", "")
    there = os.lseek(fd, 0, os.SEEK_END)
    if there < size:
        raise StateError(
            f"state: disk {name} had {size} bytes, and its image has {there}; give the image that "
            "the snapshot goes with"
        )
    now = os.fstat(fd).st_mtime_ns
    if there != size or now != mtime:
        log.warning(
            f"disk {name}: its image ({there} bytes, last written {_moment(now)}) was written to "
            f"since the snapshot ({size} bytes, {_moment(mtime)}), or is a copy; to the guest a "
            "file system there may be damaged"
        )


def _moment(mtime_ns: int) -> str:
    """Return a time of a file in UTC, to the millisecond."""
    seconds, rest = divmod(mtime_ns, 10**9)
    try:
        day = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):  # out of a state that somebody has changed
        return f"{seconds} s"
    return f"{day}.{rest // 10**6:03} UTC"
