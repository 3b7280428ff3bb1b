"""The first process of a jail: it makes the jail around itself, and waits for the machine in it."""

from __future__ import annotations

import os
import resource
import signal
import socket
from types import FrameType
from typing import NamedTuple, NoReturn

from ...errors import PyvirtError
from . import calls, tree
from .place import Place
from .spec import Spec

_HOSTNAME = "pyvirt"
_PROGRAM = (
    f"import sys; sys.path.append({tree.PACKAGE!r}); from pyvirt.cli.main import main; main()"
)
_PATH = "/usr/bin:/bin"
_KEPT = ("TERM", "PYVIRT_LOG_LEVEL", "PYVIRT_SANDBOX")


class _AloneError(Exception):
    """The jailer has ended, or failed, and said why."""


class Line(NamedTuple):
    """Two pipes between the jailer and the first process: each asks, and waits for the other."""

    reader: int
    writer: int

    def ask(self) -> None:
        """Say that it is the other's turn, and wait until that is done; _AloneError."""
        try:
            os.write(self.writer, b"\0")
            answer = os.read(self.reader, 1)
        except OSError:
            answer = b""
        if not answer:
            raise _AloneError


def run(spec: Spec, place: Place, line: Line, netns: int) -> NoReturn:
    """Be the first process of the new PID namespace; end with the machine's exit status."""
    try:
        calls.die_with_parent(signal.SIGKILL)
        line.ask()  # it is in its cgroup then
        os.umask(0o022)
        _leave(netns)
        tree.build(spec, place)
        calls.pivot(str(place.root))
        tree.seal()
        _become(spec, line)
        status = _stay(spec, line)
    except _AloneError:
        status = 1
    except PyvirtError as error:
        os.write(2, f"pyvirt: {error}\n".encode())
        status = error.exit_status
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        os.write(2, f"pyvirt: jail: {what}{error.strerror}\n".encode())
        status = 1
    os._exit(status)


def _leave(netns: int) -> None:
    """Leave the host's namespaces, but that of users."""
    flags = calls.CLONE_NEWNS | calls.CLONE_NEWIPC | calls.CLONE_NEWUTS | calls.CLONE_NEWCGROUP
    if netns >= 0:
        calls.join(netns, calls.CLONE_NEWNET)
    else:
        flags |= calls.CLONE_NEWNET
    calls.unshare(flags)
    socket.sethostname(_HOSTNAME)


def _become(spec: Spec, line: Line) -> None:
    """Be the jail's user, with no more rights than are asked for."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if spec.is_root:
        os.setgroups([])
        if not spec.capabilities:
            calls.unshare(calls.CLONE_NEWUSER)
            line.ask()  # it has this user, and no other, then
    calls.limit_capabilities(spec.capabilities)
    os.setresgid(spec.gid, spec.gid, spec.gid)
    os.setresuid(spec.uid, spec.uid, spec.uid)
    calls.set_capabilities(spec.capabilities)
    calls.no_new_privileges()
    calls.hide_from_ptrace()
    # To become another user has taken this away.
    calls.die_with_parent(signal.SIGKILL)


def _stay(spec: Spec, line: Line) -> int:
    """Run the machine, and return its exit status; whatever is orphaned here is waited for."""
    line.ask()  # is the jailer there still?
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    machine = os.fork()
    if machine == 0:
        _execute(spec)

    def end(number: int, _: FrameType | None) -> None:
        os.kill(machine, number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    while True:
        pid, status = os.wait()
        if pid == machine:
            ended = os.waitstatus_to_exitcode(status)
            return ended if ended >= 0 else 128 - ended


def _execute(spec: Spec) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"PATH": _PATH, "HOME": "/run", "TMPDIR": "/run", "XDG_RUNTIME_DIR": "/run"}
    try:
        os.execve(tree.PYTHON, [tree.PYTHON, "-ISc", _PROGRAM, *spec.words], environment)  # noqa: S606
    except OSError as error:
        os.write(2, f"pyvirt: jail: {tree.PYTHON}: {error.strerror}\n".encode())
        os._exit(1)
