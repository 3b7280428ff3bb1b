"""What a jail is asked for, checked as far as it can be from outside."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from ...errors import ConfigError

_READ, _WRITE, _SEARCH = 4, 2, 1


@dataclass(frozen=True)
class Source:
    """A file, folder or block device that the jail has at `/name`: bound there, or a copy."""

    path: str
    name: str
    readonly: bool
    copy: bool

    @property
    def option(self) -> str:
        """Return it as messages name it."""
        return f"-source {self.path}"


@dataclass(frozen=True)
class Spec:
    """One jail; `words` are those after `pyvirt` in it.

    `netns` is the path of a network namespace, "" for a new one. With `capabilities` there is no
    user namespace, in which they would be worth nothing.
    """

    name: str
    base: str
    uid: int
    gid: int
    sources: tuple[Source, ...]
    netns: str
    limits: dict[str, str]
    capabilities: frozenset[int]
    words: tuple[str, ...]

    @property
    def is_root(self) -> bool:
        """Return whether it is made with root's rights, and not within a user namespace."""
        return os.geteuid() == 0


def source(text: str) -> Source:
    """Return what `-source` says: PATH[,ro][,copy]; ConfigError."""
    path, *words = text.split(",")
    for word in words:
        if word not in {"ro", "copy"}:
            raise ConfigError(
                f"jail: -source {text}: {word or 'an empty word'} is neither ro nor copy; give "
                "PATH[,ro][,copy]"
            )
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ConfigError(
            f"jail: -source {path}: {error.strerror}; name a file that is there"
        ) from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode)):
        raise ConfigError(
            f"jail: -source {path}: neither a file nor a folder nor a block device; name one"
        )
    if "copy" in words and not stat.S_ISREG(mode):
        raise ConfigError(f"jail: -source {text}: only a file is copied; leave copy out")
    real = os.path.realpath(path)
    name = os.path.basename(os.path.abspath(path))
    if not name:
        raise ConfigError(f"jail: -source {path}: all of the host; name a folder in it")
    return Source(real, name, "ro" in words, "copy" in words)


def check_reach(one: Source, uid: int, gid: int) -> None:
    """Refuse what the jail's user may not open, as it is to be opened there; ConfigError."""
    if one.copy or uid == 0:
        return
    status = os.stat(one.path)
    wanted = _READ if one.readonly else _READ | _WRITE
    if stat.S_ISDIR(status.st_mode):
        wanted |= _SEARCH
    shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
    if ~(status.st_mode >> shift) & wanted:
        what = "read" if one.readonly else "read and write"
        raise ConfigError(
            f"jail: {one.option}: user {uid} and group {gid} may not {what} it; change its owner, "
            "or add ,copy" + ("" if one.readonly else " or ,ro")
        )
