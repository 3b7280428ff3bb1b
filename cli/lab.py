"""`pyvirt lab`: run a command in the nested lab."""

from __future__ import annotations

import argparse
import os
import re

from ..errors import ConfigError
from ..harness import lab
from .parser import Parser, seconds
from .registry import LabFolder

DESCRIPTION = """\
Boots a machine that is emulated in software, with an AMD CPU whose virtualization works, on a
stock kernel and with this host's root file system, read and write; runs COMMAND in it as root,
in this working directory, with this environment and on this terminal; ends with its status."""
EPILOG = """\
exit status: the command's; 128+N after signal N; 127 or 126 when there is no such command or it
cannot be run; 1 when the lab fails; 2 for wrong usage. PYVIRT_LAB=1 is set in the lab."""

ACTIONS = {"exec": "run COMMAND: [OPTION...] -- COMMAND [ARGUMENT...]", "shell": "run $SHELL"}

_SIZE = re.compile(r"([0-9]{1,9})([MG]?)", re.ASCII | re.IGNORECASE)


def main(argv: list[str]) -> int:
    """Run `pyvirt lab ARGV`; return the exit status."""
    options = parser().parse_args(argv)
    command = options.command if options.action == "exec" else [_shell()]
    with LabFolder() as machines:
        return lab.run(
            command[1:] if command[:1] == ["--"] else command,
            forward=options.forward,
            memory_mib=options.memory,
            cpus=options.cpus,
            icount=options.icount,
            timeout=options.timeout,
            machines=machines,
        )


def parser() -> Parser:
    """Return the reader of the command's words."""
    found = Parser(prog="pyvirt lab", description=DESCRIPTION, epilog=EPILOG)
    actions = found.add_subparsers(dest="action", required=True, metavar="exec|shell")
    for name, text in ACTIONS.items():
        action = actions.add_parser(name, help=text, description=DESCRIPTION, epilog=EPILOG)
        _add_options(action)
        if name == "exec":
            action.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return found


def _add_options(parser: Parser) -> None:
    parser.add_argument(
        "-m",
        dest="memory",
        type=_mebibytes,
        default=4096,
        metavar="SIZE",
        help="the lab's memory, in MiB, or with M or G behind it (4G)",
    )
    parser.add_argument("-smp", dest="cpus", type=int, default=1, metavar="N", help="CPUs (1)")
    parser.add_argument(
        "-icount",
        action="store_true",
        help="have the lab's clock count instructions, one a nanosecond: processor time is then "
        "the same every time; several times slower",
    )
    parser.add_argument(
        "-forward",
        type=_pair,
        action="append",
        default=[],
        metavar="HOST=LAB",
        help="make the socket HOST here, whose connections go to the socket LAB in the lab; "
        "may be repeated",
    )
    parser.add_argument(
        "-timeout",
        type=seconds,
        metavar="SECONDS",
        help="end the lab, with status 1, when the command has not ended by then",
    )


def _mebibytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text}: give a size such as 4096, 4096M or 4G")
    return int(match[1]) * (1024 if match[2] in "Gg" and match[2] else 1)


def _pair(text: str) -> tuple[str, str]:
    host, _, lab_path = text.rpartition("=")
    if not host or not lab_path:
        raise argparse.ArgumentTypeError(f"{text}: give HOST=LAB, two socket paths")
    return host, lab_path


def _shell() -> str:
    shell = os.environ.get("SHELL", "/bin/sh")
    if not os.access(shell, os.X_OK):
        raise ConfigError(f"SHELL={shell}: no such program; set SHELL to a shell")
    return shell
