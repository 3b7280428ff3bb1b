"""`pyvirt serve`: monitors without the wait for imports, each a fork of this process.

What is said to it: server/server.py. `pyvirt run -via` is its client, and the test harness, which
has one of its own.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from ..errors import ConfigError
from ..vmm import sandbox
from . import registry, usage
from .server.child import reserve
from .server.server import Server
from .server.spares import Ahead

if TYPE_CHECKING:
    from types import FrameType

    from .server.child import Prepared
    from .server.owner import Owner

USAGE = """\
usage: pyvirt serve [-stdin] SOCKET

Starts machines quickly, each as a fork of this process, which has loaded what they need: for
pyvirt run -via SOCKET, and for every pyvirt run whose environment has PYVIRT_SERVE=SOCKET. It
serves this user alone, until it is ended by Ctrl-C or SIGTERM; its machines go on then. With
-stdin it ends with its stdin, too.

  pyvirt serve /tmp/pyvirt.sock
"""
READY = "ready: "  # and how to use it
_STDIN = ("-stdin", "--stdin")
# What `pyvirt run` imports when its options ask for it.
_PRELOADED = (
    *("cli.run", "cli.control", "cli.registry", "cli.options.gather", "cli.options.chardevs"),
    *("cli.options.disks", "cli.options.incoming", "cli.options.monitors", "cli.options.nics"),
    *("cli.options.objects", "cli.options.ports", "cli.options.sizes", "cli.options.sockets"),
    *("devices.chardev", "devices.nic", "devices.unix_socket", "devices.virtio.block"),
    *("devices.virtio.console", "devices.virtio.net", "qmp.host", "qmp.machine", "qmp.server"),
    *("vmm.boot.acpi", "vmm.boot.bzimage", "vmm.boot.elf", "vmm.boot.mptable"),
    *("vmm.machine", "devices.serial"),
)


class Ended(BaseException):
    """A signal asks for the end."""


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    raise Ended


def enter(words: list[str], prepared: Prepared | None, owner: Owner | None) -> NoReturn:
    """Be `pyvirt run WORDS`."""
    sys.argv[1:] = ["run", *words]
    from . import daemon, run
    from .main import end

    if owner is not None:
        daemon.detach = owner.leave
    end(lambda: run.main(words, prepared), None if owner is None else owner.tell)


def tidy() -> None:
    """Do what a monitor that was killed could not do."""
    for _ in registry.running():
        pass


def start(path: str, name: str) -> Server:
    """Load what monitors need, and return the server; ConfigError."""
    # In a lab a monitor runs this very command again, from where it is.
    sys.argv[0] = os.path.abspath(sys.argv[0])
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
    """Run `pyvirt serve ARGV`; return the exit status. Raises PyvirtError."""
    if usage.shown(USAGE, argv):
        return 0
    words = [word for word in argv if word not in _STDIN]
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"serve: {word}: no such option; pyvirt serve -help tells more")
    if len(words) != 1:
        given = " ".join(["serve", *argv])
        raise ConfigError(f"{given}: give the path of one new socket; pyvirt serve -help")
    server = start(words[0], "serve")
    try:
        _say_ready(words[0])
        if len(words) < len(argv):
            server.serve(lambda: not os.read(0, 4096), 0)
        else:
            server.ahead = Ahead(1)
            server.serve(lambda: False)
    except (Ended, BrokenPipeError):
        pass
    finally:
        server.close()
    return 0


def _say_ready(path: str) -> None:
    """Say it on stdout, and to a service manager that wants to know (sd_notify(3))."""
    sys.stdout.write(f"{READY}pyvirt run -via {path}\n")
    sys.stdout.flush()
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    place = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        try:
            manager.sendto(b"READY=1", place)
        except OSError as error:
            raise ConfigError(
                f"NOTIFY_SOCKET={address}: {error.strerror or error}; leave it to systemd"
            ) from None
