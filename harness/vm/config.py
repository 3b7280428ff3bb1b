"""What a VM of the harness is to be, and the `pyvirt run` command line that makes it."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..guest import default, hostroot
from . import link as links

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# The console shows warnings while the kernel boots, since each byte costs, and everything from the
# start of init on. A panic leaves time to look at the guest. Symbols hold without KASLR.
CMDLINE = "console=ttyS0 loglevel=5 sysctl.kernel.printk=8 panic=20 nokaslr"
SCRATCH = "scratch:"
_UNITS = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"([0-9]{1,9})([KMG]?)")


@dataclass(frozen=True)
class Limits:
    """Seconds: from start to the agent's hello, for a verb, and without a sign of life."""

    boot: float = 60.0
    call: float = 60.0
    quiet: float = 20.0

    def scaled(self, factor: float) -> Limits:
        """Return all of them times `factor`."""
        return Limits(self.boot * factor, self.call * factor, self.quiet * factor)


@dataclass(frozen=True)
class VmConfig:
    """A VM.

    `memory` is as for `pyvirt run -m`; `cmdline` is added to CMDLINE; a disk is "scratch:SIZE", an
    empty one that lasts as long as the VM, or what `-disk` takes; a net is "link:NAME", to which
    all VMs of the test that name it are connected, or what `-net` takes; a share is what `-share`
    takes, a folder of the host that the guest has at /mnt/TAG (share0 and on, without one);
    `root` is a folder of the host that is the guest's root; what it writes there stays in its
    memory. `modules` are loaded before the agent answers; `files` maps paths in the guest to the
    host's files or to bytes. `initrd` is one of the user's that starts the agent, in place of all
    that. `prepare` is called with the VM when it has booted, before anything else is done with it.
    `fork` says whether it goes on from where another like it stood, so prepared; None: who makes
    the VMs may choose.
    """

    vcpus: int = 1
    memory: str = "256M"
    cmdline: str = ""
    disks: tuple[str, ...] = ()
    nets: tuple[str, ...] = ()
    share: tuple[str, ...] = ()
    root: str = ""
    modules: tuple[str, ...] = ()
    files: Mapping[str, Path | bytes] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    initrd: Path | None = None
    options: tuple[str, ...] = ()  # more words for `pyvirt run`
    prepare: Callable[[Any], object] | None = None
    fork: bool | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; ConfigError."""
        for name in ("disks", "nets", "share", "modules", "options"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(word, str) for word in value):
                raise ConfigError(f"vm: {name} {value!r}: give a list of texts")
            object.__setattr__(self, name, tuple(value))
        if self.fork not in (None, True, False):
            raise ConfigError(f"vm: fork={self.fork!r}: give True or False")
        if self.prepare is not None and not callable(self.prepare):
            raise ConfigError(f"vm: prepare={self.prepare!r}: give a function that takes the VM")
        if self.root:
            hostroot.check_folder(f"vm: root {self.root}", self.root)
            object.__setattr__(self, "root", os.path.abspath(self.root))
            if self.files:
                raise ConfigError(f"vm: root {self.root}: not with files; put() them there")


def parse_size(text: str) -> int:
    """Return the bytes of 64, 64M, 512K or 1G (MiB without a unit); ConfigError."""
    match = _SIZE.fullmatch(str(text).upper())
    if match is None or int(match[1]) == 0:
        raise ConfigError(f"size {text}: give one such as 64M")
    return int(match[1]) * _UNITS[match[2]]


def scratch(folder: Path, prefix: str, size: str) -> Path:
    """Make a new empty image in `folder` that takes no room before it is written; ConfigError."""
    length = parse_size(size)
    fd, path = tempfile.mkstemp(prefix=f"{prefix}-", suffix=".img", dir=folder)
    try:
        os.truncate(fd, length)
    except OSError as error:
        raise ConfigError(f"size {size}: {error.strerror} in {folder}") from None
    finally:
        os.close(fd)
    return Path(path)


def _disk(text: str, number: int, folder: Path) -> str:
    if not text.startswith(SCRATCH):
        return text
    size, comma, members = text.removeprefix(SCRATCH).partition(",")
    path = scratch(folder, f"disk{number}", size)
    return str(path).replace(",", ",,") + comma + members


def disks(config: VmConfig, folder: Path) -> tuple[str, ...]:
    """Return what `-disk` takes for each of the disks; scratch disks are made in `folder`."""
    return tuple(_disk(disk, number, folder) for number, disk in enumerate(config.disks))


def _share(text: str, number: int) -> tuple[str, str]:
    """Return what `-share` takes, with a tag in it, and the tag."""
    members = text.replace(",,", "").split(",")[1:]
    for member in members:
        if member.startswith("tag="):
            return text, member.removeprefix("tag=")
    return f"{text},tag=share{number}", f"share{number}"


def words(
    config: VmConfig,
    kernel: Path,
    initrd: Path,
    disks: Sequence[str] = (),
    cmdline: str = "",
    link: Callable[[str], str] = str,
    modules: Path | None = None,
) -> list[str]:
    """Return the words for `pyvirt run`, channels apart.

    `disks` are for `-disk`, `link` returns the socket of a link; `modules` is the kernel's
    lib/modules/RELEASE, if any.
    """
    shares = [_share(text, number) for number, text in enumerate(config.share)]
    root = ""
    root_words: list[str] = []
    if config.root:
        root, root_words = hostroot.words(config.root, modules)
        root_words += ["-root", config.root]
    append = " ".join(part for part in (CMDLINE, config.cmdline, cmdline, root) if part)
    append = default.cmdline(append, [tag for _, tag in shares])
    found = ["-kernel", str(kernel), "-initrd", str(initrd), f"-append={append}"]
    folders = [word for share, _ in shares for word in ("-share", share)] + root_words
    return [*_machine(config), *found, *_devices(config, disks, link), *folders, *config.options]


def fork_words(config: VmConfig, disks: Sequence[str], link: Callable[[str], str]) -> list[str]:
    """Return the words for a guest that goes on from where one of the same `config` stood."""
    return [*_machine(config), *_devices(config, disks, link), *config.options]


def _machine(config: VmConfig) -> list[str]:
    return ["-smp", str(config.vcpus), "-m", str(config.memory)]


def _devices(config: VmConfig, disks: Sequence[str], link: Callable[[str], str]) -> list[str]:
    found: list[str] = []
    for disk in disks:
        found += ["-disk", disk]
    for number, net in enumerate(config.nets):
        name, comma, members = net.partition(",")
        if name.startswith(links.PREFIX):
            path = link(name.removeprefix(links.PREFIX))
            found += ["-netdev", f"stream,id=link{number},path={path}{comma}{members}"]
        else:
            found += ["-net", net]
    return found


# Console on 0 and 1, messages on 2, then the agent's port and two monitors: one for commands, one
# that only tells of events.
STREAMS: Mapping[str, Sequence[int]] = MappingProxyType(
    {"console": (0, 1), "messages": (2,), "agent": (3,), "qmp": (4,), "events": (5,)}
)
PORT = "pyvirt.agent"
CHANNELS = (
    *(
        "-accel",
        "kvm",
        "-serial",
        "stdio",
        "-qmp",
        "fd:4,throttle=off",
        "-qmp",
        "fd:5,throttle=off",
    ),
    *("-chardev", "socket,id=agent,fd=3", "-device", "virtio-serial-device"),
    *("-device", f"virtserialport,chardev=agent,name={PORT}"),
)
