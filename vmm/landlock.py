"""Which files a machine may still open: those beneath -sandbox-path, and a few of its own.

Used where that is asked for only; native/sandbox/landlock.h. What is open already stays so.
"""

from __future__ import annotations

import errno
import os

from ..errors import ConfigError
from ..native import check, lib
from .sandbox import OPTION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

READ = lib.PV_LANDLOCK_READ
WRITE = lib.PV_LANDLOCK_WRITE
REMOVE = lib.PV_LANDLOCK_REMOVE

# What devices that are plugged are made of, and what Python and the C library look up late; those
# that a host lacks, or does not show, are left out.
_OF_HOST = (
    *((f"/dev/{name}", READ | WRITE) for name in ("null", "net/tun", "vhost-net", "vhost-vsock")),
    *(("/dev/ptmx", READ | WRITE), ("/dev/pts", READ | WRITE)),
    *(("/dev/urandom", READ), ("/dev/random", READ), ("/dev/hwrng", READ)),
    *(("/etc/machine-id", READ), ("/etc/localtime", READ)),
    *(("/sys/devices/system/node", READ), ("/sys/kernel/mm/hugepages", READ)),
)


class Place:
    """A path, what may be done beneath it (READ, WRITE, REMOVE), and the option that names it."""

    __slots__ = ("option", "path", "what")

    def __init__(self, path: str, what: int, option: str = "") -> None:
        """Without an `option` it may be missing."""
        self.path = path
        self.what = what
        self.option = option


def version() -> int:
    """Return that of the kernel's interface, 0 where this host has none."""
    return max(int(lib.pv_landlock_version()), 0)


def arm(places: Iterable[Place]) -> None:
    """Let what the list `control` binds from now on reach these alone; ConfigError."""
    result = lib.pv_landlock_begin()
    if result in {-errno.ENOSYS, -errno.EOPNOTSUPP}:
        raise ConfigError(
            f"{OPTION}: this host's kernel has no Landlock; drop the option, or boot a kernel with "
            "CONFIG_SECURITY_LANDLOCK and landlock among lsm="
        )
    check(result, OPTION)
    for place in (*places, *_own()):
        result = lib.pv_landlock_allow(os.fsencode(place.path), place.what)
        if result < 0 and place.option:
            raise ConfigError(
                f"{place.option}: {os.strerror(-result)}; name a file or folder that is there"
            )


def _own() -> Iterable[Place]:
    """Yield what a machine needs whatever it is made of."""
    for path, what in _OF_HOST:
        yield Place(path, what)
    # By its own number, as the link /proc/self has no file of its own.
    yield Place(f"/proc/{os.getpid()}", READ)
    yield Place(os.path.dirname(os.__file__), READ)
    yield Place(os.path.realpath(os.path.join(os.path.dirname(__file__), "..")), READ)
