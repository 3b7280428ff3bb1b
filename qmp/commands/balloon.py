"""The guest's memory, as far as a balloon takes it away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..schema import Arguments, Command, Field, Integer, Struct

if TYPE_CHECKING:
    from ..session import Session

_SIZE_MAX = (1 << 63) - 1


def _balloon(session: Session, given: Arguments) -> object:
    session.monitor.host.set_guest_memory(given.value)
    return {}


def _query_balloon(session: Session, _: Arguments) -> object:
    return {"actual": session.monitor.host.guest_memory()}


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
)
