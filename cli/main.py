"""The `pyvirt` command: finds the sub-command, and turns errors into one line and a status."""

from __future__ import annotations

import os
import sys

from .. import __version__
from ..errors import PyvirtError, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_STDERR = 2
_STRATOVIRT = "stratovirt"  # as its clients call it, and a link to pyvirt may be called
_VIA = ("-via", "--via")
_VERSIONS = ("-V", "-version", "--version")
COMMANDS = {
    "run": "boot a guest; without options a small Debian one, to a shell",
    "exec": "run a command in a guest that has pyvirt's agent",
    "snapshot": "write a machine to a folder, from where it stands",
    "restore": "run a guest from such a folder",
    "template": "hold a machine in memory, to start forks of it",
    "fork": "run a guest from where a template stands",
    "serve": "start machines quickly, as forks of one warm process",
    "jail": "run a guest where nothing of this host is to be seen",
    "ps": "the machines that run, and where their monitors are",
    "qmp": "talk to a machine's monitor: one command, or a shell",
    "doctor": "what this host can do, and what to do about the rest",
    "net": "make and remove taps and bridges for guests' networks",
    "guest": "make guest images: kernel, initramfs, root file system",
    "lab": "run a command in the nested lab, where KVM is real",
    "demo": "a stock kernel, and a disk plugged into it while it runs",
    "test": "boot a kernel, run a script in it, say how it ended",
    "completion": "the script by which bash, zsh or fish completes all this",
    "man": "the manual pages pyvirt(1) and pyvirt-run(1)",
}


def usage() -> str:
    """Return the help text, made from the table."""
    lines = ["usage: pyvirt COMMAND [OPTIONS]", ""]
    lines += [f"  {name:<12} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "pyvirt COMMAND -help tells more.", ""])


def _words(argv: list[str]) -> list[str]:
    """Return the words after the program's name; under StratoVirt's those of `pyvirt run`."""
    words = argv[1:]
    is_run = os.path.basename(argv[0]) == _STRATOVIRT and words
    return ["run", *words] if is_run and words[0] not in _VERSIONS else words


def _run_module(name: str, words: list[str]) -> int:
    # importlib would cost a module more on the start-up path.
    module = __import__(f"pyvirt.cli.{name}", fromlist=["main"])
    return int(module.main(words))


def run(words: list[str]) -> int:
    """Run a machine, here or by a pyvirt serve; return the exit status."""
    is_via = any(word.partition("=")[0] in _VIA for word in words)
    return _run_module("via" if is_via or os.environ.get("PYVIRT_SERVE") else "run", words)


def dispatch(arguments: list[str]) -> int:
    """Run the sub-command named first; return its exit status."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if command in COMMANDS:
        if command == "run":
            return run(rest)
        return _run_module(command.replace("-", "_"), rest)
    word = command.lstrip("-")
    if word in {"help", "h"}:
        sys.stdout.write(usage())
        return 0
    if word in {"version", "V"}:
        sys.stdout.write(f"pyvirt {__version__}\n")
        return 0
    sys.stderr.write(f"pyvirt: {command}: no such command; pyvirt help lists them\n")
    return 2


def _open_standard_files() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed: no file of a guest's may get there."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115  (for good)
    sys.stderr = sys.stderr or open(_STDERR, "w", encoding="utf-8")  # noqa: SIM115


def main() -> NoReturn:
    """Run `sys.argv`."""
    _open_standard_files()
    end(lambda: dispatch(_words(sys.argv)))


def end(command: Callable[[], int], tell: Callable[[int], None] | None = None) -> NoReturn:
    """End with what a command returns or raises; `tell` is told of it before.

    By os._exit, since tearing the interpreter down costs 4 ms.
    """
    try:
        status = command()
    except PyvirtError as error:
        # One line, even where a value of the user's has more.
        sys.stderr.write("pyvirt: " + str(error).replace("\n", "\\n") + "\n")
        status = error.exit_status
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 1
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except Exception as error:  # noqa: BLE001  (a fault of ours is one line for a user)
        if os.environ.get("PYVIRT_LOG_LEVEL") == "debug":
            import traceback

            traceback.print_exc()
        sys.stderr.write(f"pyvirt: {unexpected(error)}; please report\n")
        status = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or 1
    if tell is not None:
        tell(status)
    os._exit(status)
