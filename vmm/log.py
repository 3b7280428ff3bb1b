"""Messages of the monitor: one line each, to stderr or to the file that `-D` names.

Never to stdout, which is the guest's. `PYVIRT_LOG_LEVEL` (error, warning, info, debug; default
warning) says what is written.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import time

from ..errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_STDERR = 2
LEVELS = ("error", "warning", "info", "debug")
_DEFAULT = "warning"
# What a guest or a client can make somebody say: so many lines at once, and one more in so many
# seconds.
BURST = 10
INTERVAL_S = 30.0
_LINE_MAX = 1000  # characters of such a line
_PIPE_ROOM = 4096  # bytes that a pipe has room for when it says that it has some


class Log:
    """Where messages go; threads do not mix theirs, and do not wait for who reads them.

    What there is no room for is lost: a guest is not to stand because nobody reads stderr. `fd` is
    the descriptor.
    """

    __slots__ = ("_level", "_lock", "_stderr", "fd")

    def __init__(self) -> None:
        """Have the level that the environment names; ConfigError."""
        self._level = 0
        self.take_level()
        self._lock = _thread.allocate_lock()
        self.fd = self._stderr = _STDERR

    def take_level(self) -> None:
        """Have the level that the environment names now; ConfigError."""
        name = os.environ.get("PYVIRT_LOG_LEVEL", _DEFAULT)
        if name not in LEVELS:
            raise ConfigError(f"PYVIRT_LOG_LEVEL={name}: not one of {', '.join(LEVELS)}")
        self._level = LEVELS.index(name)

    def open(self, path: str) -> None:
        """Append to `path` from now on (mode 0640), which may be a FIFO that has a reader."""
        # Neither to open it nor to write to it may wait.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self.fd = os.open(path, flags, 0o640)
        except OSError as error:
            mend = "name a file in a writable folder"
            if error.errno == errno.ENXIO:
                mend = "start its reader first"
            raise ConfigError(f"-D {path}: {error.strerror}; {mend}") from None

    def take_terminal(self) -> None:
        """Have stderr's terminal, if it is one, open in a way that no writer waits for it."""
        if self._stderr != _STDERR or not os.isatty(_STDERR):
            return
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self._stderr = os.open(f"/proc/self/fd/{_STDERR}", flags)
        except OSError:
            return  # another user's
        if self.fd == _STDERR:
            self.fd = self._stderr

    def _write(self, level: int, text: str) -> None:
        if level <= self._level:
            self._put(self.fd, f"pyvirt: {text}\n", 0.0)

    def _put(self, fd: int, text: str, until: float) -> None:
        data = text.encode(errors="replace")
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        with self._lock:
            try:
                while data and poll.poll(max(0.0, until - time.monotonic()) * 1000):
                    data = data[os.write(fd, data[:_PIPE_ROOM]) :]
            except OSError:
                # Whoever reads the log is gone; the guest is not to suffer for it.
                return

    def show(self, text: str, seconds: float) -> None:
        """Write to stderr, whatever the level, what was asked for; who reads it has some time."""
        self._put(self._stderr, text, time.monotonic() + seconds)

    def error(self, text: str) -> None:
        """Say that something the user asked for does not happen."""
        self._write(0, text)

    def warning(self, text: str) -> None:
        """Say that something works less well than the user may think."""
        self._write(1, text)

    def notice(self, text: str) -> None:
        """Tell what the user must know to go on, whatever the level."""
        self._write(0, text)

    def limited(self) -> Callable[[str], None]:
        """Return a `warning` of somebody whom others can make speak; LimitedLog has the limits."""
        return LimitedLog(self.warning).write

    def info(self, text: str) -> None:
        """Tell a step in the machine's life."""
        self._write(2, text)

    def debug(self, text: str) -> None:
        """Tell who works on pyvirt."""
        self._write(3, text)


class LimitedLog:
    """Lines of one device, or of whoever else a guest or a client can make speak.

    BURST of them at once, then one in INTERVAL_S, whatever they say; the next that is written tells
    how many were left out. A repetition of the last one within INTERVAL_S is left out, too.
    """

    __slots__ = ("_clock", "_last", "_left_out", "_level", "_lock", "_seen", "_write")

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`write` takes a line; `clock` gives seconds that never go back."""
        self._write = write
        self._clock = clock
        self._lock = _thread.allocate_lock()
        self._level = 0.0  # a bucket of BURST lines that leaks one in INTERVAL_S
        self._seen = clock()
        self._last = ("", 0.0)  # what was written, and when
        self._left_out = 0

    def write(self, text: str) -> None:
        """Write `text` if there is room for it; any thread."""
        text = text[:_LINE_MAX]
        with self._lock:
            now = self._clock()
            self._level = max(0.0, self._level - (now - self._seen) / INTERVAL_S)
            self._seen = now
            last, at = self._last
            if self._level > BURST - 1 or (text == last and now - at < INTERVAL_S):
                self._left_out += 1
                return
            self._level += 1
            self._last = text, now
            left_out, self._left_out = self._left_out, 0
        before = f" (messages left out before it: {left_out})" if left_out else ""
        self._write(text + before)
