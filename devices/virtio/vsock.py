"""The virtio socket device (virtio 1.2, 5.10): connections between the guest and the host.

Of two kinds. The monitor's own needs nothing of the host's kernel: the guest's ports are behind
Unix sockets, as with Firecracker, and native/vsock/vsock.h does the work. The other lends its
queues to the kernel's vhost-vsock: native/vsock/vhost.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import struct

from ...errors import BackendError, ConfigError
from ...native import check, ffi, lib
from ..unix_socket import UnixListener
from .device import Device
from .fault import INTERRUPT, NIC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...state import Fields
    from .device import Activation, Queue

DEVICE_TYPE = 19
QUEUE_SIZE = 256
EVENT_QUEUE_SIZE = 16
CID_MIN, CID_MAX = 3, (1 << 32) - 2
PATH_BYTES: int = lib.PV_VSOCK_PATH_MAX
CONNECTIONS: int = lib.PV_VSOCK_CONNECTIONS
_EVENTS = 2  # the index of the event queue
_BACKLOG = 1024
_RESERVE = 256  # descriptors for all else of the monitor
_CONFIG = struct.Struct("<Q")

SEQPACKET = 1 << 1
VHOST_DEVICE = "/dev/vhost-vsock"
_VHOST_GET_FEATURES = 0x8008AF00
# What other files say to an ioctl of vhost-vsock; the last one is vhost-net.
_UNKNOWN = (errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.ENOBUFS)


class VsockConfig:
    """One device of the monitor's own, as it was asked for."""

    __slots__ = ("guest_cid", "id", "path")

    def __init__(self, id: str, guest_cid: int, path: str) -> None:  # noqa: A002  (the field's word)
        """`guest_cid` is CID_MIN to CID_MAX; `path`, of up to PATH_BYTES, is a Unix socket to be.

        The guest's connections to port N of the host go to the socket `path`_N.
        """
        self.id = id
        self.guest_cid = guest_cid
        self.path = path

    def make(self) -> Vsock:
        """Return the device; ConfigError."""
        return Vsock(self)


class VhostVsockConfig:
    """One device that the host's kernel serves, as it was asked for."""

    __slots__ = ("driver", "fd", "guest_cid", "id")

    def __init__(self, id: str, guest_cid: int, fd: int = -1, *, driver: str) -> None:  # noqa: A002
        """`fd` is an open VHOST_DEVICE, which belongs to the device from `make` on; -1: open it.

        `driver` is how the user called the device.
        """
        self.id = id
        self.guest_cid = guest_cid
        self.fd = fd
        self.driver = driver

    def make(self) -> VhostVsock:
        """Return the device; ConfigError."""
        return VhostVsock(self)


class Socket(Device):
    """What both kinds share."""

    __slots__ = ("_activation", "_guest_cid", "_is_moved")

    def __init__(self, name: str, guest_cid: int, features: int = 0) -> None:
        super().__init__(
            f"vsock {name}",
            device_type=DEVICE_TYPE,
            features=features,
            queue_sizes=(QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE),
        )
        self._guest_cid = guest_cid
        self._activation: Activation | None = None
        self._is_moved = False  # its driver was at work on another device before

    def activate(self, activation: Activation) -> None:
        """Start to serve, and tell a driver that comes from elsewhere that its connections end."""
        self._start(activation)
        self._activation = activation
        if self._is_moved:
            self._is_moved = False
            self._tell_reset(activation)

    def _start(self, activation: Activation) -> None:
        raise NotImplementedError

    def _tell_reset(self, activation: Activation) -> None:
        event = activation.queues[_EVENTS]
        if event is None:
            return
        queue = ffi.new("struct pv_queue *", _queue(event))
        if lib.pv_vsock_tell_reset(queue, activation.irq) == -errno.ENOMEM:
            raise BackendError(f"{self.name}: out of memory")

    def save(self) -> dict[str, object]:
        """Return the address; connections are not saved, as their other ends are elsewhere."""
        return {"guest_cid": self._guest_cid}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; the driver learns of another address.

        Connections are over, of which the driver is told by the event queue as soon as it is
        activated, if it has a buffer there, as Linux's always has.
        """
        fields.integer("guest_cid", CID_MIN, CID_MAX)
        self._is_moved = True

    def config(self) -> bytes:
        """Return struct virtio_vsock_config."""
        return _CONFIG.pack(self._guest_cid)

    def _check(self, result: int, limit: float) -> None:
        if result < 0:
            raise BackendError(f"{self.name}: its thread has not ended within {limit:g} s")

    def stats(self) -> Any:
        """Return a struct pv_vsock_stats (native/vsock/vsock.h) of this moment.

        Of what vhost does the kernel keeps no count.
        """
        return ffi.new("struct pv_vsock_stats *")

    def _words(self, activation: Activation) -> dict[str, Any]:
        """Return what the C side is told of the driver; BackendError."""
        rx, tx, _ = activation.queues
        if rx is None or tx is None:
            raise BackendError(f"{self.name}: cannot start: the driver has not made both queues")
        return {"rx": _queue(rx), "tx": _queue(tx), "irq": activation.irq}


class Vsock(Socket):
    """The monitor's own; owns its listening socket and the C side. `stats` is for any thread.

    Connections end with the driver's own reset, and with a restore.
    """

    __slots__ = ("_handle", "_listener")

    def __init__(self, config: VsockConfig) -> None:
        """Listen; ConfigError, and nothing is left behind."""
        super().__init__(config.id, config.guest_cid)
        try:
            self._listener = UnixListener(config.path, mode=0o600, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"-device vsock-device,uds={config.path}: {error.strerror}; "
                "name another path, in a folder that can be written"
            ) from None
        try:
            self._handle = self._make(config)
        except BaseException:
            self._listener.close()
            raise

    def _make(self, config: VsockConfig) -> Any:
        path = ffi.new("char[]", os.fsencode(config.path))
        words = {
            "guest_cid": config.guest_cid,
            "listen_fd": self._listener.fd,
            "path": path,
            "connections": _connections(),
        }
        handle = ffi.new("struct pv_vsock **")
        check(lib.pv_vsock_new(ffi.new("struct pv_vsock_config *", words), handle), self.name)
        return ffi.gc(handle[0], lib.pv_vsock_free)

    def _start(self, activation: Activation) -> None:
        words = ffi.new("struct pv_vsock_activation *", self._words(activation))
        check(lib.pv_vsock_start(self._handle, words), f"{self.name}: cannot start")

    def reset(self, limit: float) -> None:
        """End the thread and all connections; who connects meanwhile waits for the next driver."""
        self._check(lib.pv_vsock_stop(self._handle, int(limit * 1e9)), limit)
        self._activation, self._is_moved = None, False

    def drain(self, limit: float) -> None:
        """End the thread; connections stay as they are."""
        self._check(lib.pv_vsock_drain(self._handle, int(limit * 1e9)), limit)

    def resume(self) -> None:
        """Start another."""
        check(lib.pv_vsock_resume(self._handle), f"{self.name}: cannot go on")

    def operations(self) -> tuple[str, ...]:
        """Return packets of both directions, and the interrupt."""
        return NIC + INTERRUPT

    def stats(self) -> Any:
        """Return its counters."""
        stats = super().stats()
        lib.pv_vsock_stats(self._handle, stats)
        return stats

    def close(self) -> None:
        """Close the socket, and remove its file."""
        ffi.release(self._handle)
        self._listener.close()


class VhostVsock(Socket):
    """The kernel's; owns its file of VHOST_DEVICE, by which the guest has its address.

    With the driver's reset the connections are not over for the host: the next driver ends each
    when it is sent something.
    """

    __slots__ = ("_fd", "_handle")

    def __init__(self, config: VhostVsockConfig) -> None:
        """Take the address; ConfigError, and nothing is left behind."""
        self._fd = _open_vhost(config)
        try:
            offered = int.from_bytes(fcntl.ioctl(self._fd, _VHOST_GET_FEATURES, bytes(8)), "little")
            super().__init__(config.id, config.guest_cid, offered & SEQPACKET)
            self._handle = _take_address(self._fd, config)
        except BaseException:
            os.close(self._fd)
            raise

    def _start(self, activation: Activation) -> None:
        words = self._words(activation)
        words |= {"features": activation.features, "memory": activation.memory}
        given = ffi.new("struct pv_vhost_vsock_activation *", words)
        check(lib.pv_vhost_vsock_start(self._handle, given), f"{self.name}: cannot start")

    def reset(self, limit: float) -> None:
        """Take the queues back."""
        self._check(lib.pv_vhost_vsock_stop(self._handle, int(limit * 1e9)), limit)
        self._activation, self._is_moved = None, False

    def drain(self, limit: float) -> None:
        """Take the queues back; connections stay as they are."""
        self._check(lib.pv_vhost_vsock_drain(self._handle, int(limit * 1e9)), limit)

    def resume(self) -> None:
        """Lend them again."""
        if self._activation is not None:
            self._start(self._activation)

    def operations(self) -> tuple[str, ...]:
        """Return nothing: the kernel knows no faults."""
        return ()

    def close(self) -> None:
        """Give the address back, which ends all connections."""
        ffi.release(self._handle)
        os.close(self._fd)


def _open_vhost(config: VhostVsockConfig) -> int:
    option = f"-device {config.driver}"
    if config.fd >= 0:
        try:
            fcntl.ioctl(config.fd, _VHOST_GET_FEATURES, bytes(8))
        except OSError:
            raise _no_vhost(config) from None
        os.set_inheritable(config.fd, False)
        return config.fd
    try:
        return os.open(VHOST_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            mend = f"run as root, or allow it: sudo chmod a+rw {VHOST_DEVICE}"
        else:
            mend = "run: sudo modprobe vhost_vsock"
        raise ConfigError(
            f"{option}: {VHOST_DEVICE}: {error.strerror}; {mend}; or take the device that "
            f"needs no module: vsock-device,guest-cid={config.guest_cid},uds=PATH"
        ) from None


def _take_address(fd: int, config: VhostVsockConfig) -> Any:
    handle = ffi.new("struct pv_vhost_vsock **")
    error = -lib.pv_vhost_vsock_new(fd, config.guest_cid, handle)
    if error == errno.EADDRINUSE:
        raise ConfigError(
            f"-device {config.driver},guest-cid={config.guest_cid}: another guest of this host "
            "has that address; give another"
        )
    if error in _UNKNOWN and config.fd >= 0:
        raise _no_vhost(config)
    check(-error, f"-device {config.driver}: {VHOST_DEVICE}")
    return ffi.gc(handle[0], lib.pv_vhost_vsock_free)


def _no_vhost(config: VhostVsockConfig) -> ConfigError:
    return ConfigError(
        f"-device {config.driver},vhostfd={config.fd}: not a file of {VHOST_DEVICE}; "
        "give the number of an open one"
    )


def _queue(queue: Queue) -> tuple[Any, int]:
    return (queue.handle, queue.kick_fd)


def _connections() -> int:
    """Return how many connections there may be, each of which needs a descriptor.

    The limit of this process is raised as far as it may be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + _RESERVE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS
    return max(1, min(CONNECTIONS, soft - _RESERVE))
