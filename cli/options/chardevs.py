"""The options that describe the host's end of a port or a monitor: `-chardev` and `-serial`.

Each chardev is used by one device or monitor, which names it by its id. The guest's serial port
may have one, too, or say in its own option what it is on.
"""

from __future__ import annotations

from ...devices.chardev import (
    FILE,
    NULL,
    PTY,
    RINGBUF,
    RINGBUF_SIZE,
    SOCKET,
    STDIO,
    ChardevConfig,
)
from ...errors import ConfigError
from .members import FALSE, TRUE, one_of, pairs
from .sockets import FD_MAX, LOOPBACK, PORT_MAX, Members, not_listening, number, path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Reader = Callable[[str, str, Members], ChardevConfig]

SERIAL_ID = "serial0"
_CLIENT = "socket,id=ID,path=PATH"
_FORM = "socket,id=ID,path=PATH,server,nowait"
_OF_DEVICES = "-serial chardev:{0}, -device virtconsole,chardev={0} or virtserialport,chardev={0}"
_RINGBUF_MAX = 1 << 26
_UNITS = {"K": 10, "M": 20}


def _file_name(option: str, member: str, text: str) -> str:
    if not text or "\0" in text:
        raise ConfigError(f"{option}: {member} names no file; give {member}=FILE")
    return text


def _stdio(option: str, name: str, given: Members) -> ChardevConfig:
    mux = given.take("mux")
    if mux is not None and one_of(f"{option}: mux", mux, TRUE + FALSE) in TRUE:
        raise ConfigError(
            f"{option}: nothing can share the terminal with the guest's console; give mux=off, "
            "and -qmp unix:PATH,server,nowait for a monitor"
        )
    return ChardevConfig(name, STDIO, signals=given.switch("signal", False))


def _null(_option: str, name: str, _given: Members) -> ChardevConfig:
    return ChardevConfig(name, NULL)


def _pty(option: str, name: str, given: Members) -> ChardevConfig:
    link = given.take("path")
    return ChardevConfig(name, PTY, path="" if link is None else _file_name(option, "path", link))


def _file(option: str, name: str, given: Members) -> ChardevConfig:
    where, source = given.take("path"), given.take("input-path")
    return ChardevConfig(
        name,
        FILE,
        path=_file_name(option, "path", where or ""),
        append=given.switch("append", False),
        input_path="" if source is None else _file_name(option, "input-path", source),
    )


def _ringbuf(option: str, name: str, given: Members) -> ChardevConfig:
    text = given.take("size")
    if text is None:
        return ChardevConfig(name, RINGBUF, size=RINGBUF_SIZE)
    unit = _UNITS.get(text[-1:].upper(), 0)
    digits = text[:-1] if unit else text
    is_number = digits.isascii() and digits.isdigit() and len(digits) < 10
    size = int(digits) << unit if is_number else 0
    if not 2 <= size <= _RINGBUF_MAX or size & (size - 1):
        raise ConfigError(
            f"{option}: size={text} is no power of two from 2 to 64M; give one such as 64K"
        )
    return ChardevConfig(name, RINGBUF, size=size)


def _socket(option: str, name: str, given: Members) -> ChardevConfig:
    where, host = given.take("path"), given.take("host")
    port, fd = given.take("port"), given.take("fd")
    if sum(value is not None for value in (where, port, fd)) != 1:
        raise ConfigError(f"{option}: give one of path=PATH, host=HOST,port=PORT and fd=N")
    words = [given.peek(word) for word in ("server", "nowait", "wait")]
    is_client = words == [None] * 3 or (words[0] in FALSE and words[1:] == [None] * 2)
    listens = given.listens()
    if not (listens or is_client or fd is not None):
        raise not_listening(option)
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


_KINDS: dict[str, Reader] = {
    STDIO: _stdio,
    PTY: _pty,
    SOCKET: _socket,
    FILE: _file,
    NULL: _null,
    RINGBUF: _ringbuf,
}


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
        (key, kind), *rest = pairs("-chardev", text, "kind")
        is_console = key in {"id", "path"}
        if is_console:
            kind, rest = SOCKET, [(key, kind), *rest, ("server", ""), ("nowait", "")]
        if (key != "kind" and not is_console) or kind not in _KINDS:
            raise ConfigError(
                f"{option}: no such kind; there are {', '.join(_KINDS)}, as in -chardev {_FORM}"
            )
        given = Members("-chardev", text, rest)
        name = given.take("id")
        if not name:
            form = _FORM if kind == SOCKET else f"{kind},id=ID"
            raise ConfigError(f"{option}: has no id; give {form}")
        if name in self._configs:
            raise ConfigError(f"{option}: there is one of id {name}; give another")
        config = _KINDS[kind](option, name, given)
        given.end()
        config.option = f"-chardev id={name}"
        config.makes_console = is_console
        self._configs[name] = config
        self._texts[name] = text

    def consoles(self) -> tuple[str, ...]:
        """Return the ids of those that make a console by themselves, as StratoVirt 20.09's do."""
        return tuple(name for name, one in self._configs.items() if one.makes_console)

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
        """Take a socket that clients connect to, or that is an open file; ConfigError."""
        config = self.take(user, name)
        if config.kind != SOCKET:
            raise ConfigError(
                f"{user}: {name} is of kind {config.kind}, and a monitor is on a socket; "
                f"give -chardev socket,id={name},path=PATH,server,nowait"
            )
        if config.fd < 0 and not config.listens:
            raise not_listening(f"-chardev {self._texts[name]}")
        return config

    def take_client(self, user: str, name: str) -> ChardevConfig:
        """Take the Unix socket of a server that is there; ConfigError.

        Kata says `server,nowait` of these, too, and means that nothing waits.
        """
        config = self.take(user, name)
        if config.kind != SOCKET or not config.path:
            raise ConfigError(f"{user}: {name} is no Unix socket; give -chardev {_CLIENT}")
        self._configs[name] = ChardevConfig(name, path=config.path, listens=False)
        return self._configs[name]

    def taken(self) -> tuple[ChardevConfig, ...]:
        """Return those that have a user so far."""
        return tuple(self._configs[name] for name in self._users)

    def end(self) -> None:
        """Refuse what nobody has taken."""
        for name in (name for name in self._configs if name not in self._users):
            monitor = ""
            if self._configs[name].kind == SOCKET:
                monitor = f"-mon chardev={name},mode=control, "
            raise ConfigError(
                f"-chardev id={name}: nothing uses it; add {monitor}{_OF_DEVICES.format(name)}"
            )


def serial(text: str, chardevs: Chardevs) -> ChardevConfig:
    """Return what the value of `-serial` stands for; ConfigError."""
    option = f"-serial {text}"
    if text.startswith("chardev:"):
        return chardevs.take(option, text.removeprefix("chardev:"))
    (key, kind), *rest = pairs("-serial", text, "kind")
    kind = NULL if kind == "none" else kind
    if key != "kind" or kind not in _KINDS or kind == RINGBUF:
        raise ConfigError(
            f"{option}: not a backend; give stdio, none, pty, file,path=FILE, "
            "socket,path=PATH,server,nowait or chardev:ID"
        )
    given = Members("-serial", text, rest)
    config = _KINDS[kind](option, SERIAL_ID, given)
    given.end()
    config.option = f"-serial {kind}"
    return config


def terminal(
    serial_port: ChardevConfig | None, taken: tuple[ChardevConfig, ...]
) -> ChardevConfig | None:
    """Return which of these is on stdin and stdout, None for none; ConfigError when two are."""
    users = [one for one in taken if one.kind == STDIO]
    if serial_port is not None and serial_port.kind == STDIO and serial_port not in users:
        users.insert(0, serial_port)
    if len(users) > 1:
        raise ConfigError(
            f"{users[1].option}: {users[0].option} is on stdin and stdout already; "
            "give it a pty, a file or a socket"
        )
    return users[0] if users else None
