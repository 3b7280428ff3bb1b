"""What every target in Python reads, as native/fuzz/input.h for those in C."""

from __future__ import annotations


def check_line(error: Exception, start: str = "") -> None:
    """See that a message is one line, which begins with `start`."""
    text = str(error)
    assert text.startswith(start), text
    assert "\n" not in text, text


class Input:
    """Bytes, taken from the front; zeroes behind the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Tell whether there is more."""
        return self._at < len(self._data)

    def take(self, size: int) -> int:
        """Return an integer of `size` bytes, little-endian."""
        return int.from_bytes(self.data(size), "little")

    def data(self, size: int) -> bytes:
        """Return up to `size` bytes."""
        found = self._data[self._at : self._at + size]
        self._at += size
        return found

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.data(len(self._data))
