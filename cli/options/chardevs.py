"""The option that describes the host's end of a port or a monitor: `-chardev`.

Each is used by one device or monitor, which names it by its id.
"""

from __future__ import annotations

from ...devices.chardev import ChardevConfig
from ...errors import ConfigError
from .members import pairs
from .sockets import FD_MAX, LOOPBACK, PORT_MAX, Members, not_listening, number, path

_FORM = "socket,id=ID,path=PATH,server,nowait"


class Chardevs:
    """What the options say, by their ids, and who uses it."""

    __slots__ = ("_configs", "_texts", "_users")

    def __init__(self) -> None:
        self._configs: dict[str, ChardevConfig] = {}
        self._texts: dict[str, str] = {}
        self._users: dict[str, str] = {}

    def add(self, text: str) -> None:
        """Take the value of one option; ConfigError."""
        option = f"-chardev {text}"
        (kind, value), *rest = pairs("-chardev", text, "kind")
        if (kind, value) != ("kind", "socket"):
            raise ConfigError(f"{option}: the only kind here is {_FORM}")
        given = Members("-chardev", text, rest)
        name = given.take("id")
        if not name:
            raise ConfigError(f"{option}: has no id; give {_FORM}")
        if name in self._configs:
            raise ConfigError(f"{option}: there is one of id {name}; give another")
        self._configs[name] = _socket(option, name, given)
        self._texts[name] = text

    def take(self, user: str, name: str) -> ChardevConfig:
        """Return the chardev `name`, which `user` and nobody else uses; ConfigError."""
        if name not in self._configs:
            raise ConfigError(f"{user}: {name} is no -chardev; add -chardev socket,id={name},...")
        if name in self._users:
            raise ConfigError(
                f"{user}: {name} has {self._users[name]} already; give each its own -chardev"
            )
        self._users[name] = user
        return self._configs[name]

    def take_server(self, user: str, name: str) -> ChardevConfig:
        """Take one that clients connect to, or that is an open file; ConfigError."""
        config = self.take(user, name)
        if config.fd < 0 and not config.listens:
            raise not_listening(f"-chardev {self._texts[name]}")
        return config

    def taken(self) -> tuple[ChardevConfig, ...]:
        """Return those that have a user so far."""
        return tuple(self._configs[name] for name in self._users)

    def end(self) -> None:
        """Refuse what nobody has taken."""
        for name in (name for name in self._configs if name not in self._users):
            raise ConfigError(
                f"-chardev id={name}: nothing uses it; add -mon chardev={name},mode=control "
                f"or -device virtserialport,chardev={name}"
            )


def _socket(option: str, name: str, given: Members) -> ChardevConfig:
    where, host = given.take("path"), given.take("host")
    port, fd = given.take("port"), given.take("fd")
    if sum(value is not None for value in (where, port, fd)) != 1:
        raise ConfigError(f"{option}: give one of path=PATH, host=HOST,port=PORT and fd=N")
    listens = given.listens()
    given.end()
    if fd is not None:
        return ChardevConfig(name, fd=number(option, fd, 3, FD_MAX))
    if where is not None:
        return ChardevConfig(name, path=path(option, where), listens=listens)
    return ChardevConfig(
        name,
        host=host or LOOPBACK,
        port=number(option, port or "", 1, PORT_MAX),
        listens=listens,
    )
