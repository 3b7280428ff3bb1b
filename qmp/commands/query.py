"""What there is: processors, disks, counters, and what tools ask before they begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import QmpError
from ...vmm.hotplug import BLOCK, NET
from ..host import DEVICE, VCPU, VM
from ..schema import Arguments, Boolean, Choice, Command, Field, Struct, Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...vmm.hotplug import Backend, Device
    from ..host import VcpuPlace
    from ..session import Session

_VCPUS_MAX = 254
_PROVIDER = "pyvirt"
# Names in `query-blockstats`, and those of our counters.
_BLOCK_STATS = {
    "rd_bytes": "bytes_read",
    "wr_bytes": "bytes_written",
    "rd_operations": "reads",
    "wr_operations": "writes",
    "flush_operations": "flushes",
    "unmap_operations": "discards",
}
# What QEMU counts besides and nothing here does; those of zones since QEMU 8.1.
_UNCOUNTED = tuple(
    form.format(kind)
    for kind in ("rd", "wr", "flush", "unmap", "zone_append")
    for form in ("{}_bytes", "{}_operations", "{}_total_time_ns", "{}_merged",
                 "failed_{}_operations", "invalid_{}_operations")
    if form.format(kind) not in {*_BLOCK_STATS, "flush_bytes", "flush_merged"}
)  # fmt: skip
_NO_UUID = "00000000-0000-0000-0000-000000000000"  # QEMU's answer where none was given
_NO_LIMITS = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0)


def _path(vcpu: int) -> str:
    return f"/machine/unattached/device[{vcpu}]"


def _props(place: VcpuPlace) -> dict[str, int]:
    words = {
        "core-id": place.core,
        "die-id": place.die,
        "node-id": place.node,
        "socket-id": place.socket,
        "thread-id": place.thread,
    }
    return {name: value for name, value in words.items() if value is not None}


def _vcpus(session: Session) -> Iterator[tuple[int, dict[str, int], int]]:
    """Yield each vCPU's index, properties and thread id."""
    host = session.monitor.host
    for vcpu, (place, thread) in enumerate(
        zip(host.vcpu_places(), host.vcpu_threads(), strict=True)
    ):
        yield vcpu, _props(place), thread


def _cpus(session: Session, _: Arguments) -> object:
    return [
        {
            "arch": "x86",
            "CPU": vcpu,
            "current": True,
            "halted": False,
            "props": props,
            "qom_path": _path(vcpu),
            "thread_id": thread,
        }
        for vcpu, props, thread in _vcpus(session)
    ]


def _cpus_fast(session: Session, _: Arguments) -> object:
    return [
        {
            "cpu-index": vcpu,
            "props": props,
            "qom-path": _path(vcpu),
            "target": "x86_64",
            "thread-id": thread,
        }
        for vcpu, props, thread in _vcpus(session)
    ]


def _hotpluggable_cpus(session: Session, _: Arguments) -> object:
    return [
        {"type": "host-x86-cpu", "vcpus-count": 1, "props": props, "qom-path": _path(vcpu)}
        for vcpu, props, _ in _vcpus(session)
    ]


def _name(session: Session, _: Arguments) -> object:
    name = session.monitor.host.name
    return {"name": name} if name else {}


def _uuid(session: Session, _: Arguments) -> object:
    return {"UUID": session.monitor.host.uuid or _NO_UUID}


def _memory_size(session: Session, _: Arguments) -> object:
    return {"base-memory": session.monitor.host.memory, "plugged-memory": 0}


def _memdev(session: Session, _: Arguments) -> object:
    return [
        {
            "id": one.id,
            "size": one.size,
            "merge": False,
            "dump": one.dumped,
            "prealloc": one.prealloc,
            "share": one.shared,
            "host-nodes": list(one.host_nodes),
            "policy": one.policy,
        }
        for one in session.monitor.host.memory_backends()
    ]


def _none(_: Session, __: Arguments) -> object:
    return []


def _cpu_definitions(_: Session, __: Arguments) -> object:
    return [
        {
            "name": "host",
            "typename": "host-x86_64-cpu",
            "static": False,
            "migration-safe": False,
            "deprecated": False,
            "unavailable-features": [],
        }
    ]


def _kvm(_: Session, __: Arguments) -> object:
    return {"enabled": True, "present": True}


def _machines(_: Session, __: Arguments) -> object:
    return [
        {
            "hotpluggable-cpus": False,
            "name": "microvm",
            "numa-mem-supported": False,
            "cpu-max": _VCPUS_MAX,
            "deprecated": False,
            "acpi": True,
        }
    ]


def _target(_: Session, __: Arguments) -> object:
    return {"arch": "x86_64"}


def _iothreads(session: Session, _: Arguments) -> object:
    return [
        {
            "id": name,
            "thread-id": thread,
            "poll-max-ns": 0,
            "poll-grow": 0,
            "poll-shrink": 0,
            "aio-max-batch": 0,
        }
        for name, thread in session.monitor.host.iothreads()
    ]


def _node(session: Session, backend: Backend) -> dict[str, object]:
    image = session.monitor.host.image(backend.resource)
    return {
        "node-name": backend.id,
        "drv": "raw",
        "file": image.path,
        "ro": image.readonly,
        "backing_file_depth": 0,
        "encrypted": False,
        "detect_zeroes": image.detect_zeroes,
        **_NO_LIMITS,
        "iops": image.iops,
        "write_threshold": 0,
        "cache": {"direct": image.direct, "no-flush": False, "writeback": True},
        "image": {"filename": image.path, "format": "raw", "virtual-size": image.size},
        **({"x-overlay": {"place": image.overlay, "size": image.written}} if image.overlay else {}),
    }


def _block(session: Session, _: Arguments) -> object:
    return [
        {
            "device": device.id,
            "qdev": device.id,
            "type": "unknown",
            "removable": True,
            "locked": False,
            "inserted": _node(session, device.backend),
        }
        for device in session.monitor.host.inventory.devices(BLOCK)
    ]


def _nodes(session: Session, _: Arguments) -> object:
    return [_node(session, one) for one in session.monitor.host.inventory.backends(BLOCK)]


def _blockstats(session: Session, given: Arguments) -> object:
    host = session.monitor.host
    counters = {one.name: one.values for one in host.counters() if one.target == DEVICE}
    found = []
    for backend in host.inventory.backends(BLOCK):
        device = backend.device
        if device is None and not given.query_nodes:
            continue
        counted = counters.get(device.id, {}) if device else {}
        found.append(
            {
                **({"device": device.id, "qdev": device.id} if device else {}),
                "node-name": backend.id,
                "stats": {
                    **dict.fromkeys(_UNCOUNTED, 0),
                    **{theirs: counted.get(ours, 0) for theirs, ours in _BLOCK_STATS.items()},
                    "wr_highest_offset": 0,
                    "account_invalid": False,
                    "account_failed": False,
                    "timed_stats": [],
                },
            }
        )
    return found


def _rx_filter(session: Session, device: Device) -> dict[str, object]:
    wanted = session.monitor.host.rx_filter(device)
    unicast, multicast = wanted.unicast, wanted.multicast
    every_multicast = wanted.all_multicast or multicast is None
    return {
        "name": device.id,
        "promiscuous": wanted.promiscuous,
        "multicast": "all" if every_multicast else "normal" if multicast else "none",
        "unicast": "all" if unicast is None else "normal" if unicast else "none",
        "vlan": "all" if wanted.vlans is None else "normal" if wanted.vlans else "none",
        "broadcast-allowed": True,
        "multicast-overflow": multicast is None,
        "unicast-overflow": unicast is None,
        "main-mac": wanted.mac.hex(":"),
        "vlan-table": wanted.vlans or [],
        "unicast-table": [address.hex(":") for address in unicast or ()],
        "multicast-table": [address.hex(":") for address in multicast or ()],
    }


def _rx_filters(session: Session, given: Arguments) -> object:
    nics = list(session.monitor.host.inventory.devices(NET))
    if given.name is not None and given.name not in {device.id for device in nics}:
        raise QmpError(f"name {given.name}: there is no such NIC; device_add makes one")
    return [_rx_filter(session, one) for one in nics if given.name in {None, one.id}]


def _stats(session: Session, given: Arguments) -> object:
    return [
        {
            "provider": _PROVIDER,
            "target": one.target,
            "name": one.name,
            "stats": [{"name": name, "value": value} for name, value in one.values.items()],
        }
        for one in session.monitor.host.counters()
        if given.target in {None, one.target} and given.name in {None, one.name}
    ]


COMMANDS = (
    Command("query-cpus", "Returns the vCPUs and the threads that run them.", _cpus),
    Command(
        "query-cpus-fast",
        "The same with QEMU's newer names. `node-id` is there with `-numa`, `die-id` with dies.",
        _cpus_fast,
        since="pyvirt",
    ),
    Command(
        "query-hotpluggable-cpus",
        "Returns the vCPUs, all of which are plugged from the start.",
        _hotpluggable_cpus,
    ),
    Command("query-name", "Returns the name that -name gave.", _name, since="pyvirt"),
    Command(
        "query-uuid",
        "Returns the UUID that -uuid gave; without one all its digits are 0.",
        _uuid,
        since="pyvirt",
        example=("", '{"UUID": "9f1c3e0a-1f1e-4b7e-8a43-2f0f4c1d2e3b"}'),
    ),
    Command(
        "query-memory-size-summary",
        "Returns the bytes of the guest's memory; none of them can be plugged.",
        _memory_size,
        since="pyvirt",
        example=("", '{"base-memory": 268435456, "plugged-memory": 0}'),
    ),
    Command(
        "query-memdev",
        "Returns what the guest's memory is made of: the memory backends of `-object`, or "
        "`microvm.ram`, with the nodes of the host that it comes from.",
        _memdev,
        since="pyvirt",
        example=(
            "",
            (
                '[{"id": "m0", "size": 134217728, "merge": false, "dump": false, '
                '"prealloc": false, "share": false, "host-nodes": [0], "policy": "bind"}]'
            ),
        ),
    ),
    Command(
        "query-memory-devices",
        "Returns an empty list: memory is there from the start.",
        _none,
        since="pyvirt",
    ),
    Command("query-pci", "Returns an empty list: there is no PCI.", _none, since="pyvirt"),
    Command(
        "query-cpu-definitions",
        "Returns the vCPUs' model, which is the host's.",
        _cpu_definitions,
        since="pyvirt",
    ),
    Command("query-kvm", "Returns whether KVM is used. It is.", _kvm, since="v2"),
    Command("query-machines", "Returns the machine types.", _machines, since="v2"),
    Command("query-target", "Returns the guest's architecture.", _target, since="v2"),
    Command(
        "query-iothreads",
        "Returns the threads of `-object iothread`; `thread-id` is 0 while the guest uses nothing "
        "that is on it.",
        _iothreads,
        since="v2",
    ),
    Command(
        "query-block",
        "Returns the disks that are plugged and their images.",
        _block,
        since="v2",
    ),
    Command(
        "query-named-block-nodes",
        "Returns the images that are open.",
        _nodes,
        Struct(Field("flat", Boolean(), "has no effect: nothing is behind them", optional=True)),
        since="v2",
    ),
    Command(
        "query-blockstats",
        "Returns what the disks have done. Of QEMU's counters those of bytes and operations are "
        "counted; times, merged, failed and invalid requests are not, and are 0.",
        _blockstats,
        Struct(
            Field(
                "query-nodes",
                Boolean(),
                "also images that no device has",
                optional=True,
                default=False,
            )
        ),
        since="v2",
    ),
    Command(
        "query-rx-filter",
        "Returns what the drivers of the NICs want to receive; NIC_RX_FILTER_CHANGED tells of the "
        "first change after that.",
        _rx_filters,
        Struct(Field("name", Text(), "only of this NIC", optional=True)),
        since="pyvirt",
    ),
    Command(
        "x-query-stats",
        "Returns pyvirt's counters: exits, interrupts, requests. They only grow, until a device is "
        "unplugged. Of one that another process serves they are what is known of that: whether it "
        "is `connected`, how many `connections` and `config_changes` there were, and how many "
        "buffers are `waiting` in its queues now, room for packets to come among them.",
        _stats,
        Struct(
            Field(
                "target",
                Choice(VM, VCPU, DEVICE),
                "only of this kind; those of `vm` are its vCPUs' sums",
                optional=True,
            ),
            Field("name", Text(), "only of the one of this name", optional=True),
        ),
        since="pyvirt",
        example=(
            '{"target": "vcpu"}',
            (
                '[{"provider": "pyvirt", "target": "vcpu", "name": "vcpu0", '
                '"stats": [{"name": "exits", "value": 5012}]}]'
            ),
        ),
    ),
)
