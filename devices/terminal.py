"""The user's terminal while a guest has it: raw mode, and back again."""

from __future__ import annotations

import os

from ..native import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

_IFLAG, _CFLAG, _LFLAG, _CC = 0, 2, 3, 6  # places in termios' list


class RawTerminal:
    """A context in which every key reaches the guest, Ctrl-C and Ctrl-Z included.

    Output processing stays on, so that lines of other programs start at the left edge; the
    guest's own carriage returns are harmless. What was there before is restored on every way
    out of the context, and while the process is stopped (SIGTSTP) or runs in the background;
    coming to the foreground with SIGCONT makes the terminal raw again. SIGTERM and the like
    must be turned into a way out by who installs their handlers.

    For the main thread, since it sets signal handlers. Imports termios only when needed.
    """

    __slots__ = ("_enabled", "_fd", "_handlers", "_raw", "_saved", "_termios")

    def __init__(self, enabled: bool = True, fd: int = 0) -> None:
        """Without `enabled` the context does nothing; with it `fd`, borrowed, is a terminal."""
        self._enabled = enabled
        self._fd = fd
        self._handlers: list[tuple[int, Any]] = []
        self._raw: list[Any] = []
        self._saved: list[Any] = []
        self._termios: Any = None

    def __enter__(self) -> None:
        if not self._enabled:
            return
        # Here, as most machines run without a terminal: this module is on the start-up path.
        import signal  # noqa: PLC0415
        import termios  # noqa: PLC0415

        self._termios = termios
        self._saved = termios.tcgetattr(self._fd)
        lib.pv_crash_terminal(self._fd)
        self._raw = _raw_form(termios, self._saved)
        for number, handler in ((signal.SIGTSTP, self._stop), (signal.SIGCONT, self._continue)):
            self._handlers.append((number, signal.signal(number, handler)))
        self._apply(self._raw)

    def __exit__(self, *_: object) -> None:
        if not self._saved:
            return
        import signal  # noqa: PLC0415  (as above)

        for number, handler in self._handlers:
            signal.signal(number, handler)
        self._handlers.clear()
        lib.pv_crash_terminal(-1)
        self._apply(self._saved)
        self._saved = []

    def _apply(self, attributes: list[Any]) -> None:
        # In the background the terminal is another job's, and to change it would stop us.
        if not self._is_ours():
            return
        try:
            self._termios.tcsetattr(self._fd, self._termios.TCSANOW, attributes)
        except self._termios.error:
            return  # the terminal has gone, and its mode with it

    def _is_ours(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal, so there are no jobs

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        import signal  # noqa: PLC0415  (as above)

        self._apply(self._saved)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _continue(self, _number: int, _frame: FrameType | None) -> None:
        self._apply(self._raw)


def _raw_form(termios: Any, attributes: list[Any]) -> list[Any]:
    """Return `attributes` with input unprocessed, eight bits wide, and read byte by byte."""
    raw = [list(part) if isinstance(part, list) else part for part in attributes]
    raw[_IFLAG] &= ~(
        termios.BRKINT
        | termios.IGNBRK
        | termios.ICRNL
        | termios.IGNCR
        | termios.INLCR
        | termios.INPCK
        | termios.ISTRIP
        | termios.IXOFF
        | termios.IXON
        | termios.PARMRK
    )
    raw[_CFLAG] = raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)
    raw[_CC][termios.VMIN] = 1
    raw[_CC][termios.VTIME] = 0
    return raw
