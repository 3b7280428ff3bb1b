"""The session itself: hello, what is understood here, and descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import QmpError
from .. import events, introspect
from ..schema import Arguments, Command, Field, ListOf, Struct, Text
from ..version import VERSION

if TYPE_CHECKING:
    from ..session import Session


def _capabilities(session: Session, given: Arguments) -> object:
    if given.enable:
        raise QmpError(f"Capability '{given.enable[0]}' is not offered; leave `enable` out")
    session.is_ready = True
    return {}


def _version(_: Session, __: Arguments) -> object:
    return VERSION


def _commands(session: Session, _: Arguments) -> object:
    return [{"name": command.name} for command in session.monitor.table]


def _events(_: Session, __: Arguments) -> object:
    return [{"name": event.name} for event in events.TABLE]


def _schema(session: Session, _: Arguments) -> object:
    return introspect.schema(session.monitor.table, events.TABLE)


def _getfd(session: Session, given: Arguments) -> object:
    session.descriptors.name(given.fdname)
    return {}


def _closefd(session: Session, given: Arguments) -> object:
    session.descriptors.drop(given.fdname)
    return {}


_FDNAME = Struct(Field("fdname", Text(), "the name, which does not begin with a digit"))

COMMANDS = (
    Command(
        "qmp_capabilities",
        "Says hello. Accepted at any time, required over TCP alone; events begin with the first "
        "command of any name.",
        _capabilities,
        Struct(
            Field("enable", ListOf(Text()), "capabilities, of which there are none", optional=True)
        ),
        answer_first=True,
        example=("", "{}"),
    ),
    Command(
        "query-version",
        "Returns the version that is in the greeting.",
        _version,
        since="v2",
    ),
    Command(
        "query-commands",
        "Returns the names of all commands.",
        _commands,
        since="v2",
    ),
    Command(
        "query-events",
        "Returns the names of all events.",
        _events,
        since="v2",
    ),
    Command(
        "query-qmp-schema",
        "Returns commands, their arguments and events in the form of QEMU's introspection.",
        _schema,
        since="v2",
    ),
    Command(
        "getfd",
        "Gives a name to a descriptor that came with this request or before it (SCM_RIGHTS); the "
        "name is this connection's and ends with it.",
        _getfd,
        _FDNAME,
        example=('{"fdname": "fd1"}', "{}"),
    ),
    Command(
        "closefd",
        "Closes the descriptor of that name.",
        _closefd,
        _FDNAME,
        since="pyvirt",
        example=('{"fdname": "fd1"}', "{}"),
    ),
)
