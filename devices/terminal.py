"""The user's terminal while a guest has it: raw mode, and back again."""

from __future__ import annotations

import os
import signal
import termios

from ..native import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
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

    For the main thread, since it sets signal handlers.
    """

    __slots__ = ("_fd", "_handlers", "_raw", "_resized", "_saved", "_signals")

    def __init__(
        self,
        fd: int = 0,
        *,
        signals: bool = False,
        resized: Callable[[], None] | None = None,
    ) -> None:
        """`fd`, borrowed, is a terminal; `resized` is called when it has another size.

        With `signals`, Ctrl-C, Ctrl-Z and the like are no keys of the guest's, but signals.
        """
        self._fd = fd
        self._signals = signals
        self._resized = resized
        self._handlers: list[tuple[int, Any]] = []
        self._raw: list[Any] = []
        self._saved: list[Any] = []

    def __enter__(self) -> None:
        self._saved = termios.tcgetattr(self._fd)
        lib.pv_crash_terminal(self._fd)
        self._raw = _raw_form(self._saved, signals=self._signals)
        for number, handler in (
            (signal.SIGTSTP, self._stop),
            (signal.SIGCONT, self._continue),
            (signal.SIGWINCH, self._resize),
        ):
            self._handlers.append((number, signal.signal(number, handler)))
        self._apply(self._raw)

    def __exit__(self, *_: object) -> None:
        if not self._saved:
            return
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
            termios.tcsetattr(self._fd, termios.TCSANOW, attributes)
        except termios.error:
            return  # the terminal has gone, and its mode with it

    def _is_ours(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal, so there are no jobs

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._apply(self._saved)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _continue(self, _number: int, _frame: FrameType | None) -> None:
        self._apply(self._raw)
        # It may have another size since.
        self._resize(_number, _frame)

    def _resize(self, _number: int, _frame: FrameType | None) -> None:
        if self._resized is not None:
            self._resized()


def _raw_form(attributes: list[Any], *, signals: bool) -> list[Any]:
    """Return `attributes` with input unprocessed, eight bits wide, and read byte by byte.

    With `signals` some of it is turned into these.
    """
    raw: list[Any] = [list(part) if isinstance(part, list) else part for part in attributes]
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
    raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
    if not signals:
        raw[_LFLAG] &= ~termios.ISIG
    raw[_CC][termios.VMIN] = 1
    raw[_CC][termios.VTIME] = 0
    return raw
