"""`pyvirt fork-server`: monitors without the wait for imports, each a fork of this process.

What is said to it: server/server.py. It ends with its stdin, or by SIGTERM, SIGINT or SIGHUP, and
so do the monitors.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from ..errors import ConfigError
from ..vmm import sandbox
from . import registry, usage
from .server.child import reserve
from .server.server import Server

if TYPE_CHECKING:
    from types import FrameType

    from .server.child import Prepared

USAGE = """\
usage: pyvirt fork-server SOCKET

Serves the test harness: starts monitors quickly, for as long as its stdin is open.
"""
READY = "ready"
# What `pyvirt run` imports when its options ask for it.
_PRELOADED = (
    *("cli.run", "cli.control", "cli.registry", "cli.options.gather", "cli.options.chardevs"),
    *("cli.options.disks", "cli.options.incoming", "cli.options.monitors", "cli.options.nics"),
    *("cli.options.objects", "cli.options.ports", "cli.options.sizes", "cli.options.sockets"),
    *("devices.chardev", "devices.nic", "devices.unix_socket", "devices.virtio.block"),
    *("devices.virtio.console", "devices.virtio.net", "qmp.host", "qmp.machine", "qmp.server"),
    *("vmm.boot.acpi", "vmm.boot.bzimage", "vmm.boot.elf", "vmm.boot.mptable"),
)


class Ended(BaseException):
    """A signal asks for the end."""


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    raise Ended


def enter(words: list[str], prepared: Prepared | None) -> NoReturn:
    """Be `pyvirt run WORDS`."""
    sys.argv = ["pyvirt", "run", *words]
    from . import run
    from .main import end

    end(lambda: run.main(words, prepared))


def tidy() -> None:
    """Do what a monitor that was killed could not do."""
    for _ in registry.running():
        pass


def start(path: str, name: str) -> Server:
    """Load what monitors need, and return the server; ConfigError."""
    reserve()
    for module in _PRELOADED:
        __import__(f"pyvirt.{module}")
    sandbox.load()
    "".encode("unicode_escape")  # the registry's; a codec is a module, too
    server = Server(path, enter, tidy, name=name)
    # From here on, so that the garbage collector of a child does not touch, and copy, our pages.
    gc.collect()
    gc.freeze()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _on_signal)
    return server


def main(argv: list[str]) -> int:
    """Run `pyvirt fork-server ARGV`; return the exit status."""
    if usage.shown(USAGE, argv):
        return 0
    for word in argv:
        if word.startswith("-"):
            raise ConfigError(f"fork-server: {word}: no such option; pyvirt fork-server -help")
    if len(argv) != 1:
        words = " ".join(["fork-server", *argv])
        raise ConfigError(f"{words}: give the path of one socket; pyvirt fork-server -help")
    server = start(argv[0], "fork-server")
    try:
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        server.serve(lambda: not os.read(0, 4096), 0)
    except (Ended, BrokenPipeError):
        pass
    finally:
        server.close()
    return 0
