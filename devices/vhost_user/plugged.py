"""A disk of a back end that is plugged into a slot: whether it is what the slot's driver knows."""

from __future__ import annotations

import struct

from ...errors import ConfigError
from ..virtio import registers as r
from . import block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..virtio.device import Activation, Queue

QUEUE_SIZE = 256  # of a slot
# Features that only tell what is in the configuration space, which says it without them, too.
_TOLD = block.SEG_MAX | block.BLK_SIZE | block.TOPOLOGY
_WORDS = {
    block.FLUSH: "FLUSH",
    block.DISCARD: "DISCARD",
    block.WRITE_ZEROES: "WRITE_ZEROES",
    r.INDIRECT_DESC: "INDIRECT_DESC",
    r.EVENT_IDX: "EVENT_IDX",
}
_SECTOR = 512
# Fields of struct virtio_blk_config, 5.2.4: where, what of, and with which feature of the
# driver they are of interest. What it knows must not be more than the back end takes.
_LIMITS = (
    (12, "segments in a request", block.SEG_MAX),
    (36, "sectors in a discard", block.DISCARD),
    (40, "ranges in a discard", block.DISCARD),
    (48, "sectors in a write of zeroes", block.WRITE_ZEROES),
    (52, "ranges in a write of zeroes", block.WRITE_ZEROES),
)
_BLK_SIZE = 20


class Lent(block.Block):
    """The device that does the slot's work."""

    __slots__ = ("_has",)

    def __init__(self, config: block.BlockConfig) -> None:
        """Connect; ConfigError, BackendError."""
        self._has = _TOLD
        super().__init__(config)
        self._has = self.features & _TOLD

    def given(self, activation: Activation) -> list[Queue]:
        """Return the one queue that it has, of however many the slot has."""
        return [queue for queue in activation.queues[:1] if queue is not None]

    def _shared(self, features: int) -> int:
        """Return those that are the back end's, too: the slot tells some without it."""
        return super()._shared(features) & ~(_TOLD & ~self._has)


class Export:
    """A disk of a back end, connected; whoever has it closes it, when no device has it any more."""

    __slots__ = ("_is_closed", "config", "device")

    def __init__(self, config: block.BlockConfig) -> None:
        """Connect; ConfigError or BackendError, and nothing stays."""
        self.config = config
        self.device = Lent(config)
        self._is_closed = False

    @property
    def is_connected(self) -> bool:
        """Tell whether there is a back end."""
        return self.device.is_connected

    @property
    def readonly(self) -> bool:
        """Tell whether the back end lets nobody write."""
        return bool(self.device.features & block.RO)

    @property
    def sectors(self) -> int:
        """Return its size, in units of 512 bytes."""
        return int.from_bytes(self.device.config()[:8], "little")

    def check(self, features: int, known: bytes) -> None:
        """Raise ConfigError unless a driver with these features and this space can have it."""
        has = self.device.features | self.device.ring_features()
        for feature, word in _WORDS.items():
            if features & feature & ~has:
                raise self._misfit(f"lacks {word}, which the guest's driver of the slot uses")
        if features & block.MQ:
            raise self._misfit("has one queue here, and the guest's driver of the slot several")
        told = self.device.config()
        theirs = _word(told, _BLK_SIZE) if has & block.BLK_SIZE else _SECTOR
        ours = _word(known, _BLK_SIZE) if features & block.BLK_SIZE else _SECTOR
        if theirs == 0 or ours % theirs:
            raise self._misfit(f"has blocks of {theirs} bytes, and the slot's driver of {ours}")
        if self.sectors * _SECTOR % ours:
            raise self._misfit(f"has {self.sectors} sectors, no multiple of {ours} bytes")
        for offset, what, feature in _LIMITS:
            if not features & has & feature:
                continue
            least, most = _word(known, offset), _word(told, offset)
            if most < least:
                raise self._misfit(f"takes {most} {what}, and the slot's driver sends {least}")

    def _misfit(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self.device.where}: the back end {why}; give one that fits, or unbind the slot's "
            "driver in the guest first"
        )

    def close(self) -> None:
        """Let go of the back end; once is enough."""
        if not self._is_closed:
            self._is_closed = True
            self.device.close()


def _word(space: bytes, offset: int) -> int:
    return int(struct.unpack_from("<I", space, offset)[0])
