"""A program of its own: runs another that finds a folder where nothing can be written.

    python3 -IS readonly.py FOLDER PLACE PROGRAM [WORD...]

In a mount namespace that the caller has made, FOLDER is at PLACE then, a new folder in a tmpfs over
the one above it, with all that is mounted below FOLDER, every mount of it read-only. What the
kernel makes up (/proc, /sys, ...) is shown empty: it is the host's. Takes Linux 5.12. It imports
nothing of the package, for it starts by itself.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_MADE_UP = frozenset(
    (
        *("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "autofs", "debugfs"),
        *("tracefs", "securityfs", "configfs", "pstore", "bpf", "efivarfs", "fusectl"),
        *("binfmt_misc", "mqueue", "nsfs", "rpc_pipefs", "hugetlbfs"),
    )
)
# linux/mount.h, and asm/unistd.h of all processors.
_MS_RDONLY, _MS_BIND, _MS_REC = 1, 4096, 16384
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def _check(status: int, what: str) -> None:
    if status < 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    names = (os.fsencode(source), os.fsencode(target), kind and kind.encode())
    _check(_LIBC.mount(*names, ctypes.c_ulong(flags), None), f"mount {target}")


def _below(top: str) -> list[tuple[str, str]]:
    """Return places and kinds of what is mounted at `top` and below; proc(5)."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields, _, rest = line.partition(b" - ")
            place = os.fsdecode(fields.split()[4].decode("unicode_escape").encode("latin-1"))
            if place == top or place.startswith(f"{top}/"):
                found.append((place, rest.split()[0].decode()))
    return found


def _show(folder: str, top: str) -> None:
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    _mount("none", os.path.dirname(top), "tmpfs", 0)
    os.mkdir(top)
    _mount(f"/proc/self/fd/{fd}", top, None, _MS_BIND | _MS_REC)
    os.close(fd)
    # One that is below another is out of sight with that.
    for place, kind in _below(top):
        if kind in _MADE_UP and os.path.isdir(place):
            _mount("none", place, "tmpfs", _MS_RDONLY)
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    numbers = (_SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(top), _AT_RECURSIVE)
    _check(_LIBC.syscall(*numbers, attributes, len(attributes)), "mount_setattr")


def main(argv: list[str]) -> None:
    """Show the folder and become the program."""
    folder, place, *command = argv
    try:
        _show(folder, place)
        os.chdir("/")
        os.execvp(command[0], command)  # noqa: S606  (a shell is not wanted)
    except OSError as error:
        sys.exit(f"{error.filename or command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
