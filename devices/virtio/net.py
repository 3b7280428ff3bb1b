"""The virtio network device (virtio 1.2, 5.1): what the driver sees; native/net/ does the work."""

from __future__ import annotations

import errno
import struct

from ...errors import BackendError, ConfigError
from ...native import check, ffi, lib
from . import net_state, turn
from .device import Pluggable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol, TypeGuard

    from ...state import Fields
    from ..iothread import IoThread
    from .device import Activation
    from .uplink import LentPair

    class Backend(Protocol):
        """The host's side of a NIC, opened; whoever holds it closes it."""

        @property
        def kind(self) -> str:
            """What it is.

            `tap`: queues of a tap with headers of 12 bytes; `stream`: a connected socket; `lent`:
            an Uplink.
            """

        @property
        def fds(self) -> tuple[int, ...]:
            """A descriptor for each pair of queues; a stream has one."""

        @property
        def vhost_fds(self) -> tuple[int, ...]:
            """The same, of /dev/vhost-net; none: the monitor moves the packets itself."""

        @property
        def offloads(self) -> int:
            """The TUN_F_... bits that TUNSETOFFLOAD accepts; 0 for a stream."""

        def close(self) -> None:
            """Give the descriptors back, and what else there is."""

    class Uplink(Backend, Protocol):
        """Another process that moves the packets."""

        @property
        def device(self) -> Any:
            """What is to be given the first two queues (vhost_user/plugged_nic.py)."""

        @property
        def is_connected(self) -> bool:
            """Tell whether that process is there."""

        def check(self, features: int) -> None:
            """Raise ConfigError unless a driver with these can have it."""


DEVICE_TYPE = 1
QUEUE_PAIRS_MAX = lib.PV_NET_PAIRS
QUEUE_SIZE_MIN, QUEUE_SIZE_MAX = 2, 1024
MTU_MIN, MTU_MAX = 68, 65535
CTRL_QUEUE_SIZE = 64

# TUN_F_... of linux/if_tun.h, as `Backend.offloads` has them.
TUN_CSUM, TUN_TSO4, TUN_TSO6, TUN_TSO_ECN, TUN_USO4, TUN_USO6 = 1, 2, 4, 8, 0x20, 0x40
# What every kernel's tap has; promised by a NIC that is made without a backend.
TAP_OFFLOADS = TUN_CSUM | TUN_TSO4 | TUN_TSO6 | TUN_TSO_ECN

# Feature bits, 5.1.3.
CSUM = 1 << 0
GUEST_CSUM = 1 << 1
CTRL_GUEST_OFFLOADS = 1 << 2
MTU = 1 << 3
MAC = 1 << 5
GUEST_TSO4, GUEST_TSO6, GUEST_ECN = 1 << 7, 1 << 8, 1 << 9
HOST_TSO4, HOST_TSO6, HOST_ECN = 1 << 11, 1 << 12, 1 << 13
MRG_RXBUF = 1 << 15
STATUS = 1 << 16
CTRL_VQ, CTRL_RX, CTRL_VLAN = 1 << 17, 1 << 18, 1 << 19
GUEST_ANNOUNCE = 1 << 21
MQ = 1 << 22
CTRL_MAC_ADDR = 1 << 23
GUEST_USO4, GUEST_USO6, HOST_USO = 1 << 54, 1 << 55, 1 << 56

_CONTROL = CTRL_VQ | CTRL_RX | CTRL_VLAN | GUEST_ANNOUNCE | CTRL_MAC_ADDR
_ALWAYS = MAC | MRG_RXBUF | STATUS | _CONTROL
# Features that are nothing to who moves the packets.
CONTROL = _CONTROL | CTRL_GUEST_OFFLOADS | MTU | MQ
# Offloads of the host, and the features that they make possible.
_OFFLOADS = (
    (TUN_CSUM, CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS),
    (TUN_TSO4, GUEST_TSO4 | HOST_TSO4),
    (TUN_TSO6, GUEST_TSO6 | HOST_TSO6),
    (TUN_TSO_ECN, GUEST_ECN | HOST_ECN),
    (TUN_USO4 | TUN_USO6, GUEST_USO4 | GUEST_USO6 | HOST_USO),
)

_LINK_UP, _ANNOUNCE = 1, 2
_KINDS = {"tap": lib.PV_NET_TAP, "stream": lib.PV_NET_STREAM, "lent": lib.PV_NET_LENT}
# struct virtio_net_config to mtu, 5.1.4: mac, status, max_virtqueue_pairs, mtu.
_CONFIG = struct.Struct("<6sHHH")


class NetConfig:
    """One NIC, as it was asked for."""

    __slots__ = (
        "id",
        "iothread",
        "mac",
        "mtu",
        "queue_pairs",
        "queue_size",
        "rx_bytes",
        "rx_packets",
        "tx_bytes",
        "tx_packets",
    )

    def __init__(
        self,
        id: str,  # noqa: A002  (the field's word)
        mac: bytes,
        *,
        mtu: int = 0,
        queue_pairs: int = 1,
        queue_size: int = 256,
        rx_bytes: int = 0,
        rx_packets: int = 0,
        tx_bytes: int = 0,
        tx_packets: int = 0,
        iothread: IoThread | None = None,
    ) -> None:
        """`mac` is six bytes, a unicast address.

        `mtu` is what the guest is advised of, 68 to 65535, or 0: nothing. `queue_pairs` is 1 to
        64, each with a thread or all on `iothread`; `queue_size` is a power of two from 2 to 1024,
        of both queues of a pair. The others limit bytes and packets a second, for all pairs
        together, 0: no limit; rx is what the guest receives.
        """
        self.id = id
        self.mac = mac
        self.mtu = mtu
        self.queue_pairs = queue_pairs
        self.queue_size = queue_size
        self.rx_bytes = rx_bytes
        self.rx_packets = rx_packets
        self.tx_bytes = tx_bytes
        self.tx_packets = tx_packets
        self.iothread = iothread

    @property
    def is_limited(self) -> bool:
        """Tell whether there is any limit."""
        return any((self.rx_bytes, self.rx_packets, self.tx_bytes, self.tx_packets))


class Net(Pluggable):
    """A NIC of the guest; owns its backend and the C side.

    The link is up while there is a backend whose other side lives, unless `set_link` says down. An
    Uplink has the first two queues to itself, and filters nothing.
    Backends come and go at any time: `attach`, `detach` and `set_link` are for any thread that has
    no turn at the transport, and wait for each other, LIMIT_S at most (BackendError); `news`,
    `stats` and all that only tells are for any thread, and do not wait.
    """

    __slots__ = (
        "_activation",
        "_backend",
        "_config",
        "_handle",
        "_id",
        "_iothread",
        "_is_active",
        "_is_moved",
        "_lent",
        "_lost",
        "_mac",
        "_offered",
        "_turn",
        "_wanted",
        "offloads",
    )
    KIND = "net"

    def __init__(self, config: NetConfig, backend: Backend | None = None) -> None:
        """Take over `backend`, opened; ConfigError or BackendError, and it is the caller's still.

        What it can offload is what the guest is offered, for good; without one, what any tap can.
        """
        self.offloads = backend.offloads if backend else TAP_OFFLOADS
        sizes = (config.queue_size,) * (2 * config.queue_pairs) + (CTRL_QUEUE_SIZE,)
        super().__init__(
            f"NIC {config.id}",
            device_type=DEVICE_TYPE,
            features=_features(config, self.offloads),
            queue_sizes=sizes,
        )
        self._config = config
        self._offered = self.features
        self._backend: Backend | None = None
        self._lent: LentPair | None = None  # with an Uplink
        self._activation: Activation | None = None
        self._id = config.id
        self._iothread: IoThread | None = None  # has to be there as long as the backend uses it
        self._mac = config.mac  # what a driver reads when it begins
        self._wanted = True  # the link, by set_link
        self._lost = False
        self._is_active = False  # a driver is at work
        self._is_moved = False  # it was at work on another device before
        # Around the C side's calls that must come one at a time.
        self._turn = turn.Turn(self.name)
        handle = ffi.new("struct pv_net **")
        words = {
            "mac": config.mac,
            "rx_bytes": config.rx_bytes,
            "rx_packets": config.rx_packets,
            "tx_bytes": config.tx_bytes,
            "tx_packets": config.tx_packets,
        }
        check(lib.pv_net_new(ffi.new("struct pv_net_config *", words), handle), self.name)
        self._handle: Any = ffi.gc(handle[0], lib.pv_net_free)
        if backend:
            self._attach(backend, config.iothread)

    @property
    def link(self) -> bool:
        """Tell whether the guest sees a link."""
        lives = not self._lost and (self._lent is None or self._lent.is_connected)
        return self._backend is not None and self._wanted and lives

    @property
    def backend(self) -> str:
        """Return the id of what is plugged in; "" when nothing is."""
        return self._id if self._backend else ""

    @property
    def resource(self) -> Backend | None:
        """Return the backend; None when there is none."""
        return self._backend

    def config(self) -> bytes:
        """Return struct virtio_net_config; the address is the one that the driver set."""
        mac = ffi.new("uint8_t[6]")
        lib.pv_net_mac(self._handle, mac)
        status = _LINK_UP if self.link and not lib.pv_net_is_flapping(self._handle) else 0
        if lib.pv_net_is_announcing(self._handle):
            status |= _ANNOUNCE
        return _CONFIG.pack(bytes(mac), status, self._config.queue_pairs, self._config.mtu)

    def offer(self) -> int:
        """Return the NIC's own features; with an Uplink, those that it has, too."""
        self._offered = self.features
        if self._lent is not None:
            self._offered &= self._lent.lent.features | _ALWAYS & ~MRG_RXBUF
        return self._offered

    def ring_features(self) -> int:
        """Return those that who serves the queues has."""
        ours = super().ring_features()
        return ours & self._lent.lent.ring_features() if self._lent is not None else ours

    def operations(self) -> tuple[str, ...]:
        """Return both directions and the interrupt; nothing where another does all that."""
        from .fault import INTERRUPT, NIC  # noqa: PLC0415  (only tests of drivers ask)

        is_away = self._lent is not None or (self._backend and self._backend.vhost_fds)
        return () if is_away else NIC + INTERRUPT

    def activate(self, activation: Activation) -> None:
        """Start a thread for each pair of queues that is ready, up to the first that is not."""
        pairs = []
        queues = activation.queues
        for index in range(self._config.queue_pairs if activation.features & MQ else 1):
            rx, tx = queues[2 * index : 2 * index + 2]
            if not rx or not tx:
                break
            pairs.append(((rx.handle, rx.kick_fd), (tx.handle, tx.kick_fd)))
        if not pairs:
            raise BackendError(f"{self.name}: the driver made its first two queues not ready")
        # Behind the pairs there could be, which without MQ is one.
        ctrl = queues[2 * self._config.queue_pairs if activation.features & MQ else 2]
        uses_ctrl = ctrl is not None and activation.features & CTRL_VQ
        words = {
            "features": activation.features,
            "pairs": ffi.new("struct pv_net_pair[]", pairs),
            "count": len(pairs),
            "ctrl": (ctrl.handle, ctrl.kick_fd) if ctrl and uses_ctrl else (ffi.NULL, -1),
            "irq": activation.irq,
            "memory": activation.memory,
        }
        with self._turn.soon():
            result = lib.pv_net_start(self._handle, ffi.new("struct pv_net_activation *", words))
            check(result, f"{self.name}: cannot start")
            if self._lent is not None:
                try:
                    self._lent.lend(self._handle, activation, up=self._wanted)
                except BaseException:
                    self._check(lib.pv_net_stop(self._handle, _limit_ns()), "cannot stop")
                    raise
            self._activation = activation
            self._is_active = True
            if self._is_moved:
                self._is_moved = False
                lib.pv_net_arrive(self._handle)  # the network may be another one
                if lib.pv_net_is_flapping(self._handle):
                    self.config_changed()

    def reset(self, limit: float) -> None:
        """End the threads; the driver's address is the configured one again."""
        with self._turn.soon(limit):
            if self._lent is not None:
                self._lent.stop(limit)
            self._check(lib.pv_net_stop(self._handle, int(limit * 1e9)), "cannot stop")
            self._activation = None
            self._is_active = self._is_moved = False

    def halt(self) -> None:
        """Have another process not be waited for."""
        if self._lent is not None:
            self._lent.halt()

    def _check(self, result: int, what: str) -> None:
        """Raise BackendError for what the C side says of a call that may wait for the host."""
        if result == -errno.ETIMEDOUT:
            raise BackendError(
                f"{self.name}: the host keeps its threads for more than {turn.LIMIT_S:g} s; "
                "see to what is behind it"
            )
        check(result, f"{self.name}: {what}")

    def drain(self, limit: float) -> None:
        """Pause the threads; a packet that was read and had no room yet is lost."""
        with self._turn.soon(limit):
            if self._lent is not None:
                self._lent.drain(limit)
            try:
                self._check(lib.pv_net_drain(self._handle, int(limit * 1e9)), "cannot stop")
            except BackendError:
                if self._lent is not None:
                    self._lent.resume()
                raise

    def resume(self) -> None:
        """Let them go on."""
        with self._turn.soon():
            check(lib.pv_net_resume(self._handle), f"{self.name}: cannot go on")
            if self._lent is not None:
                self._lent.resume()

    def save(self) -> dict[str, object]:
        """Return what was set up: the link by a monitor, and what a driver at work receives.

        A limit begins anew; packets that the host has not taken are lost with their sender.
        """
        if self._lent is not None:
            raise ConfigError(
                f"NIC {self._id}: was plugged, and a machine that is restored has no such NIC in a "
                "slot; unplug it, or have it from the start by -netdev"
            )
        driver = net_state.save(self._handle) if self._is_active else None
        return {"link": self._wanted, "driver": driver}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; the driver knows the NIC by the address that it had."""
        self._wanted = fields.flag("link")
        check(lib.pv_net_set_link(self._handle, self._wanted, 0), self.name)
        driver = fields.optional("driver")
        if driver is not None:
            state = ffi.new("struct pv_net_state *")
            net_state.read(driver, state)
            check(lib.pv_net_restore(self._handle, state), self.name)
            self._is_active = self._is_moved = True

    def attach(
        self,
        backend: Backend,
        *,
        id: str = "",  # noqa: A002  (the field's word)
        mac: bytes = b"",
        iothread: IoThread | None = None,
    ) -> None:
        """Take over `backend` and bring the link up; as the constructor does.

        `iothread` serves it until it goes, or threads of its own do. `id` is how it is called from
        now on, and `mac` the address of this and later backends. A driver reads that once, when it
        finds the device: another is refused while one is at work. Such a one is asked to announce
        itself soon, as the network may be another one.
        """

        def change(is_bound: bool) -> None:
            if is_bound and mac not in {b"", self._mac}:
                has = self._mac.hex(":")
                raise ConfigError(
                    f"{self.name}: the guest's driver knows this slot by the address {has}, which "
                    "it asks only when it starts; give that mac or none, and set yours in the "
                    "guest (ip link set dev NAME address MAC), or unbind the driver there first"
                )
            with self._turn.soon():
                if is_bound and _is_uplink(backend):
                    known = self._offered | super(Net, self).ring_features()
                    backend.check(self._activation.features if self._activation else known)
                self._attach(backend, iothread)
                self._id = id or self._id
                if mac not in {b"", self._mac}:
                    self._mac = mac
                    lib.pv_net_set_mac(self._handle, mac)
                lib.pv_net_announce(self._handle)

        self.exchange(change)

    def _attach(self, backend: Backend, iothread: IoThread | None) -> None:
        config = self._config
        who, mover = ("vhost", "the kernel") if backend.vhost_fds else ("", "")
        if _is_uplink(backend):
            who, mover = "vhost-user", "another process"
        if self._backend:
            raise ConfigError(f"{self.name}: it has a backend; detach that first")
        if config.queue_pairs > 1 and _is_uplink(backend):
            raise ConfigError(
                f"{self.name}: has {config.queue_pairs} pairs of queues, and what is plugged by "
                "vhost-user has one; plug a tap"
            )
        if len(backend.fds) != config.queue_pairs:
            raise ConfigError(
                f"{self.name}: {config.queue_pairs} queue pairs need as many queues of the "
                f"backend, which has {len(backend.fds)}; give queues={config.queue_pairs}"
            )
        if self.offloads & ~backend.offloads:
            raise ConfigError(
                f"{self.name}: the guest was offered offloads that this backend lacks "
                f"({self.offloads & ~backend.offloads:#x}); attach a tap"
            )
        if who and config.is_limited:
            raise ConfigError(f"{self.name}: {who} knows no limits; give vhost=off or drop them")
        if who and iothread:
            raise ConfigError(
                f"{self.name}: with {who} {mover} moves the packets, and no iothread; "
                "give vhost=off or leave iothread out"
            )
        # These arrays live until the call returns, which copies them.
        fds = ffi.new("int[]", backend.fds)
        vhost_fds = ffi.new("int[]", backend.vhost_fds) if backend.vhost_fds else ffi.NULL
        words = {
            "kind": _KINDS[backend.kind],
            "count": len(backend.fds),
            "fds": fds,
            "vhost_fds": vhost_fds,
            "iothread": iothread.handle if iothread else ffi.NULL,
        }
        # Before: who is told that it has gone is to find it.
        self._lost = False
        self._backend = backend
        result = lib.pv_net_attach(
            self._handle, ffi.new("struct pv_net_backend *", words), _limit_ns()
        )
        if result < 0:
            self._backend = None
        else:
            self._iothread = iothread
        self._check(result, "cannot use its backend")
        if _is_uplink(backend):
            self._borrow(backend)

    def _borrow(self, uplink: Uplink) -> None:
        """Let it have the queues; BackendError, and there is no backend."""
        from .uplink import LentPair  # noqa: PLC0415  (few NICs are another process's)

        lent, activation = LentPair(uplink), self._activation
        uplink.device.config_changed = self.config_changed
        # A broken device is served by nobody before its reset.
        if activation is not None and not lib.pv_virtio_irq_is_broken(activation.irq):
            try:
                lent.lend(self._handle, activation, up=self._wanted)
            except BaseException:
                self._backend = None
                self._check(lib.pv_net_detach(self._handle, _limit_ns()), "cannot go on")
                raise
        self._lent = lent

    def detach(self) -> Backend | None:
        """Take the link down and hand the backend over, which nothing uses any more."""
        if self._lent is None:
            return self._detach()
        taken: list[Backend | None] = []
        # What later drivers are offered changes with it.
        self.exchange(lambda _: taken.append(self._detach()))
        return taken[0]

    def _detach(self) -> Backend | None:
        with self._turn.soon():
            if self._lent is not None and self._activation is not None:
                self._lent.drain(turn.LIMIT_S)
                self._lent.stop(turn.LIMIT_S)
            result = lib.pv_net_detach(self._handle, _limit_ns())
            if result == -errno.ETIMEDOUT:
                self._check(result, "")
            backend, self._backend = self._backend, None
            self._lent = None
        self.config_changed()
        self._check(result, "cannot go on without its backend")
        return backend

    def set_link(self, up: bool) -> None:
        """Show the guest a link, or none; what is sent and received without one is dropped."""
        with self._turn.soon():
            before = self.link
            self._wanted = up
            changed = self.link != before
            result = lib.pv_net_set_link(self._handle, up, _limit_ns())
            if self._lent is not None:
                self._lent.set_link(up=up)
        if changed:
            self.config_changed()
        self._check(result, "cannot set the link")

    def news(self) -> str:
        """Take the link down when the host's side is gone, and say so.

        The driver that is to announce itself is told, and so is one whose link is back after a
        move.
        """
        if lib.pv_net_take_announcement(self._handle):
            self.config_changed()
        lent = self._lent
        if lent is not None:
            return lent.news()
        backend = self._backend
        if backend is None or not lib.pv_net_take_lost(self._handle):
            return ""
        self._lost = True
        gone = "tap was removed" if backend.kind == "tap" else "peer has gone"
        self.config_changed()
        return f"its {gone}; the link is down"

    def take_filter_change(self) -> bool:
        """Say whether the driver has changed `rx_filter`, for the first time since it was read."""
        return bool(lib.pv_net_take_filter_change(self._handle))

    def rx_filter(self) -> Any:
        """Return a struct pv_net_mode (native/net/net.h): what the driver wants to receive now."""
        mode = ffi.new("struct pv_net_mode *")
        lib.pv_net_read_mode(self._handle, mode)
        return mode

    def stats(self) -> Any:
        """Return a struct pv_net_stats (native/net/net.h) of this moment; an Uplink's as a dict."""
        lent = self._lent
        stats = ffi.new("struct pv_net_stats *")
        lib.pv_net_stats(self._handle, stats)
        return stats if lent is None else lent.stats(int(stats.commands))

    def close(self) -> None:
        """Close the backend."""
        lib.pv_net_detach(self._handle, _limit_ns())
        backend, self._backend = self._backend, None
        if backend:
            backend.close()


def _is_uplink(backend: Backend) -> TypeGuard[Uplink]:
    return backend.kind == "lent"


def _limit_ns() -> int:
    return int(turn.LIMIT_S * 1e9)


def _features(config: NetConfig, offloads: int) -> int:
    features = _ALWAYS
    for needed, made_possible in _OFFLOADS:
        if offloads & needed == needed:
            features |= made_possible
    if config.mtu:
        features |= MTU
    if config.queue_pairs > 1:
        features |= MQ
    return features
