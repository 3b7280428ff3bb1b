"""A NIC's way out that is another process's, and is plugged into a slot.

The pairs' rings are the back end's; the control queue stays with the slot (native/net/net.h), which
keeps the driver's address and filters, and asks it to announce itself.
"""

from __future__ import annotations

import time

from ...errors import BackendError, ConfigError
from ..virtio import net as virtio_net
from ..virtio import registers as r
from ..virtio import turn
from . import net
from . import protocol as p

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..virtio.device import Activation, Queue

# What a driver makes use of without asking: a back end has to understand it.
_NEEDED = {
    virtio_net.CSUM: "CSUM",
    virtio_net.HOST_TSO4: "HOST_TSO4",
    virtio_net.HOST_TSO6: "HOST_TSO6",
    virtio_net.HOST_ECN: "HOST_ECN",
    virtio_net.HOST_USO: "HOST_USO",
    virtio_net.MRG_RXBUF: "MRG_RXBUF",
    r.INDIRECT_DESC: "INDIRECT_DESC",
    r.EVENT_IDX: "EVENT_IDX",
}
# What a back end may make use of, and need not.
_OFFLOADS = {
    virtio_net.TUN_CSUM: virtio_net.GUEST_CSUM,
    virtio_net.TUN_TSO4: virtio_net.GUEST_TSO4,
    virtio_net.TUN_TSO6: virtio_net.GUEST_TSO6,
    virtio_net.TUN_TSO_ECN: virtio_net.GUEST_ECN,
    virtio_net.TUN_USO4: virtio_net.GUEST_USO4,
    virtio_net.TUN_USO6: virtio_net.GUEST_USO6,
}
_ALL_OFFLOADS = sum(_OFFLOADS.values())


class Lent(net.Net):
    """The device that moves the slot's packets."""

    __slots__ = ("_is_up", "_offloads")

    def __init__(self, config: net.NetConfig) -> None:
        """Connect; ConfigError, BackendError."""
        self._is_up = True
        self._offloads = _ALL_OFFLOADS
        super().__init__(config)

    def given(self, activation: Activation) -> list[Queue]:
        """Return the pair that it has."""
        return [queue for queue in activation.queues[:2] if queue is not None]

    def control(self) -> Queue | None:
        """Return nothing: that queue is the slot's."""
        return None

    def is_enabled(self, index: int) -> bool:
        """Tell whether there is a link: a queue without drops what is sent, and gets nothing."""
        return self._is_up

    def _shared(self, features: int) -> int:
        """Return those that are the back end's, too: some are between the driver and the slot."""
        unwanted = _ALL_OFFLOADS & ~(self._offloads & self.features)
        return super()._shared(features) & ~(virtio_net.CONTROL | unwanted)

    def prepare(self, *, offloads: int, up: bool) -> None:
        """Take the offloads (TUN_F_...) that the driver wants, and whether there is a link.

        Both are for the next `activate`.
        """
        self._offloads = sum(bit for tun, bit in _OFFLOADS.items() if tun & offloads)
        self._is_up = up

    def set_link(self, *, up: bool) -> None:
        """Let packets through, or none; BackendError if the back end cannot be told soon."""
        with self._turn.soon():
            self._is_up = up
            session, activation = self._link.session, self._activation
            if session is None or activation is None or self._is_standing:
                return
            if not session.features & p.F_PROTOCOL_FEATURES:
                return  # it cannot be told; the driver sees the link, and keeps to it
            try:
                for queue in self.given(activation):
                    session.enable(queue.index, up, time.monotonic() + turn.LIMIT_S)
            except BackendError as error:
                self._lose(error)


class Uplink:
    """A way out, connected; whoever has it closes it, when no device has it any more."""

    __slots__ = ("_is_closed", "device")
    kind = "lent"
    fds: tuple[int, ...] = (-1,)  # of one pair
    vhost_fds: tuple[int, ...] = ()
    offloads = ~0  # are looked at in `check`, by what the driver uses

    def __init__(self, config: net.NetConfig) -> None:
        """Connect; ConfigError or BackendError, and nothing stays."""
        self.device = Lent(config)
        self._is_closed = False

    @property
    def is_connected(self) -> bool:
        """Tell whether there is a back end."""
        return self.device.is_connected

    def check(self, features: int) -> None:
        """Raise ConfigError unless a driver with these features can have it."""
        has = self.device.features | self.device.ring_features()
        for feature, word in _NEEDED.items():
            if features & feature & ~has:
                raise ConfigError(
                    f"{self.device.where}: the back end lacks {word}, which the guest's driver of "
                    "the slot uses; give one that fits, or unbind the slot's driver in the guest "
                    "first"
                )

    def close(self) -> None:
        """Let go of the back end; once is enough."""
        if not self._is_closed:
            self._is_closed = True
            self.device.close()
