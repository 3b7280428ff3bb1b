"""The options of `pyvirt run`: StratoVirt's names, one table for parsing, help and manuals."""

from __future__ import annotations

from ...devices.chardev import NULL, STDIO, ChardevConfig
from ...errors import ConfigError
from ...vmm.config import VCPUS_MAX
from ...vmm.end import PANICS, REBOOTS, SHUTDOWNS, WATCHDOGS
from . import members
from .members import one_of, pairs
from .option import Option
from .parsed import ACCELERATORS, SANDBOXES, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NAME_MAX = 255
_UUID_GROUPS = [8, 4, 4, 4, 12]  # digits
SERIAL_WORDS = (STDIO, NULL, "none")
# What QEMU's -sandbox may be told to deny, and this one denies always.
_DENIED = ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")


def _smp(options: Options, text: str) -> None:
    given = dict(pairs("-smp", text, "cpus"))
    count = given.pop("cpus", "")
    if not members.is_number(count, 1, VCPUS_MAX):
        raise ConfigError(f"-smp {text}: the vCPU count is a number from 1 to {VCPUS_MAX}")
    options.smp = int(count)
    if given:
        from .smp import topology

        options.topology = topology(text, options.smp, given)


def _memory(options: Options, text: str) -> None:
    from .sizes import memory_size

    given = pairs("-m", text, "size")
    if [key for key, _ in given] != ["size"]:
        raise ConfigError(f"-m {text}: give -m [size=]N[M|G]")
    options.memory = memory_size("-m", given[0][1])


def _machine(options: Options, text: str) -> None:
    from .machine import read

    read(options, text)


def _cpu(options: Options, text: str) -> None:
    from .cpu import parse as parse_cpu

    options.cpu = parse_cpu(text)


def _action(options: Options, text: str) -> None:
    words = {"reboot": REBOOTS, "shutdown": SHUTDOWNS, "panic": PANICS, "watchdog": WATCHDOGS}
    for key, value in pairs("-action", text, ""):
        if key not in words:
            known = ", ".join(words)
            raise ConfigError(f"-action {text}: no such event as {key}; there are {known}")
        setattr(options.actions, key, one_of(f"-action {key}", value, words[key]))


def _watchdog_action(options: Options, text: str) -> None:
    options.actions.watchdog = one_of("-watchdog-action", text, WATCHDOGS)


def _rtc(options: Options, text: str) -> None:
    from .timed import rtc

    options.rtc = rtc(text)


def _no_reboot(options: Options, _: str) -> None:
    options.actions.reboot = "shutdown"


def _no_shutdown(options: Options, _: str) -> None:
    options.actions.shutdown = "pause"


def _accel(options: Options, text: str) -> None:
    options.accel = one_of("-accel", text, ACCELERATORS)


def _sandbox(options: Options, text: str) -> None:
    given = dict(pairs("-sandbox", text, "enable"))
    options.sandbox = one_of("-sandbox", given.pop("enable", ""), SANDBOXES)
    for key, value in given.items():
        if key not in _DENIED:
            known = ", ".join(_DENIED)
            raise ConfigError(f"-sandbox {text}: {key} is not understood; accepted are {known}")
        one_of(f"-sandbox {key}", value, ("deny",))


def _sandbox_path(_: Options, text: str) -> None:
    path, comma, word = text.partition(",")
    if not path:
        raise ConfigError(f"-sandbox-path {text}: names nothing; give PATH[,ro]")
    if comma and word != "ro":
        raise ConfigError(f"-sandbox-path {text}: {word} is not understood here; give ro, or none")


def _disable_seccomp(options: Options, _: str) -> None:
    options.sandbox = "off"


def _name(options: Options, text: str) -> None:
    if len(text) > _NAME_MAX:
        raise ConfigError(f"-name: {len(text)} characters, {_NAME_MAX} is the most; shorten it")
    options.name = text


def _uuid(options: Options, text: str) -> None:
    groups = text.split("-")
    digits = "".join(groups).lower()
    if [len(group) for group in groups] != _UUID_GROUPS or digits.strip("0123456789abcdef"):
        raise ConfigError(
            f"-uuid {text}: not a UUID; give 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12"
        )
    options.uuid = text.lower()


def _file(field: str) -> Callable[[Options, str], None]:
    def store(options: Options, text: str) -> None:
        if not text:
            raise ConfigError(f"-{field}: an empty file name; name a file")
        setattr(options, field, text)

    return store


def _text(field: str) -> Callable[[Options, str], None]:
    def store(options: Options, text: str) -> None:
        setattr(options, field, text)

    return store


def _flag(field: str) -> Callable[[Options, str], None]:
    def store(options: Options, _: str) -> None:
        setattr(options, field, True)

    return store


def _monitor(_options: Options, text: str) -> None:
    if text not in {"none", "null"}:
        raise ConfigError(
            f"-monitor {text}: there is no monitor for people; give -qmp unix:PATH,server,nowait, "
            "and talk to it by pyvirt qmp PATH"
        )


def _serial(options: Options, text: str) -> None:
    """Take what is no more than a word; the rest is left as by `later`."""
    if text in SERIAL_WORDS:
        kind = STDIO if text == STDIO else NULL
        options.serial = ChardevConfig("serial0", kind, option=f"-serial {text}")


def _incoming(options: Options, text: str) -> None:
    from .incoming import read

    options.incoming = read(text)


def _via(_options: Options, text: str) -> None:
    """Refuse what has come as far as here: who starts a machine is found out before."""
    raise ConfigError(f"-via {text}: only on the command line of pyvirt run, and of restore")


def _root(options: Options, text: str) -> None:
    if not text:
        raise ConfigError("-root: names no folder; give -root DIR, such as -root /")
    options.root = text


def later(_options: Options, _text: str) -> None:
    """Leave a value in `given` for when all of them are known."""


TABLE = (
    Option("kernel", "FILE", "bzImage, ELF vmlinux, raw vmlinux.bin, multiboot", _file("kernel")),
    Option("initrd", "FILE", "initial RAM disk", _file("initrd")),
    Option("append", "TEXT", "kernel command line; several words may follow", _text("append")),
    Option(
        "smp",
        "[cpus=]N[,sockets=N][,dies=N][,cores=N][,threads=N][,maxcpus=N]",
        "vCPUs, 1 to 254 (default 1), and how they are grouped (default: cores of one socket)",
        _smp,
    ),
    Option(
        "m", "[size=]N[M|G]", "memory, 128M to 512G, MiB without a unit (default 256M)", _memory
    ),
    Option(
        "mem-path",
        "FOLDER|FILE",
        "memory from a file system, as huge pages from a hugetlbfs",
        _file("mem_path"),
    ),
    Option(
        "mem-prealloc", "", "have the host provide all memory before the start", _flag("prealloc")
    ),
    Option(
        "numa",
        "node[,nodeid=N][,memdev=ID][,cpus=N[-N]] | dist,src=N,dst=N,val=N | "
        "cpu,node-id=N[,socket-id=N][,die-id=N][,core-id=N][,thread-id=N]",
        "nodes of vCPUs and memory, each with the -object of that id; how far one is from another, "
        "10 to 255; may be repeated",
        later,
        repeats=True,
    ),
    Option(
        "serial",
        "stdio | none | pty[,path=LINK] | file,path=FILE[,append=on|off] | "
        "socket,path=PATH,server,nowait | chardev:ID",
        "the guest's ttyS0 (default stdio); each with what -chardev takes",
        _serial,
    ),
    Option(
        "machine",
        "[type=]microvm[,discovery=auto|acpi|cmdline][,mem-share=on|off][,dump-guest-core=on|off]"
        "[,pit=on|off][,rtc=auto|on|off][,memory-backend=ID][,slots=prepared|demand]",
        "how the guest finds its devices; memory as a memfd for other processes, and in core "
        "dumps; whether the timer of old is there, and the real-time clock; whether there are "
        "slots to plug into from the start",
        _machine,
    ),
    Option(
        "rtc",
        "[base=utc|localtime|DATE][,clock=host|rt|vm]",
        "what the real-time clock shows (DATE is 2026-01-31, or 2026-01-31T12:00:00), and whether "
        "it stands while the machine is paused (vm); there is one if that is not the default",
        _rtc,
    ),
    Option(
        "cpu",
        "host|max[,vendor=GenuineIntel|AuthenticAMD|HygonGenuine]"
        "[,-FEATURE|+FEATURE|FEATURE=on|off]",
        "this host's processor, by another vendor's name, or with less features; + names a must",
        _cpu,
    ),
    Option(
        "disk",
        "FILE[,id=ID][,readonly=on|off][,overlay=memory|FOLDER][,serial=TEXT][,...]",
        "a disk of the guest from a raw image or block device; also takes what -drive and -device "
        "take; may be repeated, the first is /dev/vda",
        later,
        repeats=True,
    ),
    Option(
        "drive",
        "id=ID,file=FILE[,readonly=on|off][,direct=on|off][,aio=io_uring|threads]"
        "[,throttling.iops-total=N][,discard=ignore|unmap][,detect-zeroes=off|on|unmap]"
        "[,format=raw][,serial=TEXT][,overlay=memory|FOLDER]",
        "an image for -device; a disk by itself when no -device names it",
        later,
        repeats=True,
    ),
    Option(
        "net",
        "TAP[,id=ID][,mac=ADDRESS][,mtu=N][,queue-size=N][,iothread=ID][,...] | "
        "user[,id=ID][,mac=ADDRESS][,mtu=N][,queue-size=N][,iothread=ID][,...]",
        "a NIC of the guest on a tap of this host, or for users without privileges through passt; "
        "also takes what -netdev takes; may be repeated, the first is eth0",
        later,
        repeats=True,
    ),
    Option(
        "netdev",
        "tap,id=ID,ifname=NAME|fd=N|fds=N:N[,queues=N][,vhost=on|off][,vhostfd=N] | user,id=ID | "
        "stream,id=ID,path=SOCKET; each of these [,throttling.rx-bytes=N][,throttling.rx-packets=N]"
        "[,throttling.tx-bytes=N][,throttling.tx-packets=N] | vhost-user,id=ID,chardev=ID"
        "[,queues=N]",
        "the host's side of a NIC for -device; a NIC by itself when no -device names it",
        later,
        repeats=True,
    ),
    Option(
        "device",
        "virtio-blk-device,drive=ID[,id=ID][,serial=TEXT][,num-queues=N][,queue-size=N]"
        "[,iothread=ID][,logical_block_size=N][,physical_block_size=N] | "
        "virtio-net-device,netdev=ID[,id=ID][,mac=ADDRESS][,mtu=N][,mq=on|off][,queue-size=N]"
        "[,iothread=ID] | "
        "virtio-serial-device[,id=ID][,max_ports=N] | "
        "virtserialport,chardev=ID[,name=NAME][,nr=N][,id=ID] | "
        "virtconsole,chardev=ID[,name=NAME][,nr=N][,id=ID] | "
        "virtio-rng-device,rng=ID[,id=ID][,max-bytes=N,period=MS] | "
        "vsock-device,guest-cid=N,uds=PATH[,id=ID] | "
        "vhost-vsock-device,guest-cid=N[,vhostfd=N][,id=ID] | "
        "vhost-user-fs-device,chardev=ID,tag=TAG[,num-request-queues=N][,queue-size=N][,id=ID] | "
        "vhost-user-blk-device,chardev=ID[,num-queues=N][,queue-size=N][,config-wce=on|off]"
        "[,id=ID] | "
        "virtio-balloon-device[,id=ID][,deflate-on-oom=on|off][,free-page-reporting=on|off]"
        "[,auto-balloon=on|off][,membuf-percent=N][,monitor-interval=SECONDS] | "
        "python,file=FILE[,class=NAME][,id=ID][,KEY=VALUE] | "
        "acpi-watchdog[,id=ID] | ib700[,id=ID] | pc-testdev | isa-debug-exit",
        "a disk from the drive, a NIC from the netdev, a port or console to the chardev of that"
        " id (all are on the one virtio-serial-device), the guest's sockets, behind Unix "
        "sockets or in the host's kernel, a file system or a disk that another process serves, "
        "which listens on the chardev's path, or a device that is a class in a file of Python, "
        "which gets the keys; a watchdog; or what kvm-unit-tests take for granted",
        later,
        repeats=True,
    ),
    Option(
        "share",
        "DIR[,tag=TAG][,readonly=on|off]",
        "share a folder of this host with the guest, through a virtiofsd of its own; the guest "
        "mounts it by its tag, share0 for the first (the guest that runs when none is named has it "
        "at /mnt/TAG); may be repeated",
        later,
        repeats=True,
    ),
    Option(
        "root",
        "DIR",
        "boot on a folder of this host, such as /, with all its programs: nobody can write it, and "
        "what the guest writes stays in its memory; -append is added to the kernel's command line",
        _root,
    ),
    Option(
        "exec",
        "COMMAND",
        "with -root: a line for the guest's shell in place of one on the console; its status is "
        "the exit status",
        _text("command"),
    ),
    Option(
        "object",
        "iothread,id=ID | rng-random,id=ID[,filename=FILE] | "
        "memory-backend-memfd,id=ID,size=SIZE[,hugetlb=on|off][,hugetlbsize=2M|1G]"
        "[,share=on|off][,prealloc=on|off]"
        "[,host-nodes=N[-N]][,policy=bind|interleave|preferred] | "
        "memory-backend-file,id=ID,size=SIZE,mem-path=FOLDER|FILE[,share=on|off]"
        "[,prealloc=on|off][,host-nodes=N[-N]][,policy=bind|interleave|preferred] | "
        "memory-backend-ram,id=ID,size=SIZE[,share=on|off][,prealloc=on|off]"
        "[,host-nodes=N[-N]][,policy=bind|interleave|preferred]",
        "a thread for all queues of the disks and NICs with iothread=ID, in place of one for each; "
        "or a source of random bytes, /dev/urandom unless told otherwise; or memory, for -machine "
        "memory-backend=ID or a -numa node",
        later,
        repeats=True,
    ),
    Option("iothread", "id=ID", "the same, as it was called first", later, repeats=True),
    Option("balloon", "deflate-on-oom=on|off", "a balloon, as it was called first", later),
    Option(
        "rng",
        "random_file=FILE[,bytes_per_sec=N]",
        "a source of entropy, as it was called first",
        later,
    ),
    Option(
        "qmp",
        "unix:PATH,server,nowait | tcp:HOST:PORT,server,nowait | fd:N; each of these "
        "[,throttle=on|off][,events=first|last]",
        "a QMP monitor: on a socket (tcp without HOST: loopback), or on an inherited one; "
        "may be repeated",
        later,
        repeats=True,
    ),
    Option("api-channel", "unix:PATH", "the same, as it was called first", later, repeats=True),
    Option(
        "chardev",
        "socket,id=ID,path=PATH|host=HOST,port=PORT|fd=N[,server,nowait] | "
        "stdio,id=ID[,mux=off][,signal=on|off] | pty,id=ID[,path=LINK] | "
        "file,id=ID,path=FILE[,append=on|off][,input-path=FILE] | null,id=ID | "
        "ringbuf,id=ID[,size=N[K|M]]",
        "the host's end of a port, or of -serial chardev:ID; -mon takes a socket; a vhost-user "
        "device that on which its back end listens",
        later,
        repeats=True,
    ),
    Option(
        "mon",
        "chardev=ID,mode=control[,throttle=on|off][,events=first|last]",
        "a QMP monitor on the -chardev of that id",
        later,
        repeats=True,
    ),
    Option(
        "monitor",
        "none",
        "taken from who passes it by habit: there is no monitor for people",
        _monitor,
    ),
    Option(
        "config",
        "FILE.toml|FILE.json",
        "take options from a file, by their names; those of the command line come before them. "
        "JSON may be that of StratoVirt 20.09",
        later,
    ),
    Option(
        "print-config",
        "[=toml|json]",
        "show these options as such a file, and run nothing",
        _text("print_config"),
    ),
    Option("accel", "auto|kvm|lab", "this host's KVM, the nested lab, or whichever works", _accel),
    Option(
        "via",
        "SOCKET",
        "have the machine started by the pyvirt serve there, which is quicker; PYVIRT_SERVE=SOCKET "
        "in the environment is the same where that can be",
        _via,
    ),
    Option(
        "sandbox",
        "on|off|log",
        "let each thread make the system calls of its kind alone (on: default), or tell of others "
        "(log)",
        _sandbox,
    ),
    Option(
        "sandbox-path",
        "PATH[,ro]",
        "let the running machine open no files but those in this folder (Landlock), to write them "
        "or only to read (ro), and what other options name; may be repeated",
        _sandbox_path,
        repeats=True,
    ),
    Option("disable-seccomp", "", "the same as -sandbox off", _disable_seccomp, repeats=True),
    Option("name", "TEXT", "name of the machine, at most 255 characters", _name),
    Option("uuid", "UUID", "UUID of the machine, for those who ask its monitor", _uuid),
    Option(
        "action",
        "reboot=shutdown|reset[,shutdown=poweroff|pause][,panic=none|pause|shutdown|exit-failure]"
        "[,watchdog=reset|shutdown|poweroff|pause|debug|none|inject-nmi]",
        "what a guest's reset, power-off and panic, and a watchdog that it does not feed lead to "
        "(default: the first of each)",
        _action,
        repeats=True,
    ),
    Option(
        "watchdog-action",
        "reset|shutdown|poweroff|pause|debug|none|inject-nmi",
        "the same as -action watchdog=",
        _watchdog_action,
    ),
    Option("no-reboot", "", "the same as -action reboot=shutdown", _no_reboot),
    Option("no-shutdown", "", "the same as -action shutdown=pause", _no_shutdown),
    Option(
        "incoming",
        "file:DIR[,mapped=on|off]",
        "restore the guest from a snapshot, with the same devices given again; memory and vCPUs "
        "are those of the snapshot; mapped memory is read as the guest touches it (default: where "
        "it can be)",
        _incoming,
    ),
    Option("S", "", "start paused (also -freeze)", _flag("freeze")),
    Option("daemonize", "", "go to the background when the guest has started", _flag("daemonize")),
    Option("pidfile", "FILE", "write the monitor's process id there", _file("pidfile")),
    Option("D", "[FILE]", "append messages to FILE; without it to stderr", _text("log")),
    Option(
        "stats", "", "at the end, show counters of exits, disks and NICs on stderr", _flag("stats")
    ),
    Option(
        "timeline",
        "[=FILE.svg]",
        "at the end, show where the time went: a table on stderr, or a picture",
        _text("timeline"),
    ),
)
BY_NAME = {option.name: option for option in TABLE}
