"""The virtio block device (virtio 1.2, 5.2), whose requests a back end serves."""

from __future__ import annotations

import time

from ...errors import BackendError
from ...native import lib
from ..virtio import turn
from .device import VhostUser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...state import Fields
    from .back_end import BackEnd

DEVICE_TYPE = 2
QUEUES_MAX = 64
QUEUE_SIZE_MIN, QUEUE_SIZE_MAX = 2, 1024

# Feature bits, 5.2.3.
SIZE_MAX, SEG_MAX, GEOMETRY, RO, BLK_SIZE, FLUSH = 1 << 1, 1 << 2, 1 << 4, 1 << 5, 1 << 6, 1 << 9
TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES = 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14
_KNOWN = SIZE_MAX | SEG_MAX | GEOMETRY | RO | BLK_SIZE | FLUSH | TOPOLOGY | DISCARD | WRITE_ZEROES
# struct virtio_blk_config, 5.2.4: fields that are not only the back end's.
_CAPACITY, _WCE, _NUM_QUEUES = slice(8), 32, slice(34, 36)


class BlockConfig:
    """One disk, as it was asked for."""

    __slots__ = ("back_end", "config_wce", "id", "queue_size", "queues")
    needs_shared_memory = True

    def __init__(
        self,
        id: str,  # noqa: A002  (the field's word)
        back_end: BackEnd,
        *,
        queues: int = 1,
        queue_size: int = 128,
        config_wce: bool = True,
    ) -> None:
        """`queues` are 1 to 64, each of `queue_size`, a power of two from 2 to 1024.

        `config_wce`: the driver may switch the write cache, if the back end lets it.
        """
        self.id = id
        self.back_end = back_end
        self.queues = queues
        self.queue_size = queue_size
        self.config_wce = config_wce

    def make(self) -> Block:
        """Return the device, connected; ConfigError, BackendError."""
        return Block(self)


class Block(VhostUser):
    """A disk of a back end."""

    __slots__ = ("_queues",)
    CONFIG_SIZE = 60  # to the end of the fields for WRITE_ZEROES
    VACANT = lib.PV_VACANT_BLOCK

    def __init__(self, config: BlockConfig) -> None:
        """Connect; ConfigError, BackendError."""
        self._queues = config.queues
        known = _KNOWN | (CONFIG_WCE if config.config_wce else 0)
        super().__init__(
            f"vhost-user-blk {config.id}",
            config.back_end,
            device_type=DEVICE_TYPE,
            known=known | (MQ if config.queues > 1 else 0),
            queue_sizes=(config.queue_size,) * config.queues,
        )

    def config(self) -> bytes:
        """Return struct virtio_blk_config as the back end tells it, but for the queues."""
        space = bytearray(self._link.config)
        space[_NUM_QUEUES] = self._queues.to_bytes(2, "little")
        return bytes(space)

    def save(self) -> dict[str, object]:
        """Return the size, and whether the back end caches writes, which a driver may switch."""
        sectors = int.from_bytes(self._link.config[_CAPACITY], "little")
        return {**super().save(), "sectors": sectors, "write_cache": bool(self._link.config[_WCE])}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; the disk may have become larger."""
        sectors = int.from_bytes(self._link.config[_CAPACITY], "little")
        before = fields.integer("sectors", 0, (1 << 64) - 1)
        if before > sectors:
            raise fields.wrong(
                "sectors",
                f"{self.name} has {sectors} sectors of 512 bytes, and had {before} when it was "
                "saved",
            )
        cache = fields.flag("write_cache")
        if cache != bool(self._link.config[_WCE]):
            self.write_config(_WCE, bytes([cache]))

    def write_config(self, offset: int, data: bytes) -> None:
        """Hand a switch of the write cache on; nothing else can be written."""
        if (offset, len(data)) != (_WCE, 1) or not self.features & CONFIG_WCE:
            return
        deadline = time.monotonic() + turn.LIMIT_S
        with self._turn:
            if self._link.session is None:
                return
            try:
                self._link.session.write_config(offset, data, deadline)
                self._link.config = self._link.session.config(self.CONFIG_SIZE, deadline)
            except BackendError as error:
                self._lose(error)
