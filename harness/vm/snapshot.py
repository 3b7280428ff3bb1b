"""Where a guest stood: from there others go on, each in a process of its own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from .console import History
    from .fork_server import Template


class Snapshot:
    """The state of a guest that has answered, beside the fork server `server`.

    Each guest that goes on from it has memory and disks of its own, and `history` on its console.
    `close` gives back what it holds, its memory once the last of them has ended.
    """

    def __init__(
        self, server: str, template: Template, history: History, disks: tuple[str, ...]
    ) -> None:
        """`disks` are the words of the guest's disks, for `-disk`."""
        self.server = server
        self.template = template
        self.history = history
        self.disks = disks
        self.folder: Path | None = None  # with images of those, which goes with it

    def close(self) -> None:
        """Let no more go on from here; those that do live on."""
        self.template.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
