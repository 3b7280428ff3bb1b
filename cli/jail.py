"""`pyvirt jail`: run a machine where it sees nothing of the host but what is brought in."""

from __future__ import annotations

import os
import re

from ..errors import ConfigError
from .parser import Parser

DESCRIPTION = """\
Runs `pyvirt run` in a jail: a root of its own with Python, pyvirt, the devices of KVM and what
-source brings in; namespaces of its own for mounts, processes, networks, IPC, the host's name and
users; without capabilities, descriptors or environment of the caller's. Its /run is BASE/NAME/run
on the host, for monitors' sockets. All of it goes with the machine."""
EPILOG = """\
exit status: the machine's; 128+N when signal N has killed it; 2 for wrong usage.
example: pyvirt jail -name vm1 -uid 1000 -gid 1000 -source vmlinux,ro rootfs.img --
-kernel vmlinux -disk rootfs.img -qmp unix:/run/qmp.sock,server,nowait"""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ID_MAX = 65535
_PROGRAMS = ("pyvirt", "stratovirt")
# What takes another program of the host, or a process that goes on when the jail has ended.
_NOT_HERE = ("daemonize", "share", "root", "exec", "via")
_KERNELS = ("kernel", "incoming", "config", "help", "h", "print-config")
_NETWORKS = "/run/netns"  # where ip netns keeps them
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
    *("LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)  # by their numbers


def main(argv: list[str]) -> int:
    """Run `pyvirt jail ARGV`; return the exit status. Raises PyvirtError."""
    at = argv.index("--") if "--" in argv else len(argv)
    options = parser().parse_args(argv[:at])
    from .jailer import cgroup, outside, place
    from .jailer.spec import Spec, check_reach, source

    if not _NAME.fullmatch(options.name):
        raise ConfigError(
            f"jail: -name {options.name}: give 1 to 64 letters, digits, dots, dashes and "
            "underscores, the first a letter or a digit"
        )
    base = os.path.abspath(options.base or place.base())
    if options.clean_resource:
        outside.clean(options.name, base)
        return 0
    _check_program(options.exec_file)
    words = _words(argv[at + 1 :])
    limits = options.cgroup + ([f"cpuset.mems={options.numa}"] if options.numa else [])
    uid, gid = _user("uid", options.uid), _user("gid", options.gid)
    sources = tuple(map(source, options.source))
    for one in sources:
        check_reach(one, uid, gid)
    spec = Spec(
        options.name,
        base,
        uid,
        gid,
        sources,
        _netns(options.netns),
        cgroup.parse(limits),
        _capabilities(options.capability),
        words,
    )
    return outside.run(spec)


def parser() -> Parser:
    """Return the reader of the words before `--`."""
    found = Parser(
        prog="pyvirt jail",
        usage="pyvirt jail -name NAME [OPTION...] -- [run] OPTION-OF-RUN...",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add = found.add_argument
    add("--name", required=True, metavar="NAME", help="the jail; one of a name runs at a time")
    add("--uid", metavar="N", default="", help="run as this user; root has to say which")
    add("--gid", metavar="N", default="", help="run as this group; root has to say which")
    add(
        "--source",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE[,ro][,copy]",
        help="a file, folder or block device for the jail's root, by its last name: to be written, "
        "only read (ro), or a copy; several may follow",
    )
    add("--netns", metavar="NAME", default="", help="a network namespace, else a new, empty one")
    add(
        "--cgroup",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="hold it back by cgroup v2, such as memory.max=512M or cpu.max='50000 100000' or "
        "pids.max=64; several may follow",
    )
    add("--numa", metavar="N", default="", help="memory from this node: -cgroup cpuset.mems=N")
    add(
        "--capability",
        metavar="NAME",
        default="",
        help="keep capabilities, such as CAP_NET_ADMIN,CAP_NET_RAW, which takes root; there is no "
        "user namespace then",
    )
    add("--base", metavar="DIR", default="", help="where jails are kept (root: /srv/pyvirt)")
    add("--clean-resource", action="store_true", help="remove what a killed jail has left")
    add(
        "--exec-file",
        metavar="FILE",
        default="",
        help="taken from ozone's users: pyvirt, or stratovirt",
    )
    return found


def _check_program(path: str) -> None:
    if path and os.path.basename(path) not in _PROGRAMS:
        raise ConfigError(
            f"jail: -exec-file {path}: only {' or '.join(_PROGRAMS)} is run in a jail; leave it out"
        )


def _words(given: list[str]) -> tuple[str, ...]:
    """Return what the jail's pyvirt is told; ConfigError for what cannot be in one."""
    words = given[1:] if given[:1] == ["run"] else given
    if words and not words[0].startswith("-"):
        raise ConfigError(f"jail: {words[0]}: only run is there in a jail; give -- run OPTION...")
    names = {word.lstrip("-").partition("=")[0] for word in words if word.startswith("-")}
    for name in _NOT_HERE:
        if name in names:
            raise ConfigError(f"jail: -{name}: not in a jail; leave it out")
    if any(word.partition(",")[0] == "pty" for word in words):
        raise ConfigError(
            "jail: pty: nobody finds a terminal that is in a jail; give "
            "socket,path=/run/SOCKET,server,nowait"
        )
    if names.isdisjoint(_KERNELS):
        raise ConfigError(
            "jail: give -- -kernel FILE and the machine's other options, with FILE among -source"
        )
    return ("run", *(() if "accel" in names else ("-accel", "kvm")), *words)


def _user(what: str, text: str) -> int:
    """Return a user's or a group's number; ConfigError."""
    own = os.geteuid() if what == "uid" else os.getegid()
    is_root = os.geteuid() == 0
    if not text:
        if is_root:
            raise ConfigError(f"jail: -{what}: root has to say whose rights the machine is to have")
        return own
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= _ID_MAX):
        raise ConfigError(f"jail: -{what} {text}: give a number from 0 to {_ID_MAX}")
    if not is_root and int(text) != own:
        raise ConfigError(f"jail: -{what} {text}: to run as another takes root; leave it out")
    return int(text)


def _netns(text: str) -> str:
    if text and os.geteuid() != 0:
        raise ConfigError(f"jail: -netns {text}: to enter one takes root; leave it out")
    return text if "/" in text or not text else os.path.join(_NETWORKS, text)


def _capabilities(text: str) -> frozenset[int]:
    """Return the numbers of capabilities; ConfigError."""
    found = set()
    for word in text.replace(",", " ").split():
        name = word.upper().removeprefix("CAP_")
        if name not in CAPABILITIES:
            raise ConfigError(
                f"jail: -capability {word}: there is no such one; give names like CAP_NET_ADMIN"
            )
        found.add(CAPABILITIES.index(name))
    if found and os.geteuid() != 0:
        raise ConfigError(f"jail: -capability {text}: to keep some takes root; leave it out")
    return frozenset(found)
