"""The guest's memory, as far as a balloon takes it away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import QmpError
from ..schema import Arguments, Command, Field, Integer, Struct, Text, Type

if TYPE_CHECKING:
    from ..host import GuestStatistics
    from ..session import Session

_SIZE_MAX = (1 << 63) - 1
_STATISTICS, _INTERVAL = "guest-stats", "guest-stats-polling-interval"
_SECONDS = Integer(0, (1 << 32) - 1)
# QEMU's names of the statistics, by their tags.
_NAMES = (
    "stat-swap-in", "stat-swap-out", "stat-major-faults", "stat-minor-faults", "stat-free-memory",
    "stat-total-memory", "stat-available-memory", "stat-disk-caches", "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
)  # fmt: skip


def _balloon(session: Session, given: Arguments) -> object:
    session.monitor.host.set_guest_memory(given.value)
    return {}


def _query_balloon(session: Session, _: Arguments) -> object:
    return {"actual": session.monitor.host.guest_memory()}


def _statistics(session: Session, path: str) -> GuestStatistics | None:
    """Return those of the balloon that a path such as /machine/peripheral/balloon0 is of."""
    return session.monitor.host.guest_statistics(path.rpartition("/")[2])


def _get(session: Session, given: Arguments) -> object:
    found = _statistics(session, given.path)
    if found is not None and given.property == _STATISTICS:
        stats = dict(zip(_NAMES, found.values, strict=True))
        return {"stats": stats, "last-update": found.updated}
    if found is not None and given.property == _INTERVAL:
        return found.interval
    return []


def _set(session: Session, given: Arguments) -> object:
    if _statistics(session, given.path) is None or given.property != _INTERVAL:
        raise QmpError(
            f"there is no property to set but a balloon's {_INTERVAL}; see device_add and "
            "block_resize"
        )
    session.monitor.host.poll_guest_statistics(_SECONDS.read(given.value, "value"))
    return {}


_PATH = Field("path", Text(), "the balloon's id, or a path that ends in it")

COMMANDS = (
    Command(
        "balloon",
        "Asks the guest to make do with so much memory; more than it has stands for all of it. The "
        "answer comes at once; the guest does what it can, and BALLOON_CHANGED tells how far it "
        "is. DeviceNotActive, `No balloon device has been activated`: there is no `-device "
        "virtio-balloon-device`.",
        _balloon,
        Struct(Field("value", Integer(1, _SIZE_MAX), "bytes that the guest is to have left")),
        since="v0.3.0",
        example=('{"value": 134217728}', "{}"),
    ),
    Command(
        "query-balloon",
        "Returns the bytes of memory that the guest has: all but what is in the balloon.",
        _query_balloon,
        since="v0.3.0",
        example=("", '{"actual": 134217728}'),
    ),
    Command(
        "qom-get",
        f"Returns a balloon's `{_STATISTICS}`, which its driver has told, as QEMU names them (all "
        f"ones: not told), or its `{_INTERVAL}`. Of all else it returns an empty list.",
        _get,
        Struct(_PATH, Field("property", Text(), "which")),
        since="v2",
        example=(
            f'{{"path": "/machine/peripheral/balloon0", "property": "{_INTERVAL}"}}',
            "2",
        ),
    ),
    Command(
        "qom-set",
        f"Sets a balloon's `{_INTERVAL}`: its driver is asked for statistics every so many "
        "seconds, 0: not any more.",
        _set,
        Struct(
            _PATH, Field("property", Text(), f"`{_INTERVAL}`"), Field("value", Type(), "seconds")
        ),
        since="pyvirt",
        example=(
            f'{{"path": "/machine/peripheral/balloon0", "property": "{_INTERVAL}", "value": 2}}',
            "{}",
        ),
    ),
)
