"""`pyvirt run -via`: the machine is started by a `pyvirt serve`, and this command stands in for it.

Where it is the environment that names the server, and that cannot start the machine, it is started
here.
"""

from __future__ import annotations

import os
import sys

from .. import __version__
from ..errors import BackendError, ConfigError
from .stand_in import StandIn
from .timeline import exec_ns

OPTION = "via"
ENVIRONMENT = "PYVIRT_SERVE"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_EXEC_NS = "PYVIRT_EXEC_NS"


def main(argv: list[str]) -> int:
    """Run `pyvirt run ARGV`; return the exit status. Raises PyvirtError."""
    given, words = _take(argv)
    path = given or os.environ[ENVIRONMENT]
    name = f"-{OPTION} {path}" if given else f"{ENVIRONMENT}={path}"
    machine = StandIn(path, name, f"start it: pyvirt serve {path}")
    try:
        machine.ask({"run": words, "cwd": _folder(name), "caller": _caller()})
    except BackendError as error:
        if given:
            raise
        sys.stderr.write(f"pyvirt: {error}; this machine is started without it\n")
        sys.stderr.flush()
        return _run_here(words)
    return machine.stay()


def _run_here(words: list[str]) -> int:
    from . import run

    return run.main(words)


def _take(argv: list[str]) -> tuple[str, list[str]]:
    """Return the socket that is given, "" if none is, and the other words; ConfigError."""
    words: list[str] = []
    found = ""
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name.removeprefix("-") not in {OPTION, f"-{OPTION}"} or not name.startswith("-"):
            words.append(word)
            continue
        if found:
            raise ConfigError(f"-{OPTION}: given twice; give it once")
        found = value if equals else next(rest, "")
        if not found or (found.startswith("-") and not equals):
            raise ConfigError(f"-{OPTION}: needs a value, the SOCKET of a pyvirt serve")
    return found, words


def _folder(name: str) -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"{name}: this folder: {error.strerror}; go to another, or start without it"
        ) from None


def _caller() -> dict[str, object]:
    umask = os.umask(0)
    os.umask(umask)
    env = {_EXEC_NS: str(exec_ns()), **os.environ}
    env.pop(ENVIRONMENT, None)
    return {"version": __version__, "package": _PACKAGE, "umask": umask, "env": env}
