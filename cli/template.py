"""`pyvirt template`: hold a machine in memory, and start others from where it stands."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from stat import S_ISSOCK
from typing import TYPE_CHECKING

from ..errors import BackendError, ConfigError, PyvirtError
from ..qmp.client import Client, printable
from ..vmm.snapshot import template as templates
from . import usage
from .serve import Ended, start
from .server.places import SPARES_MAX, Place

if TYPE_CHECKING:
    from .server.server import Server

USAGE = """\
usage: pyvirt template [-cont] [-spares N] SOCKET|DIR PATH

Holds a machine in memory, from where it stands, and starts forks of it for pyvirt fork, which finds
it by the Unix socket PATH. It serves until it is ended by Ctrl-C or SIGTERM, and its forks end with
it. The machine is that of the monitor at SOCKET, which is paused, and stays so unless -cont lets it
go on; or that of the snapshot in DIR, which is read, and may go. N forks, 1 if it is not given, are
prepared ahead and wait to be asked for, 16 at most.

  pyvirt template /tmp/guest.sock /tmp/template
"""
NAME = ""  # of the only template that there is
_LOOK_S = 0.05


def main(argv: list[str]) -> int:
    """Run `pyvirt template ARGV`; return the exit status. Raises PyvirtError."""
    if usage.shown(USAGE, argv):
        return 0
    goes_on = [word for word in argv if word in {"-cont", "--cont"}]
    words, spares = _take_spares([word for word in argv if word not in goes_on])
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"template: {word}: no such option; pyvirt template -help tells more")
    if len(words) != 2:
        raise ConfigError(
            "template: give a monitor's socket or a snapshot's folder, and the path of a new "
            "socket; pyvirt template -help tells more"
        )
    source, path = words
    server = start(path, "template")
    try:
        _fill(server, source, path, goes_on=bool(goes_on), spares=spares)
        server.serve(lambda: False)
    except Ended:
        pass
    finally:
        server.close()
    return 0


def _take_spares(argv: list[str]) -> tuple[list[str], int]:
    """Return the other words, and the number of forks that are to wait; ConfigError."""
    words: list[str] = []
    given, rest = "1", iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in {"-spares", "--spares"}:
            given = value if equals else next(rest, "")
        else:
            words.append(word)
    if not (given.isascii() and given.isdigit() and 0 < int(given) <= SPARES_MAX):
        raise ConfigError(f"template: -spares {given}: give a number from 1 to {SPARES_MAX}")
    return words, int(given)


def _fill(server: Server, source: str, path: str, *, goes_on: bool, spares: int) -> None:
    """Make the template, and say so when forks can be had; PyvirtError."""
    said: list[dict[str, object]] = []
    place = server.places[NAME] = Place(said.append, spares=spares)
    if _is_socket(source):
        _take(server, source, os.path.abspath(path), goes_on=goes_on)
    else:
        place.set(templates.read_folder(source))
    server.serve(lambda: bool(said))
    if "error" in said[0]:
        raise BackendError(str(said[0]["error"]))
    sys.stdout.write(f"ready: pyvirt fork {path}\n")
    sys.stdout.flush()


def _take(server: Server, source: str, path: str, *, goes_on: bool) -> None:
    """Serve while a child asks the monitor for the machine, which comes by the socket; PyvirtError.

    The monitor has a working directory of its own.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            _migrate(source, templates.uri(path), goes_on=goes_on)
        except PyvirtError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        server.serve(lambda: True, reader)
        text = os.read(reader, 1 << 16).decode(errors="replace")
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    if text:
        raise BackendError(text)


def _migrate(source: str, uri: str, *, goes_on: bool) -> None:
    client = Client(source, lambda _: None)
    client.execute("migrate", {"uri": uri})
    while (found := client.execute("query-migrate"))["status"] == "active":
        time.sleep(_LOOK_S)
    if found["status"] != "completed":
        reason = found.get("error-desc", "somebody has cancelled it")
        raise BackendError(f"template: {printable(reason)}")
    if goes_on:
        client.execute("cont")


def _is_socket(source: str) -> bool:
    """Say whether it is a monitor's; ConfigError when it is nothing."""
    if source.startswith("tcp:"):
        return True
    try:
        return S_ISSOCK(Path(source).stat().st_mode)
    except OSError as error:
        raise ConfigError(
            f"template {source}: {error.strerror}; name a monitor's socket, which pyvirt ps "
            "lists, or a snapshot's folder"
        ) from None
