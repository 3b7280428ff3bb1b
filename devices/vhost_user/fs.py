"""The virtio file system device (virtio 1.2, 5.11), whose requests a virtiofsd serves."""

from __future__ import annotations

import struct

from ...errors import ConfigError
from ...native import lib
from .device import VhostUser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .back_end import BackEnd

DEVICE_TYPE = 26
TAG_BYTES = 36
QUEUES_MAX = 63  # of requests; one more is for those of high priority
QUEUE_SIZE_MIN, QUEUE_SIZE_MAX = 2, 1024
# struct virtio_fs_config, 5.11.4: tag, num_request_queues.
_CONFIG = struct.Struct("<36sI")


class FsConfig:
    """One file system, as it was asked for."""

    __slots__ = ("back_end", "id", "queue_size", "queues", "tag")
    needs_shared_memory = True

    def __init__(
        self,
        id: str,  # noqa: A002  (the field's word)
        tag: bytes,
        back_end: BackEnd,
        *,
        queues: int = 1,
        queue_size: int = 128,
    ) -> None:
        """`tag` is 1 to 36 bytes, by which the guest mounts it.

        `queues` are 1 to 63 of requests, each of `queue_size`, a power of two from 2 to 1024.
        """
        self.id = id
        self.tag = tag
        self.back_end = back_end
        self.queues = queues
        self.queue_size = queue_size

    def make(self) -> Fs:
        """Return the device, connected; ConfigError, BackendError."""
        return Fs(self)


class Fs(VhostUser):
    """A file system of the host's."""

    __slots__ = ("_space",)
    VACANT = lib.PV_VACANT_FS

    def __init__(self, config: FsConfig) -> None:
        """Connect; ConfigError, BackendError."""
        self._space = _CONFIG.pack(config.tag, config.queues)
        super().__init__(
            f"virtio-fs {config.id}",
            config.back_end,
            device_type=DEVICE_TYPE,
            known=0,
            queue_sizes=(config.queue_size,) * (1 + config.queues),
        )

    def save(self) -> dict[str, object]:
        """Return nothing, if no request was ever made; ConfigError.

        What is open, and what the guest knows files by, is in virtiofsd, which does not tell.
        """
        for queue in self.given(self._activation) if self._activation else ():
            if lib.pv_virtqueue_rewind(queue.handle) != 0:
                raise ConfigError(
                    f"{self.name}: cannot be saved once the guest has mounted it, as what is open "
                    "there is known to virtiofsd alone; unmount it and start its driver again in "
                    "the guest (modprobe -r virtiofs), or leave it out"
                )
        return super().save()

    def config(self) -> bytes:
        """Return struct virtio_fs_config."""
        return self._space
