"""The cgroup of a jail, of version 2: cpu, cpuset, memory and pids.

It is TOP/pyvirt/NAME, where TOP is the highest cgroup above this process's own that it may change:
the root's for root, what systemd has delegated for others.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import NamedTuple

from ...errors import ConfigError

KEYS = (
    *("cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.mems"),
    *("memory.high", "memory.low", "memory.max", "memory.swap.max", "pids.max"),
)
# Version 1's, as ozone takes them.
_OLDER = {"memory.limit_in_bytes": "memory.max"}
_GONE_S = 5.0  # how long the kernel may take to be done with processes that have ended
_LOOK_S = 0.01


class Group(NamedTuple):
    """A cgroup that is to be: its `path`, and what it holds back."""

    path: str
    limits: dict[str, str]


class Top(NamedTuple):
    """The cgroup below which there may be others, and the `controllers` that they can have."""

    path: str
    controllers: tuple[str, ...]


def parse(words: list[str]) -> dict[str, str]:
    """Return what `-cgroup` sets; ConfigError."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = _OLDER.get(key, key)
        if not equals or not value or key not in KEYS:
            raise ConfigError(
                f"jail: -cgroup {word}: give KEY=VALUE, with a key of {', '.join(KEYS)}"
            )
        if key in found:
            raise ConfigError(f"jail: -cgroup {word}: {key} is given twice; give it once")
        found[key] = value
    return found


def find(mounts: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup") -> Top | None:
    """Return where cgroups may be made, None where there is no version 2."""
    mounted = _mounted(mounts)
    if mounted is None:
        return None
    root, place = mounted
    with open(own, encoding="utf-8") as file:
        paths = [line[3:].rstrip("\n") for line in file if line.startswith("0::")]
    if not paths:
        return None
    inside = os.path.relpath(paths[0], root)
    at = place if inside.startswith("..") else os.path.normpath(os.path.join(place, inside))
    while at != place and os.access(os.path.dirname(at), os.W_OK):
        at = os.path.dirname(at)
    return Top(at, tuple(_read(at, "cgroup.controllers").split()))


def _mounted(mounts: str) -> tuple[str, str] | None:
    """Return the root and the place of the hierarchy; proc(5)."""
    with open(mounts, encoding="utf-8") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            if rest.startswith("cgroup2 "):
                _, _, _, root, place, *_ = fields.split(" ")
                return root, place
    return None


def planned(name: str, limits: dict[str, str], top: Top | None) -> Group:
    """Return the cgroup of a jail; ConfigError where this host cannot have it."""
    for key in limits:
        controller = key.partition(".")[0]
        if top is None or controller not in top.controllers:
            there = ", ".join(top.controllers) if top else ""
            raise ConfigError(
                f"jail: -cgroup {key}: this host offers no controller {controller} of cgroup v2 "
                f"here (there is {there or 'none'}); pyvirt doctor tells more"
            )
    assert top is not None
    return Group(os.path.join(top.path, "pyvirt", name), limits)


def make(group: Group) -> None:
    """Make it, in place of one that nobody is in; ConfigError.

    Where somebody is, that is another jail's, of the same name and another base.
    """
    parent = os.path.dirname(group.path)
    controllers = sorted({key.partition(".")[0] for key in group.limits})
    enabled = " ".join(f"+{one}" for one in controllers)
    try:
        _write(os.path.dirname(parent), "cgroup.subtree_control", enabled)
        os.makedirs(parent, exist_ok=True)
        _write(parent, "cgroup.subtree_control", enabled)
        with suppress(OSError):
            os.rmdir(group.path)
        os.mkdir(group.path)
    except OSError as error:
        mend = "be root, or have systemd delegate one: systemd-run --user --scope -p Delegate=yes"
        if error.errno == errno.EBUSY:
            mend = f"no process may be in {os.path.dirname(parent)} itself"
        elif error.errno == errno.EEXIST:
            mend = "a jail of another -base has it; give another -name"
        raise ConfigError(f"jail: -cgroup: {error.filename}: {error.strerror}; {mend}") from None


def limit(group: Group) -> None:
    """Set what it holds back; ConfigError."""
    for key, value in group.limits.items():
        try:
            _write(group.path, key, value)
        except OSError as error:
            raise ConfigError(
                f"jail: -cgroup {key}={value}: {error.strerror}; the kernel's cgroup-v2 says what "
                "it may be"
            ) from None


def add(group: Group, pid: int) -> None:
    """Put a process into it, and those that it starts; OSError."""
    _write(group.path, "cgroup.procs", str(pid))


def remove(path: str) -> None:
    """End what is in it, and remove it, and the one above with the last; OSError."""
    if not os.path.isdir(path):
        return
    until = time.monotonic() + _GONE_S
    while True:
        with suppress(OSError):  # before Linux 5.14 there are only those that have ended
            _write(path, "cgroup.kill", "1")
        try:
            os.rmdir(path)
            break
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
        time.sleep(_LOOK_S)
    with suppress(OSError):  # another jail's is there
        os.rmdir(os.path.dirname(path))


def _read(path: str, name: str) -> str:
    try:
        with open(os.path.join(path, name), encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, name: str, text: str) -> None:
    file = os.path.join(path, name)
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, file) from None
    finally:
        os.close(fd)
