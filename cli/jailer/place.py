"""The folder of a jail on the host: BASE/NAME, held by a lock beside it while the jail runs.

    NAME/root   where the jail's root is mounted, in a mount namespace of its own; empty to the host
    NAME/run    the jail's /run: sockets, logs; its user's
    NAME/copy   files that were copied for it
    NAME/cgroup the path of its cgroup, where it has one

Whatever ends a jail, nothing else of it is left; who finds a folder that is not held removes it.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from ... import files
from ...errors import BackendError, ConfigError
from . import cgroup

BASE = "/srv/pyvirt"  # root's


def base() -> str:
    """Return where jails are when nobody says it: root's, or this user's."""
    if os.geteuid() == 0:
        return BASE
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and os.path.isdir(runtime):
        return os.path.join(runtime, "pyvirt-jails")
    return f"/tmp/pyvirt-jails-{os.geteuid()}"  # noqa: S108  (made for this user alone)


class Place:
    """The folder of one jail; owns it, and its lock, until `remove`."""

    def __init__(self, name: str, within: str) -> None:
        """Take the lock, and remove what such a jail has left; ConfigError when it runs."""
        self.path = Path(within, name)
        self.root, self.run, self.copies = (self.path / one for one in ("root", "run", "copy"))
        self._cgroup = self.path / "cgroup"
        self._lock = str(self.path.with_name(f".{name}.lock"))
        try:
            # Nobody else's, but passed through by the jails' users.
            os.makedirs(within, 0o711, exist_ok=True)
            _check_owner(within)
            fd = files.open_locked(self._lock, 0o600)
        except OSError as error:
            raise ConfigError(
                f"jail: {self._lock}: {error.strerror}; give -base FOLDER, where one can be made"
            ) from None
        if fd is None:
            raise ConfigError(f"jail: -name {name}: such a jail runs; end it, or give another name")
        self._fd = fd
        try:
            self.left = self._clear()
        except OSError as error:
            os.close(fd)
            raise BackendError(f"jail: {error.filename or self.path}: {error.strerror}") from None

    def make(self, uid: int, gid: int) -> None:
        """Make the folders; OSError."""
        self.path.mkdir(0o711)
        self.root.mkdir(0o755)
        self.run.mkdir(0o700)
        os.chown(self.run, uid, gid)
        self.copies.mkdir(0o711)

    def remember(self, group: cgroup.Group) -> None:
        """Write down which cgroup is this jail's, and to be removed with it; OSError."""
        self._cgroup.write_text(group.path, encoding="utf-8")

    def _clear(self) -> bool:
        """Remove what is there; return whether anything was."""
        if not self.path.exists():
            return False
        if self._cgroup.exists():
            cgroup.remove(self._cgroup.read_text(encoding="utf-8"))
        shutil.rmtree(self.path)
        return True

    def remove(self) -> None:
        """Remove all of it, and give up the lock; BackendError."""
        try:
            self._clear()
        except OSError as error:
            raise BackendError(
                f"jail: {error.filename or self.path}: {error.strerror}; remove it by pyvirt jail "
                f"-name {self.path.name} -clean-resource"
            ) from None
        finally:
            files.remove_locked(self._fd, self._lock)


def _check_owner(path: str) -> None:
    """Refuse a folder in which somebody else could put things in a jail's place; ConfigError."""
    status = os.stat(path)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"jail: {path}: others may write there; give -base FOLDER, this user's")
