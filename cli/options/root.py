"""The option that makes a folder of the host the guest's root: `-root`, and what goes with it.

Imported only when it is given.
"""

from __future__ import annotations

import os
import sys

from ...devices.vhost_user.fs import FsConfig
from ...devices.vhost_user.virtiofsd import Virtiofsd
from ...errors import ConfigError
from ...harness.guest import hostroot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .parsed import Options

_OPTION = "-root"


def read(folder: str) -> FsConfig:
    """Return the file system that nobody can write; ConfigError."""
    hostroot.check_folder(f"{_OPTION} {folder}", folder)
    back_end = Virtiofsd(os.path.abspath(folder), readonly=True, option=_OPTION)
    return FsConfig(hostroot.TAG, hostroot.TAG.encode(), back_end)


def is_complete(options: Options) -> bool:
    """Say whether the initramfs and the command line for the root are given."""
    return bool(options.initrd) and hostroot.OVERLAY in (options.append or "")


def words(options: Options) -> tuple[list[str], str]:
    """Return more words for `pyvirt run`, and the kernel's command line.

    Raises ConfigError for what contradicts the option, and what `find` and `hostboot.build` do.
    """
    option = f"{_OPTION} {options.root}"
    if options.initrd:
        raise ConfigError(
            f"{option}: brings an initramfs of its own; leave -initrd {options.initrd} out"
        )
    for word in (options.append or "").split():
        if word.startswith("root="):
            raise ConfigError(f"{option}: is the root; leave {word} out of -append")
    if options.terminal not in {None, options.serial}:
        raise ConfigError(
            f"{options.terminal.option}: the guest of -root is on its serial port; "
            f"give -serial chardev:{options.terminal.id}"
        )
    from ...harness.guest import default, hostboot
    from ...harness.guest.kernel import find

    told = hostroot.console_words(hostroot.inside(options.root, os.getcwd()), options.command)
    kernel = find(options.kernel or default.KERNEL)
    hostboot.check_kernel(option, kernel)
    root, more = hostroot.words(options.root, kernel.modules)
    found = ["-initrd", str(hostboot.build(kernel)), *more]
    if not options.kernel:
        found += ["-kernel", str(kernel.image)]
    hidden = {hostroot.TAG, hostroot.MODULES_TAG}
    shares = [tag for tag in options.shares if tag not in hidden]
    given = f"{default.CMDLINE}{_terminal()} {options.append or ''}".rstrip()
    return found, default.cmdline(f"{given} {root} {told}", shares)


def _terminal() -> str:
    """Return what tells the guest's programs of the terminal that its console is on."""
    name = os.environ.get("TERM", "")
    return f" TERM={name}" if sys.stdin.isatty() and name.replace("-", "").isalnum() else ""
