"""`pyvirt snapshot`: write a running machine to a folder, from which it can be restored.

And make one snapshot of several that go on from one another.
"""

from __future__ import annotations

import os
import sys
import time

from ..errors import BackendError, ConfigError
from ..qmp.client import Client, printable
from . import usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

USAGE = """\
usage: pyvirt snapshot [-cont] [-incremental] SOCKET DIR
       pyvirt snapshot flatten DIR NEW

Pauses a machine, and writes it to the folder DIR, which is new or empty. SOCKET is the path of its
monitor, or tcp:HOST:PORT; pyvirt ps lists the running machines. It stays paused, unless -cont lets
it go on; pyvirt restore runs others from where it stood. Of disks it has what is in their overlays;
images are yours to copy.

With -incremental, DIR has of memory only what has changed since the machine was restored, and goes
on from the snapshot that it was restored from, which has to stay: DIR/parent is a link to it.
flatten writes a snapshot and all that it goes on from to the folder NEW, as one.

  pyvirt snapshot /tmp/guest.sock /tmp/snapshot
  pyvirt snapshot -incremental /tmp/restored.sock /tmp/later
  pyvirt snapshot flatten /tmp/later /tmp/whole
"""
_LOOK_S = 0.05
_MIB = 1 << 20


def main(argv: list[str]) -> int:
    """Run `pyvirt snapshot ARGV`; return the exit status. Raises PyvirtError."""
    if usage.shown(USAGE, argv):
        return 0
    goes_on = [word for word in argv if word in {"-cont", "--cont"}]
    incremental = [word for word in argv if word in {"-incremental", "--incremental"}]
    words = [word for word in argv if word not in goes_on + incremental]
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"snapshot: {word}: no such option; pyvirt snapshot -help tells more")
    if words[:1] == ["flatten"] and len(words) == len(argv) == 3:
        return _flatten(*words[1:])
    if len(words) != 2:
        raise ConfigError(
            "snapshot: give a monitor's socket and a folder; pyvirt snapshot -help tells more"
        )
    client = Client(words[0], lambda _: None)
    try:
        # The monitor has a working directory of its own.
        arguments: dict[str, object] = {"uri": f"file:{os.path.abspath(words[1])}"}
        if incremental:
            arguments["incremental"] = True
        client.execute("migrate", arguments)
        _wait(client, "have changed and are not zeroes" if incremental else "are not zeroes")
        if goes_on:
            client.execute("cont")
    finally:
        client.close()
    return 0


def _flatten(path: str, new: str) -> int:
    from ..vmm.snapshot.flatten import flatten

    written = flatten(path, new, lambda line: _say(sys.stderr, line))
    _say(sys.stdout, f"written: {written / _MIB:.0f} MiB of memory are not zeroes")
    return 0


def _say(stream: TextIO, line: str) -> None:
    stream.write(f"{line}\n")
    stream.flush()


def _wait(client: Client, which: str) -> None:
    while (found := client.execute("query-migrate"))["status"] == "active":
        time.sleep(_LOOK_S)
    if found["status"] != "completed":
        reason = found.get("error-desc", "somebody has cancelled it")
        raise BackendError(f"snapshot: {printable(reason)}")
    memory = found["x-memory"]
    written, total = memory["written"] / _MIB, memory["total"] // _MIB
    _say(sys.stdout, f"written: {written:.0f} MiB of {total} MiB of memory {which}")
