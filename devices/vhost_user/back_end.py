"""What a device knows of where its back end is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket


class BackEnd(Protocol):
    """Where a back end is; whoever holds it closes it."""

    who: str  # "the back end", or a name
    mend: str  # what may help when `connect` fails
    patience: float  # seconds that the first answer of all may take, when no guest waits yet

    @property
    def where(self) -> str:
        """How messages of the start call it: the option, and the path."""

    def connect(self) -> socket.socket:
        """Return a new connection; OSError, ConfigError. It does not wait."""

    def why(self) -> str:
        """Return what is known of why it has gone, in a line; "" for nothing."""

    def close(self) -> None:
        """Give up what it needs of the host."""
