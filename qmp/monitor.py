"""Requests in, answers out: finds the command, checks its arguments, runs it. No I/O of its own.

A command may wait for the guest, a step at a time (vmm/steps.py), while others are run.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ..errors import PyvirtError, QmpError
from ..vmm.sandbox import out_of_reach
from ..vmm.steps import finish
from . import table
from .framing import Fault, parse
from .schema import described, shown
from .session import Context
from .throttle import RATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..vmm.log import Log
    from ..vmm.steps import Steps
    from .host import Host
    from .schema import Arguments, Command
    from .session import Session

_MEMBERS = ("execute", "arguments", "id")
# Of a request beyond the limit this many bytes are looked at, for its id.
GLANCE_BYTES = 4096
HELLO = "qmp_capabilities"


class Answer:
    """What a client gets for one request. `first`: ahead of the events that the request caused.

    `fault` is what was wrong with it if it was no JSON.
    """

    __slots__ = ("fault", "first", "message")

    def __init__(
        self, message: dict[str, object], *, first: bool = False, fault: Fault | None = None
    ) -> None:
        self.message = message
        self.first = first
        self.fault = fault


def _error(error: QmpError) -> dict[str, object]:
    text = str(error)
    return {"error": {"class": error.kind, "desc": text + out_of_reach(text)}}


def _throttled(item: bytes | Fault) -> Answer:
    text = f"More than {RATE} requests received during 1 second"
    message = _error(QmpError(text, "OperationThrottled"))
    if isinstance(item, Fault):
        return Answer(message, fault=item)
    request = parse(item) if len(item) <= GLANCE_BYTES else {}
    if isinstance(request, Fault):
        return Answer(message, fault=request)
    if "id" in request:
        message["id"] = request["id"]
    return Answer(message)


class Monitor(Context):
    """Runs the commands of all clients against one machine, one at a time."""

    table = table.TABLE

    def __init__(self, host: Host, emit: Callable[[str, dict[str, object]], None], log: Log):
        """`emit` takes the events of commands: a name and data, as in `events`."""
        super().__init__(host, emit)
        self._log = log

    def answer(self, session: Session, item: bytes | Fault) -> Steps[Answer]:
        """Return the answer to what a client's stream has; it is counted before a look at it."""
        if session.bucket is not None and not session.bucket.take():
            return _throttled(item)
        request = parse(item) if isinstance(item, bytes) else item
        if isinstance(request, Fault):
            return Answer(_error(QmpError(request.description)), fault=request)
        return (yield from self._run(session, request))

    def execute(self, session: Session, request: dict[str, Any]) -> Answer:
        """Run one request to its end and return its answer."""
        return finish(self._run(session, request))

    def _run(self, session: Session, request: dict[str, Any]) -> Steps[Answer]:
        """Run one and return its answer, an error with everything else as it was."""
        first = False
        message: dict[str, object]
        try:
            command, arguments = self._look_up(session, request)
            first = command.answer_first
            result = command.handler(session, arguments)
            if isinstance(result, Generator):
                result = yield from result
            message = {"return": result}
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

    def _look_up(
        self, session: Session, request: dict[str, Any]
    ) -> tuple[Command[Session], Arguments]:
        if "exec-oob" in request:
            # QEMU's sentence for a client that has not asked for the capability.
            raise QmpError(
                "QMP input member 'exec-oob' is unexpected: there is no capability `oob`; "
                "send `execute`"
            )
        for member in request:
            if member not in _MEMBERS:
                among = ", ".join(f"`{name}`" for name in _MEMBERS)
                raise QmpError(f"unknown field `{shown(member)}`, expected one of {among}")
        if "execute" not in request:
            raise QmpError("missing field `execute`")
        name = request["execute"]
        if not isinstance(name, str):
            raise QmpError(f"invalid type: {described(name)}, expected a string for `execute`")
        if not session.is_ready and name != HELLO:
            # QEMU's words.
            raise QmpError(f"Expecting capabilities negotiation with '{HELLO}'", "CommandNotFound")
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
