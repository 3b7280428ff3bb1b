"""What a back end is told of a guest: where its memory is, and where the queues are in that."""

from __future__ import annotations

from ...errors import BackendError
from ...native import ffi, lib
from .protocol import REGIONS_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..virtio.device import Queue


class Region:
    """A piece of guest memory: where the guest has it, and where in the file `fd` it is."""

    __slots__ = ("address", "fd", "offset", "size")

    def __init__(self, address: int, size: int, fd: int, offset: int) -> None:
        """Borrow the descriptor."""
        self.address = address
        self.size = size
        self.fd = fd
        self.offset = offset


class Ring:
    """A queue for a back end to serve."""

    __slots__ = (
        "avail",
        "base",
        "call_fd",
        "desc",
        "index",
        "is_enabled",
        "kick_fd",
        "size",
        "used",
    )

    def __init__(
        self,
        index: int,
        size: int,
        *,
        base: int,
        desc: int,
        avail: int,
        used: int,
        kick_fd: int,
        call_fd: int,
        is_enabled: bool = True,
    ) -> None:
        """Serve it from entry `base` on; addresses are the guest's, descriptors borrowed.

        One that is not enabled is served as if its device had nothing to do with the world.
        """
        self.index = index
        self.size = size
        self.base = base
        self.desc = desc
        self.avail = avail
        self.used = used
        self.is_enabled = is_enabled
        self.kick_fd = kick_fd
        self.call_fd = call_fd


def regions(memory: Any) -> list[Region]:
    """Return what another process has to map; BackendError when it cannot map all."""
    found: list[Region] = []
    file = ffi.new("struct pv_memory_file *")
    while lib.pv_memory_file(memory, len(found), file) == 0:
        found.append(Region(file.address, file.size, file.fd, file.offset))
    if sum(region.size for region in found) != _size(memory):
        raise BackendError("cannot see guest memory; give -machine mem-share=on")
    if len(found) > REGIONS_MAX:
        raise BackendError(f"cannot map {len(found)} pieces of memory, {REGIONS_MAX} at most")
    return found


def _size(memory: Any) -> int:
    index, total = 0, 0
    address, size, host = ffi.new("uint64_t *"), ffi.new("uint64_t *"), ffi.new("void **")
    while lib.pv_memory_region(memory, index, address, size, host) == 0:
        index, total = index + 1, total + int(size[0])
    return total


def ring(queue: Queue, call_fd: int, *, is_known: bool, is_enabled: bool) -> Ring:
    """Return what a back end has to know of a queue; `is_known`: the queue knows where it stands.

    Otherwise another has served it, whom nobody can ask.
    """
    place = ffi.new("struct pv_virtqueue_config *")
    lib.pv_virtqueue_place(queue.handle, place)
    return Ring(
        queue.index,
        place.size,
        base=(lib.pv_virtqueue_rewind if is_known else lib.pv_virtqueue_served)(queue.handle),
        desc=place.desc,
        avail=place.avail,
        used=place.used,
        kick_fd=queue.kick_fd,
        call_fd=call_fd,
        is_enabled=is_enabled,
    )
