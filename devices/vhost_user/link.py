"""The link from a device to its back end: one session after another, and what outlives each.

Errors are those of Session; their text goes on after "its back end".
"""

from __future__ import annotations

import time

from ...errors import BackendError, ConfigError
from ..virtio import turn
from . import protocol as p
from .connection import Connection, discard
from .session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .back_end import BackEnd
    from .layout import Region, Ring
    from .session import Inflight

_MESSAGES = 16  # of a back end's own requests, in a turn
_PROTOCOL = p.MQ | p.REPLY_ACK | p.INFLIGHT_SHMFD


class Link:
    """Owns the back end's place, the session and the record of requests until `close`.

    One thread at a time, but for `session`, which any may compare with None.
    """

    __slots__ = (
        "_back_end",
        "_config_size",
        "_inflight",
        "config",
        "config_changes",
        "connections",
        "session",
    )

    def __init__(self, back_end: BackEnd, config_size: int) -> None:
        """Take `back_end` over, and do not connect yet.

        `config_size` is how many bytes of its configuration space the device has a use for.
        """
        self._back_end = back_end
        self._config_size = config_size
        self._inflight: Inflight | None = None
        self.session: Session | None = None  # with the back end that is there
        self.config = b""  # what it has said last
        self.connections = 0  # that there were
        self.config_changes = 0  # that it told

    @property
    def where(self) -> str:
        """How messages of the start call the back end."""
        return self._back_end.where

    def why(self) -> str:
        """Return what a message adds of why it has gone."""
        why = self._back_end.why()
        return f": {why}" if why else ""

    def begin(self) -> Session:
        """Connect for the first time; ConfigError, BackendError."""
        try:
            return self.connect(time.monotonic() + self._back_end.patience)
        except OSError as error:
            raise ConfigError(f"{self.where}: {error.strerror}; {self._back_end.mend}") from None
        except BackendError as error:
            raise BackendError(f"{self.where}: {self._back_end.who} {error}{self.why()}") from None

    def connect(self, deadline: float) -> Session:
        """Return a session with whoever is there; OSError, BackendError.

        It becomes the link's `session` if the device can do with it.
        """
        wanted = _PROTOCOL | (p.CONFIG | p.BACKEND_REQ if self._config_size else 0)
        session = Session(Connection(self._back_end.connect()), wanted, deadline)
        try:
            if self._config_size and session.has_config:
                self.config = session.config(self._config_size, deadline)
        except BaseException:
            session.close()
            raise
        self.connections += 1
        return session

    def start(
        self,
        features: int,
        regions: Sequence[Region],
        rings: Sequence[Ring],
        queues: int,
        deadline: float,
    ) -> None:
        """Let the back end that is there serve the rings, from where the record says."""
        assert self.session is not None
        self._inflight = self.session.start(
            features, regions, rings, queues, self._inflight, deadline
        )

    def forget(self) -> None:
        """Give the record up: nothing is begun any more."""
        before, self._inflight = self._inflight, None
        if before is not None:
            before.close()

    def hear(self, session: Session) -> bool:
        """Take what the back end says by itself; return whether there may be more.

        That never waits, but for the configuration when it is told to have changed.
        """
        session.look()
        channel, changed, taken = session.channel, False, 0
        while channel is not None and taken < _MESSAGES and (got := channel.receive()):
            taken += 1
            if got.fds:
                discard(got)
                raise p.ProtocolError(f"sends open files with message {got.request}")
            known = got.request == p.BACKEND_CONFIG_CHANGE
            channel.acknowledge(got, int(not known))
            changed |= known
        if changed:
            self.config_changes += 1
            self.config = session.config(self._config_size, time.monotonic() + turn.LIMIT_S)
        return taken == _MESSAGES

    def drop(self) -> None:
        """Close the connection."""
        session, self.session = self.session, None
        if session is not None:
            session.close()

    def close(self) -> None:
        """Let go of the back end, and of all that was for the next."""
        self.drop()
        self.forget()
        self._back_end.close()
