"""The system calls of a jail that the standard library lacks; OSError names what failed.

By ctypes, as a jail is made once, and before there is a machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP = 1, 4, 8, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 47
_PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
# asm/unistd_64.h, where the C library has no function, or not everywhere.
_SYS_CAPSET, _SYS_PIVOT_ROOT, _SYS_MOUNT_SETATTR = 126, 155, 442
_CAPABILITY_VERSION, _CAPABILITIES = 0x20080522, 64
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
# Of mount_setattr(2), Linux 5.12: the same flags as of mount(2).
READ_ONLY, NO_DEVICES, NO_PROGRAMS = MS_RDONLY | MS_NOSUID, MS_NODEV | MS_NOSUID, MS_NOEXEC

_LIBC = ctypes.CDLL(None, use_errno=True)


def _check(status: int, what: str) -> None:
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for new ones; a new PID namespace is the children's."""
    _check(_LIBC.unshare(ctypes.c_int(flags)), "namespaces")


def join(fd: int, flag: int) -> None:
    """Enter the namespace that is open as `fd`."""
    _check(_LIBC.setns(fd, flag), "namespace")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Mount something, or bind it."""
    names = (os.fsencode(source), os.fsencode(target), kind and kind.encode())
    _check(_LIBC.mount(*names, ctypes.c_ulong(flags), data.encode() or None), target)


def restrict(target: str, flags: int, *, recursive: bool = False) -> None:
    """Add flags to a mount (READ_ONLY, NO_DEVICES, NO_PROGRAMS), and to those below it."""
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)
    where = (_AT_FDCWD, os.fsencode(target), _AT_RECURSIVE if recursive else 0)
    _check(_LIBC.syscall(_SYS_MOUNT_SETATTR, *where, attributes, len(attributes)), target)


def pivot(root: str) -> None:
    """Make a mount the root, with nothing left of the one before, and the working directory."""
    os.chdir(root)
    _check(_LIBC.syscall(_SYS_PIVOT_ROOT, b".", b"."), root)
    # The old one lies over the new, which has no place for it.
    _check(_LIBC.umount2(b".", MNT_DETACH), root)
    os.chdir("/")


def _prctl(what: str, *numbers: int) -> None:
    arguments = (*numbers, 0, 0, 0, 0)[:5]
    _check(_LIBC.prctl(*(ctypes.c_ulong(one) for one in arguments)), what)


def die_with_parent(number: int) -> None:
    """Get this signal when the thread that has started this process ends."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, number)


def hide_from_ptrace() -> None:
    """Let nobody without CAP_SYS_PTRACE look into this process until it executes a program."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def no_new_privileges() -> None:
    """Let no program that is executed from now on give more rights."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def limit_capabilities(kept: frozenset[int]) -> None:
    """Take all others out of the bounding set, and let `kept` outlive a change of the user."""
    _prctl("PR_SET_KEEPCAPS", _PR_SET_KEEPCAPS, 1)
    for number in range(_CAPABILITIES):
        if number not in kept:
            try:
                _prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return  # the kernel knows no more of them


def set_capabilities(kept: frozenset[int]) -> None:
    """Have these alone, across execve(2) as well."""
    _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    data = struct.pack("6I", low, low, low, high, high, high)
    _check(_LIBC.syscall(_SYS_CAPSET, header, data), "capset")
    for number in sorted(kept):
        _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
