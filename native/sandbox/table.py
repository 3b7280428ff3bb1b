"""What each kind of thread may ask of the kernel, and why; all else ends the machine in one line.

A thread that is started under a list is under it for good, and adds its own: what it may do is what
all of them allow. So CONTROL, under which devices' threads are started later, has whatever those
have. `python -m pyvirt.native.sandbox.generate` makes programs.c and docs/seccomp.md of this.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from .bpf import OWN_PID, Argument, Rule

PROT_EXEC = 0x4
_CLONE_THREAD = 0x00010000
# What a thread of glibc's shares: memory, file system, files, signal handlers, semaphores.
_CLONE_SHARED = 0x00040F00
_CLONE_NEW = 0x7E020000
_SIGKILL, _SIGTERM, _SIGSTOP = 9, 15, 19
_F_DUPFD_CLOEXEC = 1030

# Requests of ioctl(2), by their names in linux/kvm.h, if_tun.h, sockios.h, fs.h, asm/ioctls.h.
IOCTLS = {
    "KVM_RUN": 0xAE80,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "TCGETS": 0x5401,
    "TCSETS": 0x5402,
    "TCSETSW": 0x5403,
    "TCSETSF": 0x5404,
    "TIOCGPGRP": 0x540F,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "TIOCGPTN": 0x80045430,
    "TIOCSPTLCK": 0x40045431,
    "TIOCGPTPEER": 0x5441,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
    "TUNSETIFF": 0x400454CA,
    "TUNGETFEATURES": 0x800454CF,
    "TUNSETOFFLOAD": 0x400454D0,
    "TUNGETIFF": 0x800454D2,
    "TUNSETVNETHDRSZ": 0x400454D8,
    "TUNSETQUEUE": 0x400454D9,
    "SIOCGIFMTU": 0x8921,
    "SIOCGIFINDEX": 0x8933,
    "BLKSSZGET": 0x1268,
    "BLKPBSZGET": 0x127B,
    "BLKGETSIZE64": 0x80081272,
}
_KVM, _VHOST = 0xAE00, 0xAF00  # the type of all requests of each, in their second byte
_TYPE = 0xFF00
_AF_NETLINK = 16
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
PRCTLS = {
    "PR_SET_NAME": 15,
    "PR_GET_NAME": 16,
    "PR_GET_SECCOMP": 21,
    "PR_SET_NO_NEW_PRIVS": 38,
}


class Entry(NamedTuple):
    """A rule, and what it is for."""

    rule: Rule
    why: str
    shown: str  # the arguments, for people


class List(NamedTuple):
    """The list of one kind of thread; `includes` names those whose entries it has as well."""

    name: str
    who: str
    entries: tuple[Entry, ...]


def _calls(names: str, why: str) -> list[Entry]:
    return [Entry(Rule(name), why, "") for name in names.split()]


def _checked(call: str, shown: str, why: str, *arguments: Argument) -> Entry:
    return Entry(Rule(call, arguments), why, shown)


def _ioctls(names: str, why: str) -> Entry:
    words = names.split()
    return _checked(
        "ioctl", ", ".join(words), why, Argument(1, tuple(IOCTLS[one] for one in words))
    )


def _typed(kind: int, shown: str, why: str) -> Entry:
    return _checked("ioctl", shown, why, Argument(1, (kind,), _TYPE))


def _not_executable(call: str, argument: int) -> Entry:
    why = "memory, none of which can be executed"
    return _checked(call, "without PROT_EXEC", why, Argument(argument, (0,), PROT_EXEC))


# What any thread needs: the C library, and the line about its end (native/crash.h).
_ALL = (
    *_calls("futex", "locks"),
    *_calls("write", "eventfds, and the last line"),
    *_calls("read", "eventfds"),
    *_calls("ppoll", "its wait, and the last line"),
    *_calls("madvise brk", "memory that is given back, a thread's own at its end"),
    *_calls("rt_sigprocmask rt_sigaction rt_sigreturn", "faults, and the last line"),
    *_calls("gettid getpid", "the last line"),
    _checked("tgkill", "this process", "the last line", Argument(0, (OWN_PID,))),
    *_calls("clock_gettime", "where the clock is no affair of the C library"),
    *_calls("exit", "its end"),
)
_TERMINAL = _ioctls("TCSETS", "a terminal gets its mode back before the last line")
_MORE_MEMORY = (_not_executable("mmap", 2), *_calls("munmap", "memory that is given back"))
# What a thread of Python's needs beside that, whatever it does.
_PYTHON = (
    *_MORE_MEMORY,
    _not_executable("mprotect", 2),
    *_calls("mremap", "memory"),
    *_calls("close", "what the garbage collector finds"),
    *_calls("clock_nanosleep", "time.sleep"),
    *_calls("restart_syscall", "SIGCONT in a wait with a limit"),
    *_calls("sigaltstack", "the stack for faults, which goes with the thread"),
)

VCPU = (
    _ioctls("KVM_RUN", "the guest"),
    _ioctls("KVM_SET_USER_MEMORY_REGION", "a new configuration is shown at once, or not at all"),
    _TERMINAL,
    *_PYTHON,
    *_ALL,
)

_RING = _calls("io_uring_enter", "operations and the wait for them")
_FILES = _calls("preadv2 pwritev2 fdatasync fallocate", "the image, and what is in memory")

POOL = (_TERMINAL, *_FILES, *_ALL)
DISK = (*_RING, *_MORE_MEMORY, *POOL)
DISK_POOL = (*_calls("epoll_wait epoll_ctl", "its wait"), *_MORE_MEMORY, *POOL)
_PACKETS = (
    *_calls("preadv2 pwritev2", "a tap, and a socket"),
    *_calls("sendmsg", "a socket"),
    _ioctls("TUNSETQUEUE TUNSETOFFLOAD", "what the driver asks of a tap"),
    _typed(_VHOST, "VHOST_*", "the kernel's part of a NIC, which takes its time to stop"),
)
NET = (_TERMINAL, *_calls("epoll_wait epoll_ctl", "its wait"), *_PACKETS, *_ALL)
IOTHREAD = (*DISK, *_PACKETS)
IOTHREAD_POOL = (*DISK_POOL, *_PACKETS)
_STREAMS = (
    *_calls("readv writev recvmsg sendmsg", "chardevs"),
    *_calls("accept4 close", "who comes to a socket, and goes"),
    _checked("fcntl", "F_DUPFD_CLOEXEC", "who has come", Argument(1, (_F_DUPFD_CLOEXEC,))),
)
_TERMINALS = _ioctls("TIOCGWINSZ TIOCGPTN TCGETS TCSETS", "a terminal, and its size")
CONSOLE = (_TERMINALS, *_STREAMS, *_ALL)
PORTS = (*_calls("shutdown", "who has gone"), *CONSOLE)
VSOCK = (
    _TERMINAL,
    *_calls("epoll_wait epoll_ctl", "its wait"),
    *_calls("sendmsg recvmsg shutdown accept4 close", "the connections"),
    _checked("socket", "AF_UNIX", "a connection of the guest", Argument(0, (FAMILIES["AF_UNIX"],))),
    *_calls("connect", "a connection of the guest"),
    *_ALL,
)
VACANT = (_TERMINAL, *_ALL)
RNG = (_TERMINAL, *_calls("readv", "the source"), *_ALL)
BALLOON = (_TERMINAL, *_ALL)
# Python's start threads, which take their own list then.
_THREADS = (
    _checked(
        "clone",
        "a thread, in this namespace",
        "threads",
        Argument(0, (_CLONE_THREAD | _CLONE_SHARED,), _CLONE_THREAD | _CLONE_SHARED | _CLONE_NEW),
    ),
    Entry(
        Rule("clone3", (), errno.ENOSYS), "its flags cannot be seen; the C library takes clone", ""
    ),
    *_calls("set_robust_list rseq", "a thread's beginning"),
    _checked(
        "prctl",
        ", ".join(PRCTLS),
        "a thread's name, and its list",
        Argument(0, tuple(PRCTLS.values())),
    ),
    _checked("seccomp", "SECCOMP_SET_MODE_FILTER", "a thread's list", Argument(0, (1,))),
)

CONTROL = (
    *_PYTHON,
    *_THREADS,
    Entry(
        Rule("mmap", (Argument(2, (PROT_EXEC,), PROT_EXEC),), errno.EPERM),
        "a module of Python's that is a shared object; most are done without",
        "PROT_EXEC",
    ),
    _typed(_KVM, "KVM_*", "vCPUs, interrupts, memory slots"),
    _typed(_VHOST, "VHOST_*", "the kernel's part of a device"),
    _ioctls(
        "TUNSETIFF TUNGETFEATURES TUNSETOFFLOAD TUNGETIFF TUNSETVNETHDRSZ TUNSETQUEUE SIOCGIFMTU "
        "SIOCGIFINDEX",
        "taps",
    ),
    _ioctls("BLKSSZGET BLKPBSZGET BLKGETSIZE64", "block devices as images"),
    _ioctls(
        "TIOCGWINSZ TIOCGPGRP TIOCGPTN TIOCSPTLCK TIOCGPTPEER TCGETS TCSETS TCSETSW TCSETSF",
        "terminals",
    ),
    _ioctls("FIONREAD FIONBIO FIONCLEX FIOCLEX", "descriptors"),
    *_calls("openat", "images, sockets, what is imported late; Landlock is to say which"),
    *_calls("newfstatat fstat statx lstat stat statfs fstatfs lseek getdents64", "files"),
    *_calls("readlink access faccessat2 getcwd", "files"),
    *_calls("unlink mkdir rmdir rename symlink", "sockets, terminals' links, snapshots"),
    *_calls("fchmod ftruncate fsync flock", "sockets, pid file, images, snapshots"),
    *_calls("fadvise64 copy_file_range sendfile uname", "snapshots"),
    *_calls("memfd_create", "snapshots, and overlays"),
    *_calls("pread64 pwrite64 preadv", "images, snapshots, memory"),
    *_calls("dup dup2 dup3 fcntl pipe2 eventfd2", "descriptors"),
    *_calls("poll", "waits"),
    *_calls("epoll_create1 io_uring_setup", "devices that are started"),
    _checked(
        "io_uring_register",
        "what may be asked of a ring, and that it is on",
        "disks",
        Argument(1, (8, 11, 12)),
    ),
    _checked(
        "socket",
        ", ".join(FAMILIES),
        "monitors, chardevs, back ends",
        Argument(0, tuple(FAMILIES.values())),
    ),
    _checked("socketpair", "AF_UNIX", "back ends", Argument(0, (FAMILIES["AF_UNIX"],))),
    *_calls("bind listen connect getsockname getpeername", "monitors, chardevs"),
    *_calls("setsockopt getsockopt", "the same"),
    *_calls("sendto recvfrom", "the same"),
    *_calls("sendmmsg", "names of hosts"),
    Entry(
        Rule("socket", (Argument(0, (_AF_NETLINK,)),), errno.EAFNOSUPPORT),
        "names of hosts are found without knowing this one's addresses",
        "AF_NETLINK",
    ),
    *_calls("getrandom", "names, and the guest's generation"),
    *_calls("getuid geteuid getgid getegid getppid getpgrp", "who runs it"),
    *_calls("sched_getaffinity sched_setscheduler", "processors, and turns on them"),
    *_calls("mbind", "memory's nodes"),
    _checked("prlimit64", "this process", "how many descriptors there may be", Argument(0, (0,))),
    _checked(
        "kill",
        "SIGTERM, SIGKILL, SIGSTOP, or none",
        "helpers that do not end; who is alive",
        Argument(1, (0, _SIGTERM, _SIGKILL, _SIGSTOP)),
    ),
    *_calls("wait4", "helpers' ends"),
    *_calls("exit_group", "the end"),
)

# Whatever a device's thread has, once; the lists of CONTROL's own come first.
_DEVICES = (*DISK, *IOTHREAD_POOL, *PORTS, *VSOCK, *RNG, *BALLOON)


def _once(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Leave out what is there already; a call without conditions makes those with some useless."""
    free = {one.rule.call for one in entries if not one.rule.arguments and not one.rule.error}
    found: dict[Rule, Entry] = {}
    for one in entries:
        if not (one.rule.arguments and one.rule.call in free):
            found.setdefault(one.rule, one)
    return tuple(found.values())


# In the order of enum pv_sandbox_list (filter.h).
LISTS = tuple(
    List(name, who, _once(entries))
    for name, who, entries in (
        ("CONTROL", "Python: main, QMP, snapshots, vhost-user, timers", (*CONTROL, *_DEVICES)),
        ("VCPU", "vCPU", VCPU),
        ("DISK", "disk", DISK),
        ("DISK_POOL", "disk, without io_uring", DISK_POOL),
        ("IOTHREAD", "-object iothread", IOTHREAD),
        ("IOTHREAD_POOL", "-object iothread, without io_uring", IOTHREAD_POOL),
        ("POOL", "pool: a disk's operations, without io_uring", POOL),
        ("NET", "NIC", NET),
        ("PORTS", "ports and consoles", PORTS),
        ("CONSOLE", "serial port", CONSOLE),
        ("VSOCK", "socket device", VSOCK),
        ("VACANT", "empty slot", VACANT),
        ("RNG", "entropy device", RNG),
        ("BALLOON", "balloon", BALLOON),
    )
)


def rules(entries: tuple[Entry, ...]) -> tuple[Rule, ...]:
    """Return what is compiled."""
    return tuple(one.rule for one in entries)


def calls(one: List) -> list[str]:
    """Return the calls of a list that may be made, each once."""
    return list(dict.fromkeys(entry.rule.call for entry in one.entries if not entry.rule.error))


# Calls that a record of what lists are used for (use.h) is without, and who makes them. They are
# made with all signals blocked, or are about the very stack and mask that a signal's handler has.
APART = {
    "clone": "pthread_create",
    "clone3": "the same, to which it fails",
    "set_robust_list": "a thread's beginning",
    "rseq": "a thread's beginning",
    "sigaltstack": "a thread's beginning and end",
    "rt_sigprocmask": "a thread's beginning and end",
    "madvise": "a thread's end, which gives its stack back",
    "exit": "a thread's end",
    "rt_sigreturn": "a handler's end",
    "tgkill": "a kick, and the end after the last line",
    "restart_syscall": "SIGCONT, in a wait with a limit",
}
