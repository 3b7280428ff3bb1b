"""The events, and what each carries."""

from __future__ import annotations

import time

from ..vmm.end import WATCHDOGS
from .schema import Boolean, Choice, Event, Field, Integer, Text

STOP = "STOP"
RESUME = "RESUME"
SHUTDOWN = "SHUTDOWN"
RESET = "RESET"
POWERDOWN = "POWERDOWN"
DEVICE_DELETED = "DEVICE_DELETED"
DEVICE_UNPLUG_GUEST_ERROR = "DEVICE_UNPLUG_GUEST_ERROR"
BLOCK_IO_ERROR = "BLOCK_IO_ERROR"
GUEST_PANICKED = "GUEST_PANICKED"
GUEST_CRASHLOADED = "GUEST_CRASHLOADED"
NIC_RX_FILTER_CHANGED = "NIC_RX_FILTER_CHANGED"
BALLOON_CHANGED = "BALLOON_CHANGED"
WATCHDOG = "WATCHDOG"

# Why a machine ends or resets, in QEMU's words (ShutdownCause).
HOST_QUIT = "host-qmp-quit"
HOST_RESET = "host-qmp-system-reset"
HOST_SIGNAL = "host-signal"
GUEST_SHUTDOWN = "guest-shutdown"
GUEST_RESET = "guest-reset"
GUEST_PANIC = "guest-panic"
HOST_ERROR = "host-error"
CAUSES = (
    HOST_QUIT, HOST_RESET, HOST_SIGNAL, GUEST_SHUTDOWN, GUEST_RESET, GUEST_PANIC, HOST_ERROR
)  # fmt: skip

_CAUSE = (
    Field("guest", Boolean(), "whether the guest asked for it"),
    Field("reason", Choice(*CAUSES), "why"),
)

TABLE = (
    Event(STOP, "The vCPUs have stopped."),
    Event(RESUME, "The vCPUs run again."),
    Event(
        SHUTDOWN,
        "The machine has ended; the monitor follows, unless `-action shutdown=pause` keeps it.",
        _CAUSE,
    ),
    Event(RESET, "The machine starts anew.", _CAUSE),
    Event(POWERDOWN, "The power button was pressed; what follows is the guest's."),
    Event(
        DEVICE_DELETED,
        "A device is unplugged, and nothing of its backend is in use any more.",
        (
            Field("device", Text(), "its id"),
            Field("path", Text(), "the same id"),
        ),
    ),
    Event(
        DEVICE_UNPLUG_GUEST_ERROR,
        "A device is not unplugged, as a driver of the guest has it.",
        (
            Field("device", Text(), "its id"),
            Field("path", Text(), "the same id"),
        ),
    ),
    Event(
        BLOCK_IO_ERROR,
        "A request of a disk has failed on the host.",
        (
            Field("device", Text(), "the disk's id"),
            Field("node-name", Text(), "its backend"),
            Field("operation", Choice("read", "write"), "what was attempted"),
            Field("action", Choice("report"), "what became of it: the guest gets an error"),
            Field("nospace", Boolean(), "whether the host's file system is full"),
            Field("reason", Text(), "the host's error"),
        ),
        is_limited=True,
        of="device",
    ),
    Event(
        GUEST_PANICKED,
        "The guest's kernel has given up.",
        (Field("action", Choice("run", "pause", "poweroff"), "what the monitor does about it"),),
        is_limited=True,
    ),
    Event(
        GUEST_CRASHLOADED,
        "The guest's kernel has given up and starts another, which keeps its memory.",
        (Field("action", Choice("run"), "what the monitor does about it: nothing"),),
        is_limited=True,
    ),
    Event(
        NIC_RX_FILTER_CHANGED,
        "The guest has changed what a NIC takes; told again after a `query-rx-filter`.",
        (
            Field("name", Text(), "the NIC's id"),
            Field("path", Text(), "the same id"),
        ),
        is_limited=True,
        of="name",
    ),
    Event(
        BALLOON_CHANGED,
        "The guest has put memory into its balloon, or taken some out. (QEMU's BALLOON_CHANGE.)",
        (Field("actual", Integer(0, (1 << 63) - 1), "bytes that the guest has"),),
        is_limited=True,
    ),
    Event(
        WATCHDOG,
        "The guest has not fed its watchdog.",
        (Field("action", Choice(*WATCHDOGS), "what the monitor does about it"),),
        is_limited=True,
    ),
)
BY_NAME = {event.name: event for event in TABLE}


def event(name: str, data: dict[str, object], now: float | None = None) -> dict[str, object]:
    """Return an event as clients get it; `now` is in seconds since 1970."""
    assert name in BY_NAME, name
    microseconds = int((time.time() if now is None else now) * 1_000_000)
    stamp = {"seconds": microseconds // 1_000_000, "microseconds": microseconds % 1_000_000}
    return {"event": name, "data": data, "timestamp": stamp}
