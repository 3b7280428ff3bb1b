"""The options that describe QMP monitors: `-qmp`, or `-chardev` with `-mon`.

Imported only when one of them is given.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import ConfigError
from ...qmp.listener import FD, TCP, UNIX, ListenerConfig
from .members import pairs
from .sockets import FD_MAX, LOOPBACK, PORT_MAX, Members, not_listening, number, path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...devices.chardev import ChardevConfig
    from .chardevs import Chardevs

_FORMS = "unix:PATH,server,nowait, tcp:HOST:PORT,server,nowait or fd:N"


def _address(option: str, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ConfigError(f"{option}: has no port; give tcp:HOST:PORT,server,nowait")
    place = host.removeprefix("[").removesuffix("]") or LOOPBACK
    return place, number(option, port, 1, PORT_MAX)


def _qmp(text: str, option: str = "-qmp") -> ListenerConfig:
    name = f"{option} {text}"
    (key, value), *rest = pairs(option, text, " ")
    # A path may have an equals sign.
    where = value if key == " " else f"{key}={value}"
    kind, _, place = where.partition(":")
    if kind == "stdio":
        raise ConfigError(
            f"{name}: stdin and stdout are for the guest's console; give {option} "
            "unix:PATH,server,nowait"
        )
    if kind not in {UNIX, TCP, FD}:
        raise ConfigError(f"{name}: not a monitor; give {_FORMS}")
    members = Members(option, text, rest)
    file, host, port, fd = "", "", 0, -1
    if kind == UNIX:
        file = path(name, place)
    elif kind == TCP:
        host, port = _address(name, place)
    else:
        fd = number(name, place, 3, FD_MAX)
    # 20.09's -api-channel has no such words; an inherited socket is what it is.
    if option == "-qmp" and kind != FD and not members.listens():
        raise not_listening(name)
    throttled, events_last = members.settings()
    members.end(but=("server", "nowait"))
    return ListenerConfig(
        f"{option} {kind}:{place}",
        kind,
        path=file,
        host=host,
        port=port,
        fd=fd,
        throttled=throttled,
        events_last=events_last,
    )


class Monitors:
    """What the options say so far, in their order."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: list[ListenerConfig | tuple[str, str, bool, bool]] = []

    def add(self, option: str, text: str) -> None:
        """Take the value of one option: `qmp`, `api-channel` or `mon`."""
        if option == "mon":
            self._add_mon(text)
        else:
            self._found.append(_qmp(text, f"-{option}"))

    def _add_mon(self, text: str) -> None:
        members = Members("-mon", text, pairs("-mon", text, "chardev"))
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

    def listeners(self, chardevs: Chardevs) -> tuple[ListenerConfig, ...]:
        """Return the monitors in the order of their options; ConfigError when they do not match."""
        found = []
        for one in self._found:
            if isinstance(one, ListenerConfig):
                found.append(one)
                continue
            text, name, throttled, events_last = one
            config = _listener(chardevs.take_server(f"-mon {text}", name))
            found.append(replace(config, throttled=throttled, events_last=events_last))
        return tuple(found)


def _listener(chardev: ChardevConfig) -> ListenerConfig:
    kind = FD if chardev.fd >= 0 else UNIX if chardev.path else TCP
    return ListenerConfig(
        f"-chardev id={chardev.id}",
        kind,
        path=chardev.path,
        host=chardev.host,
        port=chardev.port,
        fd=chardev.fd,
        chardev=chardev.id,
    )
