"""What the C code of each kind of thread calls is on its list, and what is on the list is called.

By the text of its files: a call of the C library's that takes one of the kernel's is named in
CALLS, one that a file makes in Python's threads alone in SET_UP, with the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pyvirt.native.build import HERE
from pyvirt.native.sandbox.table import APART, LISTS, calls

_LIST = {one.name: set(calls(one)) for one in LISTS}
CALLS = {
    **{name: name for name in ("accept4", "close", "connect", "epoll_create1", "epoll_ctl")},
    **{name: name for name in ("epoll_wait", "fallocate", "fcntl", "fdatasync", "fstatfs")},
    **{name: name for name in ("ftruncate", "getpid", "ioctl", "lseek", "madvise", "mmap")},
    **{name: name for name in ("mprotect", "mremap", "munmap", "poll", "ppoll", "preadv")},
    **{name: name for name in ("preadv2", "pwritev", "pwritev2", "read", "readv", "recvmsg")},
    **{name: name for name in ("sendfile", "sendmsg", "shutdown", "socket", "statx", "write")},
    "writev": "writev",
    "aligned_alloc": "mmap",
    "calloc": "mmap",
    "clock_gettime": "clock_gettime",
    "dlopen": "openat",
    "eventfd": "eventfd2",
    "eventfd_read": "read",
    "eventfd_write": "write",
    "fstat": "newfstatat fstat",
    "io_uring_queue_init_params": "io_uring_setup",
    "io_uring_submit": "io_uring_enter",
    "io_uring_submit_and_get_events": "io_uring_enter",
    "io_uring_submit_and_wait": "io_uring_enter",
    "io_uring_submit_and_wait_timeout": "io_uring_enter",
    "isatty": "ioctl",
    "malloc": "mmap",
    "open": "openat",
    "pread": "pread64",
    "pthread_cancel": "tgkill",
    "pthread_setschedparam": "sched_setscheduler",
    "pv_thread_start": "mmap mprotect clone set_robust_list rseq prctl seccomp",
    "pv_vhost_control": "ioctl",
    "pwrite": "pwrite64",
    "qsort": "sysinfo mmap",
    "realloc": "mmap mremap",
    "recv": "recvfrom",
    "send": "sendto",
}
_BLOCK = "block/*.c iothread/iothread.c iothread/io.c"
_PAIR = "net/[!t]*.c net/t[ax]*.c virtio/vhost.c"  # but for thread.c
FILES = {
    "DISK": f"{_BLOCK} iothread/uring.c",
    "DISK_POOL": f"{_BLOCK} iothread/pool.c",
    "IOTHREAD": f"{_BLOCK} iothread/uring.c {_PAIR}",
    "IOTHREAD_POOL": f"{_BLOCK} iothread/pool.c {_PAIR}",
    "POOL": "iothread/io.c",
    "NET": "net/*.c virtio/vhost.c",
    "PORTS": "port/*.c stream.c",
    "CONSOLE": "console/*.c stream.c",
    "VSOCK": "vsock/[!v]*.c vsock/vsock.c",
    "VACANT": "virtio/vacant.c vsock/vhost.c",
    "RNG": "rng/*.c",
    "BALLOON": "balloon/*.c",
}
_MADE = "as it is made, started or stopped"
# By file: what Python's threads call there.
SET_UP = {
    "balloon/balloon.c": ("calloc close eventfd fstatfs", _MADE),
    "block/alignment.c": ("aligned_alloc pread statx", "as an image is opened"),
    "block/block.c": ("calloc", _MADE),
    "block/overlay.c": ("calloc fcntl fstat ftruncate lseek madvise mmap munmap", _MADE),
    "block/overlay_copy.c": ("lseek sendfile", "as an overlay is committed"),
    "console/console.c": ("calloc close dlopen eventfd pthread_cancel pv_thread_start", _MADE),
    "console/ring.c": ("aligned_alloc", "as a ring chardev is made"),
    "console/uart.c": ("calloc", _MADE),
    "iothread/io.c": ("fcntl", "as an image is opened"),
    "iothread/iothread.c": ("calloc close eventfd", _MADE),
    "iothread/pool.c": (
        "calloc close epoll_create1 eventfd pv_thread_start",
        f"{_MADE}, and by the spare thread",
    ),
    "iothread/uring.c": (
        "calloc io_uring_queue_init_params io_uring_register",
        f"{_MADE}, and before the thread takes its list",
    ),
    "net/member.c": ("close fcntl", "as it comes to a shared thread, and goes"),
    "net/net.c": ("calloc close eventfd fcntl", _MADE),
    "net/stream.c": ("calloc", _MADE),
    "net/vhost.c": ("close eventfd", _MADE),
    "net/thread.c": ("close epoll_create1 pthread_setschedparam", f"{_MADE}; before its list"),
    "port/port.c": ("calloc close eventfd", _MADE),
    "rng/rng.c": ("calloc close eventfd", _MADE),
    "stream.c": ("fstat isatty open", "of what is no socket, and who comes is one"),
    "virtio/vacant.c": ("calloc close eventfd", _MADE),
    "virtio/vhost.c": ("calloc", "as the kernel is told of memory"),
    "vsock/event.c": ("malloc", "as a driver comes from elsewhere"),
    "vsock/keep.c": ("mmap munmap", _MADE),
    "vsock/vhost.c": ("calloc close eventfd pv_vhost_control", _MADE),
    "vsock/vsock.c": ("calloc close epoll_create1 eventfd", _MADE),
}
# Threads, the C library's own needs and the last line have these, in whatever thread.
OF_ALL = _LIST["VACANT"] | set(APART)
_WORD = re.compile(r"(?<![>.\w])(" + "|".join(CALLS) + r")\(")


def text_of(file: Path) -> str:
    """Return a C file without its comments and strings."""
    return re.sub(r"/\*.*?\*/|\"[^\"\n]*\"", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)


def names(file: Path) -> set[str]:
    """Return the functions of CALLS that a file calls; of its own, `static`, they are not.

    And what it makes without one, by syscall(2).
    """
    text = text_of(file)
    own = set(re.findall(r"^(?:static )[^;\n]*\b(\w+)\(", text, re.MULTILINE))
    return set(_WORD.findall(text)) - own | set(re.findall(r"\bsyscall\(\s*SYS_(\w+)", text))


def reached(name: str) -> set[str]:
    """Return the system calls that the threads of a list come to, by the text of their files."""
    found: set[str] = set()
    for pattern in FILES[name].split():
        files = list(HERE.glob(pattern))
        assert files, pattern
        for file in files:
            of_python = SET_UP.get(str(file.relative_to(HERE)), ("", ""))[0].split()
            found.update(*(CALLS.get(one, one).split() for one in names(file) - set(of_python)))
    return found


def test_each_list_of_c_is_looked_at() -> None:
    assert FILES.keys() == _LIST.keys() - {"CONTROL", "VCPU"}


@pytest.mark.parametrize("name", FILES)
def test_what_is_called_is_listed(name: str) -> None:
    assert reached(name) - _LIST[name] == set()


@pytest.mark.parametrize("name", FILES)
def test_what_is_listed_is_called(name: str) -> None:
    assert _LIST[name] - reached(name) - OF_ALL == set()


@pytest.mark.parametrize("file", SET_UP)
def test_what_is_python_s_is_there(file: str) -> None:
    assert set(SET_UP[file][0].split()) - names(HERE / file) == set()
