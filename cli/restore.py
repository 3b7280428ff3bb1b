"""`pyvirt restore`: run a guest from a snapshot, as `pyvirt run -incoming`."""

from __future__ import annotations

from ..errors import ConfigError
from . import usage
from .main import run

USAGE = """\
usage: pyvirt restore DIR [OPTIONS]

Runs a guest from the snapshot in DIR, from where it stood. OPTIONS are those of pyvirt run, with
which the same devices are given again, in the same order; files, taps and sockets behind them may
be others. Memory and vCPUs are those of the snapshot. The short form of

  pyvirt run -incoming file:DIR [OPTIONS]

  pyvirt restore /tmp/snapshot -disk root.img -qmp unix:/tmp/guest.sock,server,nowait
"""


def main(argv: list[str]) -> int:
    """Run `pyvirt restore ARGV`; return the exit status. Raises PyvirtError."""
    if usage.shown(USAGE, argv):
        return 0
    if argv and argv[0].startswith("-"):
        raise ConfigError(f"restore: {argv[0]}: name a snapshot's folder before the options")
    if not argv:
        raise ConfigError("restore: name a snapshot's folder; pyvirt restore -help tells more")
    folder = argv[0].replace(",", ",,")
    return run(["-incoming", f"file:{folder}", *argv[1:]])
