"""What the judges ask of a VM and its console; vm/ has both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ...qmp.client import Client
    from ..text import Line
    from .splat import Splat
    from .symbols import Symbols


class Console(Protocol):
    """A guest's console (`vm.console.Console`)."""

    last_byte_at: float
    splats: list[Splat]

    def since(self, mark: int = 0) -> list[Line]:
        """Return the lines from a position on, the last one perhaps unfinished."""


class Subject(Protocol):
    """A VM that may have ended (`vm.life.Life`); only `qmp` needs its monitor."""

    log_dir: Path
    words: list[str]

    @property
    def console(self) -> Console:
        """Return the console of the last boot."""

    @property
    def has_monitor(self) -> bool:
        """Whether there is a monitor that can be asked, be it of a guest that stands."""

    @property
    def is_running(self) -> bool:
        """Whether the guest runs."""

    @property
    def messages(self) -> str:
        """Return what the monitor wrote to its stderr."""

    @property
    def qmp(self) -> Client:
        """Return the client of the VM's monitor."""

    @property
    def qmp_log(self) -> Sequence[str]:
        """Return what was said to the monitor, and its events."""

    def reproduce(self) -> str:
        """Return the command line that boots the same guest by hand."""

    def splats(self) -> list[Splat]:
        """Return all of the kernel's reports, those of earlier boots too."""

    def symbols(self) -> Symbols:
        """Return the kernel's symbols, without those of modules; none where they are hidden."""

    def symbols_of_boot(self) -> Symbols:
        """Return the symbols of the kernel and its modules as they lie now; PyvirtError."""
