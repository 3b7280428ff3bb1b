"""A NIC of the guest, as it was asked for: the device, and the netdev of the host behind it."""

from __future__ import annotations

from ..errors import PyvirtError
from . import mac
from .virtio.net import Net, NetConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .iothread import IoThread
    from .passt import PasstConfig
    from .stream import StreamConfig
    from .tap import TapConfig

    Netdev = TapConfig | StreamConfig | PasstConfig

_USUAL_MTU = 1500


class NicConfig:
    """One NIC."""

    __slots__ = (
        "id",
        "iothread",
        "is_whole",
        "mac",
        "mtu",
        "netdev",
        "queue_size",
        "rx_bytes",
        "rx_packets",
        "tx_bytes",
        "tx_packets",
    )

    def __init__(
        self,
        id: str,  # noqa: A002  (the field's word)
        netdev: Netdev,
        *,
        mac: bytes = b"",
        mtu: int = 0,
        queue_size: int = 256,
        rx_bytes: int = 0,
        rx_packets: int = 0,
        tx_bytes: int = 0,
        tx_packets: int = 0,
        is_whole: bool = False,
        iothread: IoThread | None = None,
    ) -> None:
        """`netdev` is opened by `make`; the device has as many pairs of queues.

        Without `mac` the address is made from the names of host, machine, NIC and netdev. `mtu`
        is in bytes; 0: what the netdev's link has, where that is not the usual 1500. The limits
        are of a second, 0: none; rx is what the guest receives. `is_whole` says that it was given
        in one option, `-net`. `iothread` serves all its queues; without one each pair has a thread.
        """
        self.id = id
        self.netdev = netdev
        self.mac = mac
        self.mtu = mtu
        self.queue_size = queue_size
        self.rx_bytes = rx_bytes
        self.rx_packets = rx_packets
        self.tx_bytes = tx_bytes
        self.tx_packets = tx_packets
        self.is_whole = is_whole
        self.iothread = iothread

    def as_given(self, message: str) -> str:
        """Return a message about the netdev with the option that the user wrote."""
        if not self.is_whole:
            return message
        for word, written in (("-netdev ifname=", "-net "), ("-netdev ", "-net ")):
            if message.startswith(word):
                return written + message.removeprefix(word)
        return message


def make(config: NicConfig, machine: str) -> Net:
    """Open the netdev and return the device that owns it; ConfigError, BackendError.

    `machine` is the machine's name.
    """
    try:
        backend = config.netdev.open()
    except PyvirtError as error:
        raise type(error)(config.as_given(str(error))) from None
    try:
        device = NetConfig(
            config.id,
            config.mac or mac.made(machine, config.id, backend.name),
            mtu=config.mtu or (backend.mtu if backend.mtu != _USUAL_MTU else 0),
            queue_pairs=config.netdev.queues,
            queue_size=config.queue_size,
            rx_bytes=config.rx_bytes,
            rx_packets=config.rx_packets,
            tx_bytes=config.tx_bytes,
            tx_packets=config.tx_packets,
            iothread=config.iothread,
        )
        return Net(device, backend)
    except BaseException:
        backend.close()
        raise


def empty(addr: int, machine: str) -> Net:
    """Return a NIC without a netdev, for slot `addr`: its link is down until one is attached."""
    name = f"slot {addr}"
    return Net(NetConfig(name, mac.made(machine, name, "")))
