"""What options say of sockets: `-qmp`, `-chardev` and `-mon`."""

from __future__ import annotations

import os

from ...errors import ConfigError
from ...files import SOCKET_PATH_MAX
from .members import FALSE, TRUE, comma_hint, is_number, one_of

PORT_MAX = 65535
FD_MAX = 1 << 20
LOOPBACK = "127.0.0.1"
_SWITCH = (*TRUE, *FALSE)


def number(option: str, text: str, least: int, most: int) -> int:
    """Read a number of that range; ConfigError."""
    if not is_number(text, least, most):
        raise ConfigError(f"{option}: {text or 'nothing'} is not a number from {least} to {most}")
    return int(text)


def path(option: str, text: str) -> str:
    """Read the path of a Unix socket; ConfigError."""
    size = len(os.fsencode(text))
    if not 1 <= size <= SOCKET_PATH_MAX:
        raise ConfigError(f"{option}: a socket's path has 1 to {SOCKET_PATH_MAX} bytes, not {size}")
    return text


class Members:
    """The members of one option; each is taken once, and none may be left."""

    __slots__ = ("_option", "_values")

    def __init__(self, option: str, text: str, given: list[tuple[str, str]]) -> None:
        self._option = f"{option} {text}"
        self._values = dict(given)

    def peek(self, name: str) -> str | None:
        """Return the value of a member and leave it, None without it."""
        return self._values.get(name)

    def take(self, *names: str) -> str | None:
        """Return the value of the member that goes by one of these names, None without it."""
        for name in names:
            if name in self._values:
                return self._values.pop(name)
        return None

    def switch(self, name: str, default: bool) -> bool:
        """Return whether a member is on."""
        value = self.take(name)
        return (
            default if value is None else one_of(f"{self._option} {name}", value, _SWITCH) in TRUE
        )

    def listens(self) -> bool:
        """Say whether pyvirt is to listen, and to go on without a client."""
        server, nowait = self.take("server"), self.take("nowait")
        if nowait is None and self.take("wait") in FALSE:
            nowait = ""
        return server in {"", *TRUE} and nowait in {"", *TRUE}

    def settings(self) -> tuple[bool, bool]:
        """Return whether clients are throttled, and whether events follow the answers."""
        throttled = self.switch("throttle", True)
        events = one_of(f"{self._option} events", self.take("events") or "first", ("first", "last"))
        return throttled, events == "last"

    def end(self, but: tuple[str, ...] = ()) -> None:
        """Refuse what nobody took, except for `but`."""
        for name in self._values.keys() - set(but):
            raise ConfigError(
                f"{self._option}: {name or 'an empty member'} is not understood here; "
                f"pyvirt run -help lists what is{comma_hint(self._values[name])}"
            )


def not_listening(option: str) -> ConfigError:
    """Return the error of an option that does not say what `Members.listens` asks."""
    return ConfigError(
        f"{option}: pyvirt listens and does not wait for a client; add ,server,nowait"
    )
