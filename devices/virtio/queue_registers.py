"""What a driver says of one queue by the registers of its transport (virtio 1.2, 4.2.2)."""

from __future__ import annotations

import errno

from ...errors import GuestError
from ...native import check, ffi, lib
from . import registers as r

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...state import Fields

_ADDRESSES = {"desc": r.QUEUE_DESC, "driver": r.QUEUE_DRIVER, "device": r.QUEUE_DEVICE}
_INDEX_MAX = 0xFFFF


class QueueRegisters:
    """The registers of one queue, as the driver wrote them."""

    __slots__ = ("addresses", "num", "ready")

    def __init__(self) -> None:
        self.num = 0
        self.ready = False
        self.addresses = dict.fromkeys(r.QUEUE_ADDRESSES, 0)  # words by their registers

    def address(self, register: int) -> int:
        """Return the guest-physical address of which `register` has the low word."""
        return self.addresses[register] | self.addresses[register + 4] << 32

    def make_ring(self, memory: Any, features: int, most: int, name: str) -> Any:
        """Return the struct pv_virtqueue of a queue of at most `most` entries; its caller frees it.

        `name` is how messages call it. GuestError: it cannot be; BackendError.
        """
        config = ffi.new(
            "struct pv_virtqueue_config *",
            {
                "desc": self.address(r.QUEUE_DESC),
                "avail": self.address(r.QUEUE_DRIVER),
                "used": self.address(r.QUEUE_DEVICE),
                # 0 is refused by the C side, as all that is no power of two.
                "size": self.num if self.num <= most else 0,
                "event_idx": bool(features & r.EVENT_IDX),
                "indirect": bool(features & r.INDIRECT_DESC),
            },
        )
        handle = ffi.new("struct pv_virtqueue **")
        result = lib.pv_virtqueue_new(memory, config, handle)
        if result == -errno.EINVAL:
            raise GuestError(f"{name} has a size or an address that cannot be")
        check(result, name)
        return handle[0]

    def save(self, ring: Any) -> dict[str, object]:
        """Return the registers, and how far a `ring` is served that is not NULL."""
        next_avail, next_used = ffi.new("uint16_t *"), ffi.new("uint16_t *")
        if ring != ffi.NULL:
            lib.pv_virtqueue_save(ring, next_avail, next_used)
        addresses = {name: self.address(register) for name, register in _ADDRESSES.items()}
        place = {"next_avail": next_avail[0], "next_used": next_used[0]}
        return {"num": self.num, "ready": self.ready, **addresses, **place}

    def restore(self, fields: Fields) -> tuple[int, int]:
        """Take what `save` returned; return the place to serve from, as pv_virtqueue_restore."""
        self.num = fields.integer("num", 0, r.WORD)
        self.ready = fields.flag("ready")
        for name, register in _ADDRESSES.items():
            address = fields.integer(name, 0, (1 << 64) - 1)
            self.addresses[register] = address & r.WORD
            self.addresses[register + 4] = address >> 32
        next_avail = fields.integer("next_avail", 0, _INDEX_MAX)
        return next_avail, fields.integer("next_used", 0, _INDEX_MAX)
