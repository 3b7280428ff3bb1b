"""Faults that devices commit because a client asks for them (native/virtio/fault.h)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...devices.virtio.fault import KINDS, OPERATIONS, Fault
from ...errors import QmpError
from ..schema import Arguments, Choice, Command, Field, Integer, ListOf, Struct, Text, shown

if TYPE_CHECKING:
    from ...devices.virtio.fault import FaultState
    from ..session import Session

_NUMBER_MAX = (1 << 53) - 1  # what every reader of JSON takes
_DELAY_MAX = 3_600_000_000
_SECTOR_MAX = (1 << 55) - 1
# Members that go with one kind of fault.
_OWN = {"delay": "delay", "errno": "fail", "offset": "corrupt"}


def _error(name: str) -> int:
    number = getattr(errno, name, None) if name.startswith("E") else None
    if not isinstance(number, int):
        raise QmpError(
            f"`errno` {shown(name)} is no error; give one of errno(3), such as EIO or ENOSPC"
        )
    return number


def _add(session: Session, given: Arguments) -> object:
    for member, kind in _OWN.items():
        if getattr(given, member) is not None and given.kind != kind:
            raise QmpError(f"`{member}` is not for kind {given.kind}; leave it out")
    if given.kind == "delay" and given.delay is None:
        raise QmpError("missing field `delay`: how long, in microseconds")
    if given.ops == []:
        raise QmpError("`ops` is empty; name some, or leave it out")
    sectors = (given.sectors.first, given.sectors.last) if given.sectors else None
    if sectors and sectors[0] > sectors[1]:
        raise QmpError(f"`sectors.first` {sectors[0]} is behind `sectors.last` {sectors[1]}")
    fault = Fault(
        given.kind,
        given.ops or (),
        errno=_error(given.errno or "EIO"),
        delay_ns=1000 * (given.delay or 0),
        offset=given.offset or 0,
        sectors=sectors,
        after=given.after,
        every=given.every,
        count=given.count or 0,
    )
    return {"id": session.monitor.host.add_fault(given.device, fault)}


def _clear(session: Session, given: Arguments) -> object:
    if given.id is not None and given.device is None:
        raise QmpError(f"`id` {given.id} is one of which device's? Give `device` too")
    session.monitor.host.clear_faults(given.device, given.id)
    return {}


def _shown(device: str, state: FaultState) -> dict[str, object]:
    fault = state.fault
    answer: dict[str, object] = {
        "device": device,
        "id": state.id,
        "kind": fault.kind,
        "ops": list(fault.ops),
        "after": fault.after,
        "every": fault.every,
        "seen": state.seen,
        "hits": state.hits,
        "spent": bool(fault.count and state.hits >= fault.count),
    }
    if fault.count:
        answer["count"] = fault.count
    if fault.sectors:
        answer["sectors"] = {"first": fault.sectors[0], "last": fault.sectors[1]}
    if fault.kind == "delay":
        answer["delay"] = fault.delay_ns // 1000
    elif fault.kind == "fail":
        answer["errno"] = errno.errorcode[fault.errno]
    elif fault.kind == "corrupt":
        answer["offset"] = fault.offset
    return answer


def _query(session: Session, given: Arguments) -> object:
    return [_shown(device, state) for device, state in session.monitor.host.faults(given.device)]


def _break(session: Session, given: Arguments) -> object:
    session.monitor.host.break_device(given.device)
    return {}


_DEVICE = "its id, or its slot in the guest's words, such as vda or eth0"

COMMANDS = (
    Command(
        "x-fault-add",
        "Lets a device commit a fault, so that its driver can be tested, and returns the fault's "
        "number among the device's. Disks `delay` a request (others go on), `fail` it (nothing of "
        "it is done), `drop` it (no answer before the fault is cleared, or an I/O error at a reset "
        "of the driver's) or `corrupt` what is read. NICs `drop` packets. All `drop` and `double` "
        "interrupts. A fault strikes at each `every`-th of what it is for, after the first "
        "`after`, `count` times. Unplugging, and a reset of the machine, clear a device's faults; "
        "its driver's reset does not.",
        _add,
        Struct(
            Field("device", Text(), _DEVICE),
            Field("kind", Choice(*KINDS), "what happens"),
            Field(
                "ops",
                ListOf(Choice(*OPERATIONS)),
                f"to what, some of {', '.join(OPERATIONS)}; without it to all requests or packets "
                "it can happen to, to interrupts if there is nothing else",
                optional=True,
            ),
            Field("errno", Text(32), "of `fail`, the host's error; EIO", optional=True),
            Field("delay", Integer(1, _DELAY_MAX), "of `delay`, in microseconds", optional=True),
            Field(
                "offset",
                Integer(0, (1 << 32) - 1),
                "of `corrupt`, the byte of a request's data all bits of which are turned; 0",
                optional=True,
            ),
            Field(
                "sectors",
                Struct(
                    Field("first", Integer(0, _SECTOR_MAX), "of 512 bytes"),
                    Field("last", Integer(0, _SECTOR_MAX), "this one too"),
                ),
                "only reads and writes that touch one of these",
                optional=True,
            ),
            Field("after", Integer(0, _NUMBER_MAX), "so many are spared", optional=True, default=0),
            Field("every", Integer(1, _NUMBER_MAX), "then each so many", optional=True, default=1),
            Field("count", Integer(1, _NUMBER_MAX), "how often; no end", optional=True),
        ),
        since="pyvirt",
        example=(
            '{"device": "vda", "kind": "fail", "ops": ["write"], "errno": "ENOSPC", "after": 100}',
            '{"id": 1}',
        ),
    ),
    Command(
        "x-fault-clear",
        "Ends faults: one, a device's, or all. What they have kept goes on.",
        _clear,
        Struct(
            Field("device", Text(), _DEVICE, optional=True),
            Field("id", Integer(1, (1 << 31) - 1), "the fault's number", optional=True),
        ),
        since="pyvirt",
        example=('{"device": "vda", "id": 1}', "{}"),
    ),
    Command(
        "query-x-faults",
        "Returns the faults and what became of them: how much there was for them (`seen`), how "
        "often they struck (`hits`), and whether that was `count` times (`spent`).",
        _query,
        Struct(Field("device", Text(), f"only of this one: {_DEVICE}", optional=True)),
        since="pyvirt",
        example=(
            "",
            (
                '[{"device": "drive-0", "id": 1, "kind": "fail", "ops": ["write"], "after": 100, '
                '"every": 1, "seen": 104, "hits": 4, "spent": false, "errno": "ENOSPC"}]'
            ),
        ),
    ),
    Command(
        "x-fault-break",
        "Lets a device need a reset (DEVICE_NEEDS_RESET), as a driver's own mistake does: it takes "
        "no more requests before that.",
        _break,
        Struct(Field("device", Text(), _DEVICE)),
        since="pyvirt",
        example=('{"device": "eth0"}', "{}"),
    ),
)
