"""Requests in, answers out: finds the command, checks its arguments, runs it. No I/O of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import PyvirtError, QmpError
from . import table
from .descriptors import Descriptors
from .schema import described, shown
from .throttle import RATE, LeakyBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..vmm.log import Log
    from .host import Host
    from .schema import Arguments, Command

_MEMBERS = ("execute", "arguments", "id")


class Session:
    """One client: its descriptors, its limit, and whether it gets events yet."""

    __slots__ = ("bucket", "descriptors", "monitor", "wants_events")

    def __init__(self, monitor: Monitor, *, throttled: bool = True) -> None:
        self.monitor = monitor
        self.descriptors = Descriptors()
        self.bucket = LeakyBucket() if throttled else None
        # From the first command on that is not refused; for qmp_capabilities behind its answer, as
        # nothing is to come between a client's hello and ours.
        self.wants_events = False

    def close(self) -> None:
        """Close what the client has left here."""
        self.descriptors.close()


class Answer:
    """What a client gets for one request. `first`: ahead of the events that the request caused."""

    __slots__ = ("first", "message")

    def __init__(self, message: dict[str, object], *, first: bool = False) -> None:
        self.message = message
        self.first = first


def _error(error: QmpError) -> dict[str, object]:
    return {"error": {"class": error.kind, "desc": str(error)}}


class Monitor:
    """Runs the commands of all clients against one machine, one at a time."""

    table = table.TABLE

    def __init__(self, host: Host, emit: Callable[[str, dict[str, object]], None], log: Log):
        """`emit` takes the events of commands: a name and data, as in `events`."""
        self.host = host
        self.emit = emit
        self._log = log

    def refuse(self, session: Session, description: str) -> Answer:
        """Return the answer to something that is no request."""
        if self._is_throttled(session):
            return Answer(_error(self._throttled()))
        return Answer(_error(QmpError(description)))

    def execute(self, session: Session, request: dict[str, Any]) -> Answer:
        """Run one request and return its answer, an error with everything else as it was."""
        first = False
        message: dict[str, object]
        try:
            if self._is_throttled(session):
                raise self._throttled()
            command, arguments = self._look_up(request)
            first = command.answer_first
            message = {"return": command.handler(session, arguments)}
            session.wants_events = True
        except QmpError as error:
            message = _error(error)
        except PyvirtError as error:
            message = _error(QmpError(str(error)))
        except Exception as error:  # noqa: BLE001  (a fault of ours costs one command, not the guest)
            name = shown(str(request.get("execute")))
            self._log.error(f"QMP {name}: {type(error).__name__}: {error}; please report")
            message = _error(QmpError(f"internal error: {type(error).__name__}; see the log"))
        if "id" in request:
            message["id"] = request["id"]
        return Answer(message, first=first)

    def _is_throttled(self, session: Session) -> bool:
        return session.bucket is not None and not session.bucket.take()

    def _throttled(self) -> QmpError:
        return QmpError(f"More than {RATE} requests received during 1 second", "OperationThrottled")

    def _look_up(self, request: dict[str, Any]) -> tuple[Command, Arguments]:
        for member in request:
            if member not in _MEMBERS:
                among = ", ".join(f"`{name}`" for name in _MEMBERS)
                raise QmpError(f"unknown field `{shown(member)}`, expected one of {among}")
        if "execute" not in request:
            raise QmpError("missing field `execute`")
        name = request["execute"]
        if not isinstance(name, str):
            raise QmpError(f"invalid type: {described(name)}, expected a string for `execute`")
        command = table.BY_NAME.get(name)
        if command is None:
            raise QmpError(
                f"The command {shown(name)} has not been found; query-commands lists them",
                "CommandNotFound",
            )
        needed = any(not field.optional for field in command.arguments.fields)
        if needed and "arguments" not in request:
            raise QmpError("missing field `arguments`")
        return command, command.arguments.read(request.get("arguments", {}), "")
