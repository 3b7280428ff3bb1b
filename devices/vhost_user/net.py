"""The virtio network device (virtio 1.2, 5.1), whose packets a back end moves: a switch, say."""

from __future__ import annotations

import contextlib
import os
import struct
import time

from ...errors import BackendError, ConfigError
from ...native import ffi, lib
from ..virtio import net, turn
from .device import VhostUser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...state import Fields
    from ..virtio.device import Activation, Queue
    from .back_end import BackEnd
    from .session import Session

# What is between the driver and the back end; the control queue, which is ours, has commands for
# the number of pairs only. The address stays, and whatever comes is received.
_KNOWN = (
    net.CSUM
    | net.GUEST_CSUM
    | net.GUEST_TSO4
    | net.GUEST_TSO6
    | net.GUEST_ECN
    | net.HOST_TSO4
    | net.HOST_TSO6
    | net.HOST_ECN
    | net.MRG_RXBUF
    | net.GUEST_USO4
    | net.GUEST_USO6
    | net.HOST_USO
)
# struct virtio_net_config to mtu, 5.1.4: mac, status, max_virtqueue_pairs, mtu.
_CONFIG = struct.Struct("<6sHHH")
_LINK_UP = 1
# A command, 5.1.6.5: class, command and its data, to which a byte is the answer.
_MQ_PAIRS_SET = struct.Struct("<BBH")
_CLASS_MQ, _PAIRS_SET, _OK, _ERR = 4, 0, b"\0", b"\1"


class NetConfig:
    """One NIC, as it was asked for."""

    __slots__ = ("back_end", "id", "mac", "mtu", "pairs", "queue_size")
    needs_shared_memory = True

    def __init__(
        self,
        id: str,  # noqa: A002  (the field's word)
        back_end: BackEnd,
        mac: bytes,
        *,
        mtu: int = 0,
        pairs: int = 1,
        queue_size: int = 256,
    ) -> None:
        """`mac` is six bytes, a unicast address; `mtu` 68 to 65535, or 0: the guest's affair.

        There are 1 to 64 `pairs` of queues, each queue of `queue_size`, a power of two from 2 to
        1024.
        """
        self.id = id
        self.back_end = back_end
        self.mac = mac
        self.mtu = mtu
        self.pairs = pairs
        self.queue_size = queue_size

    def make(self) -> Net:
        """Return the device, connected; ConfigError, BackendError."""
        return Net(self)


class Net(VhostUser):
    """A NIC; the link is up while there is a back end."""

    __slots__ = ("_asked", "_chain", "_is_restored", "_used_pairs")

    def __init__(self, config: NetConfig) -> None:
        """Connect; ConfigError, BackendError."""
        self._asked = config
        self._used_pairs = 1  # by the driver
        self._is_restored = False  # and that is to stay so
        self._chain = ffi.new("struct pv_chain *")
        several = config.pairs > 1
        super().__init__(
            f"NIC {config.id}",
            config.back_end,
            device_type=net.DEVICE_TYPE,
            known=_KNOWN,
            own=net.MAC
            | net.STATUS
            | (net.MTU if config.mtu else 0)
            | (net.CTRL_VQ | net.MQ if several else 0),
            queue_sizes=(config.queue_size,) * 2 * config.pairs
            + ((net.CTRL_QUEUE_SIZE,) if several else ()),
        )

    def needed_queues(self) -> int:
        """Return the pairs: back ends of NICs, such as DPDK, count these."""
        return self._asked.pairs

    def check(self, session: Session) -> None:
        """Refuse one that does not say that it has several pairs, too."""
        super().check(session)
        if self._asked.pairs > 1 and session.queue_max == 0:
            session.close()
            raise ConfigError(
                f"{self._link.where}: the back end has one pair of queues; leave queues out"
            )

    def config(self) -> bytes:
        """Return struct virtio_net_config."""
        status = _LINK_UP if self.is_connected else 0
        return _CONFIG.pack(self._asked.mac, status, self._asked.pairs, self._asked.mtu)

    def connection_changed(self) -> None:
        """Show the driver a link, or none."""
        self._show_config()

    def activate(self, activation: Activation) -> None:
        """Begin with one pair; the driver asks for more."""
        if not self._is_restored:
            self._used_pairs = 1
        self._is_restored = False
        super().activate(activation)

    def reset(self, limit: float) -> None:
        """Have the back end let go of the queues; the next driver begins with one pair."""
        super().reset(limit)
        self._is_restored = False

    def save(self) -> dict[str, object]:
        """Return how many pairs the driver uses."""
        return {**super().save(), "pairs": self._used_pairs}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned."""
        self._used_pairs = fields.integer("pairs", 1, self._asked.pairs)
        self._is_restored = True

    def given(self, activation: Activation) -> list[Queue]:
        """Return the pairs that are ready, up to the first that is not."""
        found: list[Queue] = []
        for pair in range(self._asked.pairs if activation.features & net.MQ else 1):
            rx, tx = activation.queues[2 * pair : 2 * pair + 2]
            if rx is None or tx is None:
                break
            found += (rx, tx)
        return found

    def is_enabled(self, index: int) -> bool:
        """Tell whether the driver uses the queue."""
        return index < 2 * self._used_pairs

    # The control queue

    def control(self) -> Queue | None:
        """Return it if the driver wanted one."""
        activation = self._activation
        if self._is_broken or activation is None or not activation.features & net.CTRL_VQ:
            return None
        # Behind the pairs there could be, which without MQ is one.
        return activation.queues[2 * self._asked.pairs if activation.features & net.MQ else 2]

    def serve_control(self) -> bool:
        """Carry out a command."""
        queue, activation = self.control(), self._activation
        if queue is None or activation is None:
            return False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(queue.kick_fd)
        lib.pv_virtqueue_disable_kicks(queue.handle)
        taken = lib.pv_virtqueue_pop(queue.handle, self._chain)
        if taken < 0:
            self._fail(ffi.string(lib.pv_virtqueue_error(queue.handle)).decode(errors="replace"))
            return False
        if taken == 0:
            return bool(lib.pv_virtqueue_enable_kicks(queue.handle))
        written = self._answer(self._carry_out(activation))
        lib.pv_virtqueue_push(queue.handle, self._chain.head, written)
        lib.pv_virtqueue_publish(queue.handle)
        if lib.pv_virtqueue_needs_notify(queue.handle):
            lib.pv_virtio_irq_used(activation.irq)
        return True

    def _carry_out(self, activation: Activation) -> bytes:
        words = b""
        for index in range(self._chain.readable):
            segment = self._chain.iov[index]
            left = _MQ_PAIRS_SET.size - len(words)
            words += ffi.buffer(segment.iov_base, min(segment.iov_len, left))[:]
        if len(words) < _MQ_PAIRS_SET.size:
            return _ERR
        kind, command, pairs = _MQ_PAIRS_SET.unpack(words)
        ready = len(self.given(activation)) // 2
        if (kind, command) != (_CLASS_MQ, _PAIRS_SET) or not activation.features & net.MQ:
            return _ERR
        if not 1 <= pairs <= ready:
            return _ERR
        before, self._used_pairs = self._used_pairs, pairs
        first, last = sorted((before, pairs))
        try:
            for index in range(2 * first, 2 * last):
                if self._link.session is not None:
                    deadline = time.monotonic() + turn.LIMIT_S
                    self._link.session.enable(index, pairs > before, deadline)
        except BackendError as error:
            self._lose(error)
        return _OK

    def _answer(self, ack: bytes) -> int:
        """Write the byte that says how it went; return how many were."""
        if self._chain.writable == 0:
            return 0
        ffi.memmove(self._chain.iov[self._chain.readable].iov_base, ack, len(ack))
        return len(ack)
