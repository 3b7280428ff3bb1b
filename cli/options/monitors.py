"""The options that describe QMP monitors: `-qmp`, or `-chardev` with `-mon`; and all chardevs.

Imported only when one of them is given.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ...errors import ConfigError
from ...qmp.listener import FD, TCP, UNIX, ListenerConfig
from .members import FALSE, TRUE, comma_hint, one_of, pairs

_PATH_MAX = 107  # bytes: sockaddr_un without its terminator
_PORT_MAX = 65535
_FD_MAX = 1 << 20
_LOOPBACK = "127.0.0.1"
_FORMS = "unix:PATH,server,nowait, tcp:HOST:PORT,server,nowait or fd:N"
_CHARDEV = "socket,id=ID,path=PATH,server,nowait"
_SWITCH = (*TRUE, *FALSE)


def _number(option: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise ConfigError(f"{option}: {text or 'nothing'} is not a number from {least} to {most}")
    return int(text)


def _path(option: str, text: str) -> str:
    size = len(os.fsencode(text))
    if not 1 <= size <= _PATH_MAX:
        raise ConfigError(f"{option}: a socket's path has 1 to {_PATH_MAX} bytes, not {size}")
    return text


class _Members:
    """The members of one option; each is taken once, and none may be left."""

    __slots__ = ("_option", "_values")

    def __init__(self, option: str, text: str, given: list[tuple[str, str]]) -> None:
        self._option = f"{option} {text}"
        self._values = dict(given)

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

    def listens(self) -> None:
        """Refuse it when it does not say that pyvirt listens and goes on without a client."""
        server, nowait = self.take("server"), self.take("nowait")
        if nowait is None and self.take("wait") in FALSE:
            nowait = ""
        if server not in {"", *TRUE} or nowait not in {"", *TRUE}:
            raise ConfigError(
                f"{self._option}: pyvirt listens and does not wait for a client; add ,server,nowait"
            )

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


def _address(option: str, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ConfigError(f"{option}: has no port; give tcp:HOST:PORT,server,nowait")
    return host.removeprefix("[").removesuffix("]") or _LOOPBACK, _number(
        option, port, 1, _PORT_MAX
    )


def _qmp(text: str, option: str = "-qmp") -> ListenerConfig:
    name = f"{option} {text}"
    (key, value), *rest = pairs(option, text, " ")
    # A path may have an equals sign.
    where = value if key == " " else f"{key}={value}"
    kind, _, place = where.partition(":")
    if kind not in {UNIX, TCP, FD}:
        raise ConfigError(f"{name}: not a monitor; give {_FORMS}")
    members = _Members(option, text, rest)
    path, host, port, fd = "", "", 0, -1
    if kind == UNIX:
        path = _path(name, place)
    elif kind == TCP:
        host, port = _address(name, place)
    else:
        fd = _number(name, place, 3, _FD_MAX)
    # 20.09's -api-channel has no such words; an inherited socket is what it is.
    if option == "-qmp" and kind != FD:
        members.listens()
    throttled, events_last = members.settings()
    members.end(but=("server", "nowait"))
    return ListenerConfig(
        f"{option} {kind}:{place}",
        kind,
        path=path,
        host=host,
        port=port,
        fd=fd,
        throttled=throttled,
        events_last=events_last,
    )


class Monitors:
    """What the options say so far, in their order."""

    __slots__ = ("_chardevs", "_found", "_users")

    def __init__(self) -> None:
        self._chardevs: dict[str, ListenerConfig] = {}
        self._found: list[ListenerConfig | tuple[str, str, bool, bool]] = []
        self._users: dict[str, str] = {}  # of chardevs, by their ids

    def add(self, option: str, text: str) -> None:
        """Take the value of one option: `qmp`, `api-channel`, `chardev` or `mon`."""
        if option == "chardev":
            self._add_chardev(text)
        elif option == "mon":
            self._add_mon(text)
        else:
            self._found.append(_qmp(text, f"-{option}"))

    def _add_chardev(self, text: str) -> None:
        option = f"-chardev {text}"
        (kind, value), *rest = pairs("-chardev", text, "kind")
        if (kind, value) != ("kind", "socket"):
            raise ConfigError(f"{option}: the only kind here is {_CHARDEV}")
        members = _Members("-chardev", text, rest)
        name = members.take("id")
        if not name:
            raise ConfigError(f"{option}: has no id; give {_CHARDEV}")
        if name in self._chardevs:
            raise ConfigError(f"{option}: there is one of id {name}; give another")
        path, host = members.take("path"), members.take("host")
        port, fd = members.take("port"), members.take("fd")
        if sum(value is not None for value in (path, port, fd)) != 1:
            raise ConfigError(f"{option}: give one of path=PATH, host=HOST,port=PORT and fd=N")
        shown = f"-chardev id={name}"
        if fd is not None:
            config = ListenerConfig(shown, FD, fd=_number(option, fd, 3, _FD_MAX))
        else:
            members.listens()
            if path is not None:
                config = ListenerConfig(shown, UNIX, path=_path(option, path))
            else:
                number = _number(option, port or "", 1, _PORT_MAX)
                config = ListenerConfig(shown, TCP, host=host or _LOOPBACK, port=number)
        members.end(but=("server", "nowait") if fd is not None else ())
        self._chardevs[name] = config

    def _add_mon(self, text: str) -> None:
        members = _Members("-mon", text, pairs("-mon", text, "chardev"))
        name = members.take("chardev")
        if not name:
            raise ConfigError(f"-mon {text}: names no chardev; give chardev=ID,mode=control")
        mode = members.take("mode")
        if mode != "control":
            raise ConfigError(f"-mon {text}: the only mode is control; give mode=control")
        members.take("id")
        throttled, events_last = members.settings()
        members.end()
        self._found.append((text, name, throttled, events_last))

    def take_chardev(self, user: str, name: str) -> ListenerConfig:
        """Return the chardev `name`, which `user` and nobody else uses; ConfigError."""
        if name not in self._chardevs:
            raise ConfigError(f"{user}: {name} is no -chardev; add -chardev socket,id={name},...")
        if name in self._users:
            raise ConfigError(
                f"{user}: {name} has {self._users[name]} already; give each its own -chardev"
            )
        self._users[name] = user
        return self._chardevs[name]

    def listeners(self) -> tuple[ListenerConfig, ...]:
        """Return the monitors in the order of their options; ConfigError when they do not match.

        To be called when all others have taken their chardevs.
        """
        found = []
        for one in self._found:
            if isinstance(one, ListenerConfig):
                found.append(one)
                continue
            text, name, throttled, events_last = one
            config = self.take_chardev(f"-mon {text}", name)
            found.append(replace(config, throttled=throttled, events_last=events_last))
        for name in (name for name in self._chardevs if name not in self._users):
            raise ConfigError(
                f"-chardev id={name}: nothing uses it; add -mon chardev={name},mode=control "
                f"or -device virtserialport,chardev={name}"
            )
        return tuple(found)
