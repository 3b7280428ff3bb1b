"""The virtio socket device (virtio 1.2, 5.10): connections between the guest and the host.

Of two kinds. The monitor's own needs nothing of the host's kernel: the guest's ports are behind
Unix sockets, as with Firecracker, and native/vsock/vsock.h does the work. The other lends its
queues to the kernel's vhost-vsock: native/vsock/vhost.h.
"""

from __future__ import annotations

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

    from .device import Activation, Queue

DEVICE_TYPE = 19
QUEUE_SIZE = 256
EVENT_QUEUE_SIZE = 16
CID_MIN, CID_MAX = 3, (1 << 32) - 2
PATH_BYTES: int = lib.PV_VSOCK_PATH_MAX
CONNECTIONS: int = lib.PV_VSOCK_CONNECTIONS
_BACKLOG = 1024
_RESERVE = 256  # descriptors for all else of the monitor
_CONFIG = struct.Struct("<Q")


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


class Socket(Device):
    """What both kinds share."""

    __slots__ = ("_guest_cid",)

    def __init__(self, name: str, guest_cid: int, features: int = 0) -> None:
        super().__init__(
            f"vsock {name}",
            device_type=DEVICE_TYPE,
            features=features,
            queue_sizes=(QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE),
        )
        self._guest_cid = guest_cid

    def config(self) -> bytes:
        """Return struct virtio_vsock_config."""
        return _CONFIG.pack(self._guest_cid)

    def _words(self, activation: Activation) -> dict[str, Any]:
        """Return what the C side is told of the driver; BackendError."""
        rx, tx, _ = activation.queues
        if rx is None or tx is None:
            raise BackendError(f"{self.name}: cannot start: the driver has not made both queues")
        return {"rx": _queue(rx), "tx": _queue(tx), "irq": activation.irq}


class Vsock(Socket):
    """The monitor's own; owns its listening socket and the C side. `stats` is for any thread.

    Nothing tells the driver of a reset of the transport (5.10.6.7): connections end with the
    driver's own reset only.
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

    def activate(self, activation: Activation) -> None:
        """Start the thread."""
        words = ffi.new("struct pv_vsock_activation *", self._words(activation))
        check(lib.pv_vsock_start(self._handle, words), f"{self.name}: cannot start")

    def reset(self, limit: float) -> None:
        """End the thread and all connections; who connects meanwhile waits for the next driver."""
        if lib.pv_vsock_stop(self._handle, int(limit * 1e9)) < 0:
            raise BackendError(f"{self.name}: its thread has not ended within {limit:g} s")

    def operations(self) -> tuple[str, ...]:
        """Return packets of both directions, and the interrupt."""
        return NIC + INTERRUPT

    def stats(self) -> Any:
        """Return a struct pv_vsock_stats (native/vsock/vsock.h) of this moment."""
        stats = ffi.new("struct pv_vsock_stats *")
        lib.pv_vsock_stats(self._handle, stats)
        return stats

    def close(self) -> None:
        """Close the socket, and remove its file."""
        ffi.release(self._handle)
        self._listener.close()


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
