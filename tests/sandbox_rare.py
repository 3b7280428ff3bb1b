"""Entries of Python's list in the sandbox that a whole run of the tests need not come to, and why.

They are as sandbox_use.py names them. What a test can bring about at will belongs into a test
instead. The lists of C threads have no place here: what they need is known from the code itself
(unit/native/test_sandbox_reach.py), however seldom it comes to that.
"""

from __future__ import annotations

_OTHER_LIBRARY = "another C library's or kernel's name for what has one in these tests"
_NAMES = "a host that is named, of a NIC or chardev that is plugged; tests have addresses"
_PYTHON_DEVICE = "a device in Python that is at work with files, sockets or programs of its own"
_TROUBLE = "something of the host's that goes wrong, or takes its time"

RARE = {
    **dict.fromkeys(("fstat", "lstat", "stat", "access", "faccessat2", "statx"), _OTHER_LIBRARY),
    **dict.fromkeys(("socket AF_NETLINK", "sendmmsg", "uname"), _NAMES),
    **dict.fromkeys(
        (
            *("statfs", "fstatfs", "fadvise64", "copy_file_range", "preadv", "pipe2"),
            *("dup", "dup2", "dup3", "bind", "listen", "fchmod", "getcwd", "readlink"),
            *("geteuid", "getgid", "getegid", "getppid", "sched_getaffinity", "mbind"),
            *("prlimit64 this process", "getpeername", "getsockopt", "setsockopt"),
            "ioctl FIONREAD, FIONBIO, FIONCLEX, FIOCLEX",
        ),
        _PYTHON_DEVICE,
    ),
    **dict.fromkeys(
        ("rmdir", "wait4", "sendfile", "kill SIGTERM, SIGKILL, SIGSTOP, or none"), _TROUBLE
    ),
    "mmap PROT_EXEC": "a module that is a shared object, and imported late",
    "ioctl BLKSSZGET, BLKPBSZGET, BLKGETSIZE64": "a block device that is plugged; tests plug files",
}
