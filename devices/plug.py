"""Devices that come and go while the guest runs: the guest is told of each, and answers.

For one that comes the monitor puts an ACPI table into a page that the guest can read. It raises an
event; the guest's method (vmm/boot/acpi.py) reads from the first register what is on offer, has
the table loaded or the device taken away, and answers by the second; then it looks for the next.
Registers of 4 bytes, in this order:

- offer, to be read: what is on offer, 0 for nothing. Bits 0 to 7 are the slot, plus 1, of a device
  that is to go, or 0 if there is a table in the page; bits 8 to 31 a sequence number.
- answer, to be written: what was read of an offer that has been carried out. Anything but what is
  on offer is ignored, so a guest that writes what it likes deceives nobody but itself.
"""

from __future__ import annotations

import _thread

from ..errors import ConfigError, PyvirtError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..state import Fields

_OFFER, _ANSWER, _REGISTER = 0, 4, 4
_SEQUENCE_MAX = 0xFF_FFFF
_LEAVER_BITS = 8


class Offer:
    """A table, or the end of a device, until the guest has taken it, or it is withdrawn."""

    __slots__ = ("is_taken", "table", "value")

    def __init__(self, value: int, table: bytes = b"") -> None:
        """`value` is what the guest reads; no table: a device is to go."""
        self.value = value
        self.table = table
        self.is_taken = False


class PlugPort:
    """The registers, and the tables that wait for the guest; any thread."""

    SIZE = 8

    __slots__ = (
        "_lock",
        "_most",
        "_number",
        "_queue",
        "_sequence",
        "_show",
        "_tell",
        "has_let_go",
        "is_known",
        "on_answer",
    )

    def __init__(
        self, show: Callable[[bytes], None], tell: Callable[[], None], *, most: int
    ) -> None:
        """`show` puts a table into the page, `tell` raises the event; neither waits.

        The guest can be told of `most` devices from one start to the next.
        """
        self._show = show
        self._tell = tell
        self._most = most
        self._number = 0
        self._sequence = 0
        self._queue: list[Offer] = []
        self._lock = _thread.allocate_lock()
        self.is_known = False  # the guest has looked here since it started
        self.has_let_go = False  # and has had a device go
        self.on_answer: Callable[[], None] = lambda: None  # something is taken; any thread

    def offer(self, make: Callable[[int], bytes]) -> Offer:
        """Offer the table that `make` makes for a number, behind those that wait.

        ConfigError: the guest has been told of as many as there may be.
        """
        with self._lock:
            if self._number >= self._most:
                raise ConfigError(
                    f"the guest has been told of {self._most} devices since it started, the most; "
                    "reset it"
                )
            table = make(self._number)
            self._number += 1
            offer = self._add(table)
        self._tell()
        return offer

    def dismiss(self, slot: int) -> Offer:
        """Ask the guest to let go of the device in a slot, below 255, behind what waits."""
        with self._lock:
            offer = self._add(b"", slot + 1)
        self._tell()
        return offer

    def _add(self, table: bytes, leaver: int = 0) -> Offer:
        self._sequence = self._sequence % _SEQUENCE_MAX + 1
        offer = Offer(self._sequence << _LEAVER_BITS | leaver, table)
        self._queue.append(offer)
        if len(self._queue) == 1:
            self._show(table)
        return offer

    def withdraw(self, offer: Offer) -> bool:
        """Take an offer back; False: the guest has taken it."""
        with self._lock:
            if offer.is_taken:
                return False
            is_first = self._queue[0] is offer
            self._queue.remove(offer)
            if is_first:
                self._show_first()
        self.remind()
        return True

    def remind(self) -> None:
        """Raise the event again if there is something on offer: a guest that starts loses some."""
        if self._queue:
            self._tell()

    @property
    def is_waiting(self) -> bool:
        """Tell whether there is something that the guest has not taken."""
        return bool(self._queue)

    def _show_first(self) -> None:
        # An empty page is no table, should the guest be about to load what is gone.
        self._show(self._queue[0].table if self._queue else b"")

    def read(self, offset: int, size: int) -> int:
        """Return what is on offer."""
        if (offset, size) != (_OFFER, _REGISTER):
            return 0
        with self._lock:
            self.is_known = True
            return self._queue[0].value if self._queue else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Take the answer to what is on offer."""
        if (offset, size) != (_ANSWER, _REGISTER):
            return
        with self._lock:
            if not self._queue or value != self._queue[0].value:
                return
            offer = self._queue.pop(0)
            offer.is_taken = True
            is_leaver = not offer.table
            self.has_let_go |= is_leaver
            self._show_first()
        if is_leaver:
            self.remind()  # it does not look for the next by itself
        self.on_answer()

    def reset(self) -> None:
        """Begin anew, with a guest that finds all devices where it starts."""
        with self._lock:
            self.is_known = self.has_let_go = False
            self._number = 0
            while self._queue:
                self._queue.pop().is_taken = True
        self.on_answer()

    def save(self) -> dict[str, object]:
        """Return how much the guest was told of; PyvirtError while it is to be told of more."""
        with self._lock:
            if self._queue:
                raise PyvirtError(
                    "the guest has not yet taken a device that was plugged; let it run on, or "
                    "unplug that, and save it then"
                )
            return {
                "number": self._number,
                "sequence": self._sequence,
                "known": self.is_known,
                "let-go": self.has_let_go,
            }

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; StateError."""
        with self._lock:
            self._number = fields.integer("number", 0, self._most)
            self._sequence = fields.integer("sequence", 0, _SEQUENCE_MAX)
            self.is_known = fields.flag("known")
            self.has_let_go = fields.flag("let-go")

    def resume(self) -> None:
        """Nothing was on its way."""
