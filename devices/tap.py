"""A guest's NIC on the host: a tap device of the kernel, opened by ioctl, one file for each queue.

What a guest sends is written to the tap, what its link receives is read from it, with a virtio
net header of 12 bytes before each frame. The link itself (its bridge, its addresses, up or down)
is the host's affair; `pyvirt net` makes one. Source: Documentation/networking/tuntap.rst,
linux/if_tun.h, linux/vhost.h.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import struct

from ..errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

DEVICE = "/dev/net/tun"
VHOST_DEVICE = "/dev/vhost-net"
NAME_BYTES = 15  # IFNAMSIZ less the terminating zero
QUEUES_MAX = 256  # of a tap: MAX_TAP_QUEUES
HEADER = 12  # struct virtio_net_hdr_v1

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40
# In the order of the kernels that brought them; the members of a group come and go together.
_OFFLOADS = (TUN_F_CSUM, TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN, TUN_F_USO4 | TUN_F_USO6)

_VHOST_GET_FEATURES = 0x8008AF00
_SIOCGIFMTU = 0x8921
_IFREQ = struct.Struct("16sH22x")
_IFREQ_INT = struct.Struct("16si20x")
_INT = struct.Struct("i")
_WANTED = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR


class TapConfig:
    """One tap, as it was asked for: by its name, or as files that somebody else opened."""

    __slots__ = ("fds", "ifname", "queues", "vhost", "vhost_fds")

    def __init__(
        self,
        ifname: str = "",
        *,
        fds: tuple[int, ...] = (),
        queues: int = 1,
        vhost: bool = False,
        vhost_fds: tuple[int, ...] = (),
    ) -> None:
        """Either `ifname`, of at most 15 bytes, or `fds`.

        `queues` is 1 to 256, as many as there are `fds`. `vhost` hands the queues to the
        kernel's vhost-net, through the files `vhost_fds` where they are given.
        """
        self.ifname = ifname
        self.fds = fds
        self.queues = queues
        self.vhost = vhost
        self.vhost_fds = vhost_fds

    def open(self) -> Tap:
        """Return the open tap, to which given files belong from now on; ConfigError."""
        return Tap(self)


class Tap:
    """An open tap; owns its files until `close`.

    `fds` has one for each queue, non-blocking; `vhost_fds` as many of vhost-net, or none.
    `offloads` are the TUN_F_ bits that the tap can do, all of them off at first; `mtu` is its
    link's in bytes, 0 where it cannot be told.
    """

    kind = "tap"
    __slots__ = ("fds", "mtu", "name", "offloads", "vhost_fds")

    def __init__(self, config: TapConfig) -> None:
        """Open what `config` says; ConfigError."""
        self.fds: tuple[int, ...] = ()
        self.vhost_fds: tuple[int, ...] = ()
        try:
            if config.fds:
                self.name = _check_given(config)
                self.fds = config.fds
            else:
                self.name = config.ifname
                self.fds = _open_by_name(config.ifname, config.queues)
            self.offloads = self._set_up()
            self.mtu = _mtu(self.name)
            if config.vhost:
                self.vhost_fds = _open_vhost(config)
        except BaseException:
            # What was given is still the giver's.
            _close(set(self.fds) - set(config.fds))
            raise

    def _set_up(self) -> int:
        for fd in self.fds:
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)
        try:
            fcntl.ioctl(self.fds[0], TUNSETVNETHDRSZ, _INT.pack(HEADER))
            return _probe_offloads(self.fds[0])
        except OSError as error:
            raise ConfigError(
                f"-netdev tap {self.name}: {error.strerror}; it was removed meanwhile, "
                "or needs a newer kernel"
            ) from None

    def close(self) -> None:
        """Close the files; a tap that is not persistent goes with them."""
        _close((*self.fds, *self.vhost_fds))
        self.fds = self.vhost_fds = ()


def _probe_offloads(fd: int) -> int:
    """Return the TUN_F_ bits that the kernel takes, and leave them off."""
    found = 0
    for group in _OFFLOADS:
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, found | group)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            found |= group
    fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
    return found


def _open_by_name(name: str, queues: int) -> tuple[int, ...]:
    try:
        # To open one that does not exist would make it, with nothing behind.
        _socket.if_nametoindex(name)
    except OSError:
        where = " in the nested lab, which has not the host's" if "PYVIRT_LAB" in os.environ else ""
        raise ConfigError(
            f"-netdev ifname={name}: there is no such tap{where}; "
            f"make it: sudo pyvirt net up {name}"
        ) from None
    flags = _WANTED | (IFF_MULTI_QUEUE if queues > 1 else 0)
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(open_device(f"-netdev ifname={name}"))
            failure = set_interface(fds[-1], name, flags)
            if failure == errno.EINVAL and len(fds) == 1:
                # A tap has many queues or one, and must be opened as what it is.
                flags ^= IFF_MULTI_QUEUE
                failure = set_interface(fds[-1], name, flags)
                if failure in {0, errno.EBUSY} and queues > 1:
                    raise ConfigError(
                        f"-netdev ifname={name},queues={queues}: the tap has one queue; "
                        f"make it anew: sudo pyvirt net up {name} -multi-queue"
                    )
            if failure:
                raise ConfigError(f"-netdev ifname={name}: {_explain(name, failure)}")
    except BaseException:
        _close(fds)
        raise
    return tuple(fds)


def open_device(option: str) -> int:
    """Return an open /dev/net/tun; ConfigError that names `option`."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM}:
            mend = f"run as root, or allow it: sudo chmod a+rw {DEVICE}"
        else:
            mend = "run: sudo modprobe tun"
        raise ConfigError(f"{option}: {DEVICE}: {error.strerror}; {mend}") from None


def set_interface(fd: int, name: str, flags: int) -> int:
    """Make `fd` a queue of the interface, which comes to be if need be; return 0 or an errno."""
    try:
        fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def keep(fd: int, owner: int | None) -> None:
    """Let the tap outlive `fd`, its queue; a user of the id `owner` may open it, too. OSError."""
    if owner is not None:
        fcntl.ioctl(fd, TUNSETOWNER, owner)
    fcntl.ioctl(fd, TUNSETPERSIST, 1)


def _explain(name: str, failure: int) -> str:
    if failure == errno.EBUSY:
        return "in use by another process; end that one, or give another tap"
    if failure in {errno.EPERM, errno.EACCES}:
        return f"no permission; run as root, or make it yours: sudo pyvirt net up {name} -user USER"
    if failure == errno.EINVAL:
        return "is no tap; give the name of one, as made by pyvirt net up"
    return f"{os.strerror(failure)}; give another tap"


def _check_given(config: TapConfig) -> str:
    """Return the name of the interface of which all the given files are queues."""
    names = set()
    for fd in config.fds:
        try:
            answer = fcntl.ioctl(fd, TUNGETIFF, bytes(_IFREQ.size))
        except OSError as error:
            reason = "not an open file" if error.errno == errno.EBADF else "no tap"
            raise ConfigError(
                f"-netdev fd={fd}: {reason}; give the number of one that is inherited"
            ) from None
        name, flags = _IFREQ.unpack(answer)
        if flags & _WANTED != _WANTED:
            raise ConfigError(
                f"-netdev fd={fd}: not a tap with IFF_NO_PI and IFF_VNET_HDR; open it with these"
            )
        names.add(os.fsdecode(name.rstrip(b"\0")))
    if len(names) > 1:
        raise ConfigError(
            f"-netdev fds={':'.join(map(str, config.fds))}: queues of "
            f"{' and '.join(sorted(names))}; give those of one tap"
        )
    return str(names.pop())


def _mtu(name: str) -> int:
    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        request = _IFREQ_INT.pack(os.fsencode(name), 0)
        return int(_IFREQ_INT.unpack(fcntl.ioctl(control, _SIOCGIFMTU, request))[1])
    except OSError:
        # The files of a tap may come from another network namespace.
        return 0
    finally:
        control.close()


def _open_vhost(config: TapConfig) -> tuple[int, ...]:
    if config.vhost_fds:
        for fd in config.vhost_fds:
            _check_vhost(fd)
            os.set_inheritable(fd, False)
        return config.vhost_fds
    fds: list[int] = []
    try:
        while len(fds) < config.queues:
            fds.append(os.open(VHOST_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        _close(fds)
        if error.errno in {errno.EACCES, errno.EPERM}:
            mend = f"run as root, or allow it: sudo chmod a+rw {VHOST_DEVICE}"
        else:
            mend = "run: sudo modprobe vhost_net"
        raise ConfigError(
            f"-netdev vhost=on: {VHOST_DEVICE}: {error.strerror}; {mend}; or give vhost=off"
        ) from None
    return tuple(fds)


def _check_vhost(fd: int) -> None:
    try:
        fcntl.ioctl(fd, _VHOST_GET_FEATURES, bytes(8))
    except OSError:
        raise ConfigError(
            f"-netdev vhostfd={fd}: not a file of {VHOST_DEVICE}; give the number of an open one"
        ) from None


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
