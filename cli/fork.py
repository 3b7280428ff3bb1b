"""`pyvirt fork`: run a guest that begins where a template stands, as a child of that process."""

from __future__ import annotations

import os

from ..errors import ConfigError
from . import usage
from .stand_in import StandIn

USAGE = """\
usage: pyvirt fork PATH [OPTIONS]

Runs a guest from where the template of the pyvirt template at PATH stands. OPTIONS are as for
pyvirt restore: the same devices again, in the same order; files, taps and sockets behind them may
be others. The guest is on this terminal, and ends with this command.

  pyvirt fork /tmp/template -disk fork.img -qmp unix:/tmp/fork.sock,server,nowait
"""
_MEND = "name the socket of a pyvirt template that runs"
_TEMPLATE = ""  # as template.py names it


def main(argv: list[str]) -> int:
    """Run `pyvirt fork ARGV`; return the exit status. Raises PyvirtError."""
    if usage.shown(USAGE, argv):
        return 0
    if argv and argv[0].startswith("-"):
        raise ConfigError(
            f"fork: {argv[0]}: name the socket of a pyvirt template before the options"
        )
    if not argv:
        raise ConfigError(
            "fork: name the socket of a pyvirt template; pyvirt fork -help tells more"
        )
    path, words = argv[0], argv[1:]
    fork = StandIn(path, f"fork {path}", _MEND)
    fork.ask({"run": words, "cwd": os.getcwd(), "template": _TEMPLATE})
    return fork.stay()
