"""Messages of the monitor: one line each, to stderr or to the file that `-D` names.

Never to stdout, which is the guest's. `PYVIRT_LOG_LEVEL` (error, warning, info, debug; default
warning) says what is written.
"""

from __future__ import annotations

import os

from ..errors import ConfigError

LEVELS = ("error", "warning", "info", "debug")
_DEFAULT = "warning"


class Log:
    """Where messages go; one write per message, so threads do not mix theirs."""

    __slots__ = ("_fd", "_level")

    def __init__(self) -> None:
        name = os.environ.get("PYVIRT_LOG_LEVEL", _DEFAULT)
        if name not in LEVELS:
            raise ConfigError(f"PYVIRT_LOG_LEVEL={name}: not one of {', '.join(LEVELS)}")
        self._level = LEVELS.index(name)
        self._fd = 2

    def open(self, path: str) -> None:
        """Append to `path` from now on (mode 0640)."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o640)
        except OSError as error:
            raise ConfigError(
                f"-D {path}: {error.strerror}; name a file in a writable folder"
            ) from None

    def _write(self, level: int, text: str) -> None:
        if level > self._level:
            return
        try:
            os.write(self._fd, f"pyvirt: {text}\n".encode(errors="replace"))
        except OSError:
            # Whoever reads the log is gone; the guest is not to suffer for it.
            return

    def error(self, text: str) -> None:
        """Say that something the user asked for does not happen."""
        self._write(0, text)

    def warning(self, text: str) -> None:
        """Say that something works less well than the user may think."""
        self._write(1, text)

    def notice(self, text: str) -> None:
        """Tell what the user must know to go on, whatever the level."""
        self._write(0, text)

    def info(self, text: str) -> None:
        """Tell a step in the machine's life."""
        self._write(2, text)

    def debug(self, text: str) -> None:
        """Tell who works on pyvirt."""
        self._write(3, text)
