"""The table of commands: what the server, `query-commands`, the schema and the manual go by."""

from __future__ import annotations

from .commands import (
    balloon,
    blockdev,
    change,
    chardev,
    device,
    fault,
    foreign,
    inspect,
    lifecycle,
    memory,
    migrate,
    netdev,
    query,
    session,
)
from .schema import Command
from .session import Session

# Chapters of the manual, in its order.
CHAPTERS: tuple[tuple[str, tuple[Command[Session], ...]], ...] = (
    ("The session", session.COMMANDS),
    ("The machine's life", lifecycle.COMMANDS),
    (
        "Disks and NICs",
        (*blockdev.COMMANDS, *netdev.COMMANDS, *device.COMMANDS, *change.COMMANDS),
    ),
    ("The balloon", balloon.COMMANDS),
    ("What there is", query.COMMANDS),
    ("Character devices", chardev.COMMANDS),
    ("Snapshots", migrate.COMMANDS),
    ("Looking into the guest", inspect.COMMANDS + memory.COMMANDS),
    ("Faults", fault.COMMANDS),
    ("What other machines have", foreign.COMMANDS),
)
TABLE = tuple(command for _, commands in CHAPTERS for command in commands)
BY_NAME = {command.name: command for command in TABLE}
