"""`pyvirt run` where this host's KVM cannot run the guest: the same command line, in the lab.

Files named on it are the same files there. A Unix socket is not: it is made inside the lab and
its path on this host is forwarded to it. Background and pid file are this host's affair.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import ExitStack, nullcontext

from ..devices.chardev import FILE, PTY, RINGBUF, SOCKET, STDIO
from ..devices.disk import Disk
from ..devices.passt import PasstConfig
from ..errors import ConfigError
from ..harness import lab
from ..vmm.boot import loader
from ..vmm.log import Log
from ..vmm.memory import GuestMemory
from .daemon import PidFile, Starter, daemonize
from .options.gather import FORWARDED
from .registry import register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..devices.chardev import ChardevConfig
    from ..vmm.config import MachineConfig
    from .options.parsed import Options

# The lab needs room for its own kernel beside the guest's memory.
_LAB_MIB = 1024
_LAB_MIB_MIN = 2048
# A folder of the lab's own: a socket on the shared file system is of no use to this host.
_SOCKETS = "/dev/shm"  # noqa: S108  (nobody else is in the lab)
_VHOST_VSOCK = ("vhost-vsock-device", "vsock")
_HANDLED_HERE = ("accel", "daemonize", "pidfile", "append")


def _words(options: Options, forward: list[tuple[str, str]]) -> list[str]:
    """Return the command line for the lab; sockets on it are added to `forward`."""
    words = ["-accel", "kvm"]
    for name, value in options.given:
        if name in _HANDLED_HERE or name in FORWARDED:
            continue
        if name == "serial" and not value.startswith("chardev:"):
            words.append(f"-serial={_backend(options.serial, forward)}")
        elif name == "device" and (path := _socket_path(options, value)):
            inside = f"{_SOCKETS}/pyvirt-{len(forward)}.sock"
            forward.append((path, inside))
            words.append(f"-device={value.replace(_member(path), _member(inside))}")
        else:
            words.append(f"-{name}={value}" if value else f"-{name}")
    for chardev in options.chardevs:
        kind, _, rest = _backend(chardev, forward).partition(",")
        first = "" if chardev.makes_console else f"{kind},"
        words.append(f"-chardev={first}id={_escaped(chardev.id)}{rest and ','}{rest}")
    for monitor in options.monitors:
        if monitor.kind != "unix":
            raise ConfigError(f"{monitor.option}: no way into the lab; give -qmp unix:PATH instead")
        inside = f"{_SOCKETS}/pyvirt-{len(forward)}.sock"
        forward.append((monitor.path, inside))
        words.append(
            f"-qmp=unix:{inside},server,nowait"
            f",throttle={'on' if monitor.throttled else 'off'}"
            f",events={'last' if monitor.events_last else 'first'}"
        )
    if options.append is not None:
        words.append(f"-append={options.append}")
    return words


def _escaped(text: str) -> str:
    return text.replace(",", ",,")


def _backend(chardev: ChardevConfig, forward: list[tuple[str, str]]) -> str:
    """Return its kind and members for the lab; a socket is added to `forward`."""
    members = [chardev.kind]
    if chardev.kind == PTY:
        raise ConfigError(
            f"{chardev.option}: a terminal of the nested lab is out of reach from here; "
            "give socket,path=PATH,server,nowait"
        )
    if chardev.kind == SOCKET:
        if chardev.path and not chardev.listens:
            raise ConfigError(
                f"{chardev.option}: who listens there is not in the nested lab, in which the guest "
                "would run; start both there, in pyvirt lab shell, or give server,nowait"
            )
        if not chardev.path or not chardev.listens:
            raise ConfigError(
                f"{chardev.option}: no way into the lab but for path=PATH,server,nowait; give that"
            )
        inside = f"{_SOCKETS}/pyvirt-{len(forward)}.sock"
        forward.append((chardev.path, inside))
        members.append(f"path={inside}")
        members += [] if chardev.makes_console else ["server", "nowait"]
    elif chardev.kind == FILE:
        members.append(f"path={_escaped(chardev.path)}")
        members += ["append=on"] * chardev.append
        if chardev.input_path:
            members.append(f"input-path={_escaped(chardev.input_path)}")
    elif chardev.kind == RINGBUF:
        members.append(f"size={chardev.size}")
    elif chardev.kind == STDIO:
        members += ["signal=on"] * chardev.signals
    return ",".join(members)


def _socket_path(options: Options, device: str) -> str:
    """Return the host's socket that a socket device listens on; "" if it is another device."""
    if device.partition(",")[0] != "vsock-device":
        return ""
    from ..devices.virtio.vsock import VsockConfig

    return next(one.path for one in options.devices if isinstance(one, VsockConfig))


def _member(path: str) -> str:
    return f",uds={_escaped(path)}"


def _check(config: MachineConfig) -> None:
    """Raise here, and not seconds later in the lab, what is wrong with the guest's files."""
    memory = GuestMemory(config.memory)
    try:
        loader.place(config, memory)
    finally:
        memory.close()


def _check_sockets(options: Options) -> None:
    """Refuse a socket device that the lab's kernel would serve, where this host's are not."""
    for name, value in options.given:
        if name == "device" and value.partition(",")[0] in _VHOST_VSOCK:
            raise ConfigError(
                f"-device {value}: this host's kernel does not serve the nested lab, in which the "
                "guest would run; give vsock-device,guest-cid=N,uds=PATH"
            )


def _check_nics(options: Options, config: MachineConfig) -> None:
    """Refuse all but passt, which makes do with the lab's own way out."""
    for nic in config.nics:
        if isinstance(nic.netdev, PasstConfig):
            continue
        sought = getattr(nic.netdev, "ifname", "") or getattr(nic.netdev, "path", "") or nic.id
        given = [(name, value) for name, value in options.given if name in {"net", "netdev"}]
        written = next((pair for pair in given if sought in pair[1]), given[0])
        raise ConfigError(
            f"-{written[0]} {written[1]}: this host's networks are not in the nested lab, in which "
            "the guest would run; run pyvirt net and pyvirt run there, as in pyvirt lab shell, "
            "or give -net user"
        )


def _open_disks(config: MachineConfig) -> list[Disk]:
    """Check the images, and lock them on this host too: the lab's own locks end with it."""
    disks: list[Disk] = []
    try:
        for wanted in config.disks:
            disk = Disk(
                wanted.path,
                readonly=wanted.readonly or bool(wanted.overlay),
                direct=False,
                raw=wanted.raw,
                option=wanted.option,
            )
            disks.append(disk)
            if stat.S_ISBLK(os.fstat(disk.fd).st_mode):
                raise ConfigError(
                    f"{wanted.option}: this host's block devices are not in the lab; name a file"
                )
    except BaseException:
        _close(disks)
        raise
    return disks


def _close(disks: list[Disk]) -> None:
    for disk in disks:
        disk.close()


def run(options: Options, config: MachineConfig, reason: str) -> int:
    """Run the guest in the lab; return pyvirt's exit status there."""
    _check_nics(options, config)
    _check_sockets(options)
    if options.incoming is None:
        _check(config)
    if options.accel == "auto":
        sys.stderr.write(f"pyvirt: running in the nested lab, because: {reason}\n")
        sys.stderr.flush()
    forward: list[tuple[str, str]] = []
    words = _words(options, forward)
    environment = {k: v for k, v in os.environ.items() if k != "PYVIRT_EXEC_NS"}
    places = [os.path.abspath(monitor.path) for monitor in options.monitors]
    disks = _open_disks(config)
    try:
        with (
            daemonize() if options.daemonize else Starter() as starter,
            PidFile(options.pidfile),
            ExitStack() as resources,
        ):
            resources.enter_context(register(options.name, places, Log()) or nullcontext())
            return lab.run(
                [os.path.abspath(sys.argv[0]), "run", *words],
                cwd=os.getcwd(),
                env=environment,
                forward=forward,
                memory_mib=max(options.memory // (1 << 20) + _LAB_MIB, _LAB_MIB_MIN),
                ready=starter.started,
            )
    finally:
        _close(disks)
