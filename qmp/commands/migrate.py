"""Snapshots, in the words of migration: the machine is written to a folder, and stays paused.

Or to a process that others are forked from (docs/snapshot.md): that is pyvirt's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import QmpError
from ...vmm.sandbox import out_of_reach
from ..schema import Arguments, Boolean, Command, Field, FileName, Only, Struct

if TYPE_CHECKING:
    from ..session import Session

_FILE, _TEMPLATE = "file:", "template:"
_ELSEWHERE = ("tcp:", "unix:", "exec:", "fd:", "rdma:")


def _migrate(session: Session, given: Arguments) -> object:
    if given.uri.startswith(_ELSEWHERE):
        raise QmpError("MicroVM does not support migration")
    host = session.monitor.host
    scheme, place = _split(given.uri)
    if scheme == _FILE:
        host.save(place, incremental=given.incremental)
    elif given.incremental:
        raise QmpError("`incremental`: a template has all of a machine's memory; leave it out")
    else:
        host.become_template(place)
    return {}


def _split(uri: str) -> tuple[str, str]:
    for scheme in (_FILE, _TEMPLATE):
        place = uri.removeprefix(scheme)
        if place != uri and place:
            return scheme, place
    raise QmpError(f"Invalid uri: {uri}")


def _query(session: Session, _: Arguments) -> object:
    found = session.monitor.host.saving()
    answer: dict[str, object] = {"status": found.status}
    if found.error:
        answer["error-desc"] = found.error + out_of_reach(found.error)
    if found.total:
        answer["x-memory"] = {
            "total": found.total,
            "remaining": found.total - found.done,
            "written": found.written,
        }
    return answer


def _cancel(session: Session, _: Arguments) -> object:
    session.monitor.host.cancel_save()
    return {}


_OF_DISKS = "disks are not copied; leave it out"

COMMANDS = (
    Command(
        "migrate",
        "Begins to write the machine to a folder, which is new or empty: a snapshot, from which "
        "`-incoming` restores it. A running machine is paused first, STOP comes before the answer, "
        "and it stays paused; `query-migrate` says when all is written. It is refused, and the "
        "guest runs on, where the machine has what a snapshot does not keep, or the host's storage "
        "does not complete a disk's requests within 5 s. With `incremental` the folder has of "
        "memory what was written to since the snapshot that the machine was restored from, and "
        "goes on from that one.",
        _migrate,
        Struct(
            Field(
                "uri",
                FileName(),
                f"`{_FILE}` and the folder; or, which is pyvirt's own, `{_TEMPLATE}` and the "
                "socket of a `pyvirt template`; other machines cannot be reached",
            ),
            Field(
                "incremental",
                Boolean(),
                "only what has changed since `-incoming`, of memory that is mapped; an addition to "
                "StratoVirt's",
                optional=True,
                default=False,
            ),
            Field("blk", Only(_OF_DISKS, False), "disks are not copied", optional=True),
            Field("inc", Only(_OF_DISKS, False), "the same", optional=True),
            Field("resume", Only("give migrate again", False), "the same", optional=True),
            Field("detach", Boolean(), "ignored: it never waits", optional=True),
        ),
        since="v0.3.0",
        example=('{"uri": "file:/tmp/snapshot"}', "{}"),
    ),
    Command(
        "query-migrate",
        "Returns how far the last `migrate` has come: `none`, `active`, `completed`, `failed` (the "
        "reason is in `error-desc`) or `canceled`. In `x-memory`, bytes of the guest's memory: all "
        "there are, those still to be looked at, and those written, for zeroes are not. After "
        "`-incoming` it is `completed`.",
        _query,
        since="v0.3.0",
        example=("", '{"status": "completed"}'),
    ),
    Command(
        "migrate_cancel",
        "Ends a `migrate` that is under way, soon; nothing of it stays. The machine stays paused.",
        _cancel,
        since="v2",
        example=("", "{}"),
    ),
)
