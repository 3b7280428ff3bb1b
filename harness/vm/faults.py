"""The test is the device: disks and NICs that are slow, fail, or lose things, as a test says.

    with faults.block("vda").delay("5ms", ops="flush").fail(errno="EIO", after=100) as disk:
        ...
    assert disk.hits

The device's data path commits them (native/virtio/fault.h), asked by QMP: x-fault-add and what goes
with it. They end with the `with`, by `clear`, or when the device is unplugged or the machine reset.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, PyvirtError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Protocol, Self

    class Qmp(Protocol):
        """Who sends commands; `qmp.client.Client` is one."""

        def execute(self, command: str, arguments: dict[str, Any] | None = None, /) -> Any:
            """Return what the command returns; PyvirtError."""


_TIMES = {"us": 1, "ms": 1_000, "s": 1_000_000}
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def microseconds(time: str | float) -> int:
    """Return a time such as "5ms", "1.5s" or "200us", or seconds as a number; ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", _in_seconds(time))
    if found is None:
        raise ConfigError(f"{time!r} is no time; give one such as '5ms', '1.5s', or seconds")
    return round(Decimal(found[1]) * _TIMES[found[2]])


def size_in_bytes(size: str | int) -> int:
    """Return a size such as "64M" or 4096; ConfigError."""
    found = re.fullmatch(r"(\d{1,15})([KMGT]?)", str(size))
    if found is None:
        raise ConfigError(f"{size!r} is no size; give one such as '64M', or bytes")
    return int(found[1]) * _SIZES[found[2]]


def _in_seconds(time: object) -> str:
    is_number = isinstance(time, int | float) and not isinstance(time, bool)
    return f"{time:f}s" if is_number else str(time)


def _words(ops: str | Iterable[str]) -> list[str]:
    return ops.replace(",", " ").split() if isinstance(ops, str) else list(ops)


class _Faulty:
    """A device that is asked for faults; each of its verbs returns it again."""

    def __init__(self, qmp: Qmp, device: str) -> None:
        self._qmp = qmp
        self.device = device
        self._past_hits = 0  # of faults that have been ended
        self.interrupts = Interrupts(self)

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a command about the device."""
        given = {name.replace("_", "-"): v for name, v in arguments.items() if v is not None}
        return self._qmp.execute(command, {"device": self.device} | given)

    def add(self, kind: str, ops: str | Iterable[str], **arguments: Any) -> Self:
        """Ask for a fault, of all operations where `ops` is empty."""
        self.ask("x-fault-add", kind=kind, ops=_words(ops) or None, **arguments)
        return self

    def break_device(self) -> Self:
        """Let the device need a reset (DEVICE_NEEDS_RESET)."""
        self.ask("x-fault-break")
        return self

    @property
    def states(self) -> list[dict[str, Any]]:
        """Return the device's faults as query-x-faults shows them."""
        found: list[dict[str, Any]] = self._qmp.execute("query-x-faults", {"device": self.device})
        return found

    @property
    def hits(self) -> int:
        """Return how often the faults have struck, those that `clear` has ended included."""
        return self._past_hits + sum(int(state["hits"]) for state in self.states)

    def clear(self) -> Self:
        """End the device's faults; what they kept goes on."""
        self._past_hits = self.hits
        self.ask("x-fault-clear")
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.clear()
        except PyvirtError:
            # The first of two errors tells more.
            if error is None:
                raise


class Interrupts:
    """The "used buffers" interrupts of a device."""

    def __init__(self, of: _Faulty) -> None:
        self._of = of

    def drop(self, count: int | None = None, *, after: int = 0, every: int = 1) -> _Faulty:
        """Lose the next `count`, or all."""
        return self._of.add("drop", "interrupt", count=count, after=after, every=every)

    def double(self, count: int | None = None, *, after: int = 0, every: int = 1) -> _Faulty:
        """Raise the next `count`, or all, once more a moment later."""
        return self._of.add("double", "interrupt", count=count, after=after, every=every)


class FaultyDisk(_Faulty):
    """A disk. `ops` are some of read, write, flush, discard and write-zeroes, without it all.

    A fault strikes at each `every`-th of these after the first `after`, `count` times (None: for
    ever); with `sectors`, first and last, only at reads and writes that touch one of them.
    """

    def delay(
        self,
        time: str | float,
        ops: str | Iterable[str] = "",
        *,
        after: int = 0,
        every: int = 1,
        count: int | None = None,
        sectors: tuple[int, int] | None = None,
    ) -> Self:
        """Begin requests later, by "5ms" or a number of seconds; others go on meanwhile."""
        limits = _limits(after, every, count, sectors)
        return self.add("delay", ops, delay=microseconds(time), **limits)

    def fail(
        self,
        ops: str | Iterable[str] = "",
        *,
        errno: str = "EIO",
        after: int = 0,
        every: int = 1,
        count: int | None = None,
        sectors: tuple[int, int] | None = None,
    ) -> Self:
        """Answer with an error, and do nothing; EOPNOTSUPP: as what is not supported."""
        return self.add("fail", ops, errno=errno, **_limits(after, every, count, sectors))

    def drop(
        self,
        ops: str | Iterable[str] = "",
        *,
        after: int = 0,
        every: int = 1,
        count: int | None = None,
        sectors: tuple[int, int] | None = None,
    ) -> Self:
        """Do not answer before `clear`."""
        return self.add("drop", ops, **_limits(after, every, count, sectors))

    def corrupt(
        self,
        offset: int = 0,
        *,
        after: int = 0,
        every: int = 1,
        count: int | None = None,
        sectors: tuple[int, int] | None = None,
    ) -> Self:
        """Turn all bits of the byte at `offset` in what is read."""
        return self.add("corrupt", "", offset=offset, **_limits(after, every, count, sectors))

    def resize(self, size: str | int) -> Self:
        """Make the disk and its image so large: "64M", or bytes. `clear` leaves that as it is."""
        self.ask("block_resize", size=size_in_bytes(size))
        return self


def _limits(
    after: int, every: int, count: int | None, sectors: tuple[int, int] | None
) -> dict[str, Any]:
    place = {"first": sectors[0], "last": sectors[1]} if sectors else None
    return {"after": after, "every": every, "count": count, "sectors": place}


class FaultyNic(_Faulty):
    """A NIC."""

    _is_down = False

    def lose(
        self,
        ops: str | Iterable[str] = "",
        *,
        after: int = 0,
        every: int = 1,
        count: int | None = None,
    ) -> Self:
        """Lose packets: `ops` rx (for the guest), tx (from it), or both."""
        return self.add("drop", ops or "rx tx", after=after, every=every, count=count)

    def link(self, state: str) -> Self:
        """Take the link "down", or "up" again, as `clear` does too."""
        if state not in {"up", "down"}:
            raise ConfigError(f"link {state!r}: give 'up' or 'down'")
        self._qmp.execute("set_link", {"name": self.device, "up": state == "up"})
        self._is_down = state == "down"
        return self

    def clear(self) -> Self:
        """End the NIC's faults; its link is up."""
        if self._is_down:
            self.link("up")
        return super().clear()


class FaultyDevice(_Faulty):
    """Another virtio device, by its name: its interrupts, and DEVICE_NEEDS_RESET."""


class Faults:
    """The faults of one machine; for one thread at a time, as its QMP client is."""

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp

    def block(self, name: str = "vda") -> FaultyDisk:
        """Return the disk of this id, or that the guest calls so."""
        return FaultyDisk(self._qmp, name)

    def net(self, name: str = "eth0") -> FaultyNic:
        """Return the NIC of this id, or that the guest calls so."""
        return FaultyNic(self._qmp, name)

    def device(self, name: str) -> FaultyDevice:
        """Return another virtio device, such as one in Python."""
        return FaultyDevice(self._qmp, name)

    def clear(self) -> None:
        """End the faults of all devices."""
        self._qmp.execute("x-fault-clear")
