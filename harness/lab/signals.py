"""Signals that are to be passed on, taken as data in a poll loop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType

PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGWINCH,
)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Python writes the number to the wake-up descriptor only for a handler of its own."""


class Signals:
    """While entered, PASSED_ON arrive through `fd` and take() instead of acting.

    A signal that was ignored stays so. Only the main thread can receive signals: in any
    other one this does nothing and `fd` is -1.
    """

    def __init__(self) -> None:
        self.fd = -1
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self.fd, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._exit.callback(os.close, self.fd)
        self._exit.callback(os.close, write)
        before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._exit.callback(signal.set_wakeup_fd, before)
        for number in PASSED_ON:
            handler = signal.getsignal(number)
            if handler != signal.SIG_IGN and handler is not None:
                signal.signal(number, _nothing)
                self._exit.callback(signal.signal, number, handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def take(self) -> bytes:
        """Return the numbers of the signals that have arrived, one byte each."""
        try:
            return os.read(self.fd, 64) if self.fd >= 0 else b""
        except BlockingIOError:
            return b""
