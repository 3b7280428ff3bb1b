"""`pyvirt ps`: this user's running machines, and where their monitors are."""

from __future__ import annotations

import time

from ..qmp.client import printable
from . import usage
from .registry import running

USAGE = """\
usage: pyvirt ps

Lists this user's running machines: process id, seconds since the start, name, and the places that
pyvirt qmp can connect to. One in a nested lab has its process id there, behind "lab:".
"""
_ROW = "{:>8}  {:>9}  {:<16}  {}"


def main(argv: list[str]) -> int:
    """Run `pyvirt ps`; return the exit status."""
    if usage.shown(USAGE, argv):
        return 0
    usage.no_arguments("ps", argv)
    print(_ROW.format("PID", "SECONDS", "NAME", "MONITORS"))
    now = int(time.time())
    for entry in running():
        places = " ".join(map(printable, entry.sockets)) or "-"
        name = printable(entry.name) or "-"
        pid = f"lab:{entry.pid}" if entry.in_lab else entry.pid
        print(_ROW.format(pid, max(0, now - entry.started), name, places))
    return 0
