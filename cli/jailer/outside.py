"""The jailer: it starts a jail's first process, waits for its end, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from types import FrameType

from ...errors import BackendError, ConfigError
from . import calls, cgroup, inside
from .place import Place
from .spec import Spec


def run(spec: Spec) -> int:
    """Run the machine in its jail; return its exit status. PyvirtError."""
    group = None
    if spec.limits:
        group = cgroup.planned(spec.name, spec.limits, cgroup.find())
    netns = _open_namespace(spec)
    place = Place(spec.name, spec.base)
    try:
        try:
            place.make(spec.uid, spec.gid)
            if group is not None:
                cgroup.make(group)
                place.remember(group)
                cgroup.limit(group)
            return _start(spec, place, group, netns)
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            raise BackendError(f"jail: {what}{error.strerror}") from None
    finally:
        place.remove()


def clean(name: str, base: str) -> None:
    """Remove what a jail has left that was killed; ConfigError when there is nothing."""
    place = Place(name, base)
    found = place.left
    place.remove()
    if not found:
        raise ConfigError(f"jail: -name {name}: nothing of such a jail is in {base}; see -base")


def _open_namespace(spec: Spec) -> int:
    if not spec.netns:
        return -1
    try:
        return os.open(spec.netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"jail: -netns {spec.netns}: {error.strerror}; make one by ip netns add NAME"
        ) from None


def _start(spec: Spec, place: Place, group: cgroup.Group | None, netns: int) -> int:
    _leave(spec)
    asked, tell = os.pipe()
    answered, answer = os.pipe()
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        os.close(asked)
        os.close(answer)
        inside.run(spec, place, inside.Line(answered, tell), netns)
    os.close(tell)
    os.close(answered)
    _pass_on(pid)
    _help(spec, pid, group, asked, answer)
    _, status = os.waitpid(pid, 0)
    ended = os.waitstatus_to_exitcode(status)
    return ended if ended >= 0 else 128 - ended


def _leave(spec: Spec) -> None:
    """Have a PID namespace for the child; without root, all in a user namespace of this user's."""
    try:
        if spec.is_root:
            calls.unshare(calls.CLONE_NEWPID)
            return
        uid, gid = os.geteuid(), os.getegid()
        calls.unshare(calls.CLONE_NEWUSER | calls.CLONE_NEWPID)
    except OSError as error:
        raise BackendError(
            f"jail: {error.filename}: {error.strerror}; see sysctl user.max_user_namespaces and "
            "kernel.unprivileged_userns_clone, or run it as root"
        ) from None
    _map(os.getpid(), uid, gid, may_set_groups=False)


def _map(pid: int, uid: int, gid: int, *, may_set_groups: bool) -> None:
    """Let a user namespace have one user and one group, by their own numbers; OSError."""
    files = {"setgroups": "" if may_set_groups else "deny"}
    files |= {"uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    for name, text in files.items():
        if text:
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                file.write(text)


def _pass_on(pid: int) -> None:
    """Let who ends the jailer end the machine, in good order."""

    def end(number: int, _: FrameType | None) -> None:
        os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)


def _help(spec: Spec, pid: int, group: cgroup.Group | None, asked: int, answer: int) -> None:
    """Do for the first process, when it asks, what takes the rights that it has not."""
    steps: list[Callable[[], None]] = [partial(_add, group, pid), _nothing]
    if spec.is_root and not spec.capabilities:
        steps.insert(1, partial(_map, pid, spec.uid, spec.gid, may_set_groups=True))
    try:
        for step in steps:
            if not os.read(asked, 1):
                return  # it has failed, and said why
            step()
            os.write(answer, b"\0")
    finally:
        os.close(asked)
        os.close(answer)


def _add(group: cgroup.Group | None, pid: int) -> None:
    if group is not None:
        cgroup.add(group, pid)


def _nothing() -> None:
    pass
