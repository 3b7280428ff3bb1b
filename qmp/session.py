"""A client's session, and what its commands have at hand; the server's thread uses both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .descriptors import Descriptors
from .throttle import LeakyBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .host import Host
    from .schema import Command


class Context:
    """What commands work with: the machine, the way of events, the table they stand in."""

    table: Sequence[Command[Session]] = ()

    def __init__(self, host: Host, emit: Callable[[str, dict[str, object]], None]) -> None:
        """`emit` takes the events of commands: a name and data, as in `events`."""
        self.host = host
        self.emit = emit


class Session:
    """One client: its descriptors, its limit, and whether it gets events yet.

    One that `must_greet` has no other command before qmp_capabilities.
    """

    __slots__ = ("bucket", "descriptors", "is_ready", "monitor", "wants_events")

    def __init__(
        self, monitor: Context, *, throttled: bool = True, must_greet: bool = False
    ) -> None:
        self.monitor = monitor
        self.is_ready = not must_greet
        self.descriptors = Descriptors()
        self.bucket = LeakyBucket() if throttled else None
        # From the first command on that is not refused; for qmp_capabilities behind its answer, as
        # nothing is to come between a client's hello and ours.
        self.wants_events = False

    def close(self) -> None:
        """Close what the client has left here."""
        self.descriptors.close()
