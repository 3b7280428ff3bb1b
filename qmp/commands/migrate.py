"""Snapshots, in the words of migration: the machine is written to a folder, and stays paused.

Or to a process that others are forked from (docs/snapshot.md): that is pyvirt's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import QmpError
from ..schema import Arguments, Boolean, Command, Field, FileName, Only, Struct

if TYPE_CHECKING:
    from ..session import Session

_FILE, _TEMPLATE = "file:", "template:"
_ELSEWHERE = ("tcp:", "unix:", "exec:", "fd:", "rdma:")


def _migrate(session: Session, given: Arguments) -> object:
    if given.uri.startswith(_ELSEWHERE):
        raise QmpError("MicroVM does not support migration")
    for scheme, save in (
        (_FILE, session.monitor.host.save),
        (_TEMPLATE, session.monitor.host.become_template),
    ):
        path = given.uri.removeprefix(scheme)
        if path != given.uri and path:
            save(path)
            return {}
    raise QmpError(f"Invalid uri: {given.uri}")


def _query(session: Session, _: Arguments) -> object:
    found = session.monitor.host.saving()
    answer: dict[str, object] = {"status": found.status}
    if found.error:
        answer["error-desc"] = found.error
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


_INCREMENTAL = "a snapshot is always of the whole machine; leave it out"

COMMANDS = (
    Command(
        "migrate",
        "Begins to write the machine to a folder, which is new or empty: a snapshot, from which "
        "`-incoming` restores it. A running machine is paused first, STOP comes before the answer, "
        "and it stays paused; `query-migrate` says when all is written. It is refused, and the "
        "guest runs on, where the machine has what a snapshot does not keep, or the host's storage "
        "does not complete a disk's requests within 5 s.",
        _migrate,
        Struct(
            Field(
                "uri",
                FileName(),
                f"`{_FILE}` and the folder; or, which is pyvirt's own, `{_TEMPLATE}` and the "
                "socket of a `pyvirt template`; other machines cannot be reached",
            ),
            Field("blk", Only(_INCREMENTAL, False), "disks are not copied", optional=True),
            Field("inc", Only(_INCREMENTAL, False), "the same", optional=True),
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
