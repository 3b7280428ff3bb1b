"""`pyvirt snapshot`: write a running machine to a folder, from which it can be restored."""

from __future__ import annotations

import os
import sys
import time

from ..errors import BackendError, ConfigError
from ..qmp.client import Client, printable
from . import usage

USAGE = """\
usage: pyvirt snapshot [-cont] SOCKET DIR

Pauses a machine, and writes it to the folder DIR, which is new or empty. SOCKET is the path of its
monitor, or tcp:HOST:PORT; pyvirt ps lists the running machines. It stays paused, unless -cont lets
it go on; pyvirt restore runs others from where it stood.

  pyvirt snapshot /tmp/guest.sock /tmp/snapshot
"""
_LOOK_S = 0.05
_MIB = 1 << 20


def main(argv: list[str]) -> int:
    """Run `pyvirt snapshot ARGV`; return the exit status. Raises PyvirtError."""
    if usage.shown(USAGE, argv):
        return 0
    goes_on = [word for word in argv if word in {"-cont", "--cont"}]
    words = [word for word in argv if word not in goes_on]
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"snapshot: {word}: no such option; pyvirt snapshot -help tells more")
    if len(words) != 2:
        raise ConfigError(
            "snapshot: give a monitor's socket and a folder; pyvirt snapshot -help tells more"
        )
    client = Client(words[0], lambda _: None)
    try:
        # The monitor has a working directory of its own.
        client.execute("migrate", {"uri": f"file:{os.path.abspath(words[1])}"})
        _wait(client)
        if goes_on:
            client.execute("cont")
    finally:
        client.close()
    return 0


def _wait(client: Client) -> None:
    while (found := client.execute("query-migrate"))["status"] == "active":
        time.sleep(_LOOK_S)
    if found["status"] != "completed":
        reason = found.get("error-desc", "somebody has cancelled it")
        raise BackendError(f"snapshot: {printable(reason)}")
    memory = found["x-memory"]
    written, total = memory["written"] / _MIB, memory["total"] // _MIB
    sys.stdout.write(f"written: {written:.0f} MiB of {total} MiB of memory are not zeroes\n")
