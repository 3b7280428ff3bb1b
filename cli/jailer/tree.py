"""The files that a jail sees: Python, this package, devices, sources; nothing else of the host.

Made in the jail's own mount namespace, and gone with it. All of it is read-only but /run and the
sources that are not.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

from ...errors import BackendError
from . import calls, libraries
from .place import Place
from .spec import Source, Spec

PACKAGE = "/opt/pyvirt"  # holds the package, and what it needs beside it
_OF_PACKAGE = (
    *("cli", "devices", "native", "qmp", "vmm"),
    *("__init__.py", "errors.py", "files.py", "state.py"),
)
_DEVICES = ("kvm", "net/tun", "vhost-net", "vhost-vsock", "urandom", "null")
_CACHE = "/etc/ld.so.cache"
_SMALL = "mode=0755,size=1m"  # of a tmpfs that holds folders, and places to mount at
# Python's own program, which a virtual environment only points at.
PYTHON = os.path.realpath(sys.executable)
_TOP = Path(__file__).resolve().parents[2]


def build(spec: Spec, place: Place) -> None:
    """Mount all of it at the place's root; OSError, BackendError."""
    root = str(place.root)
    calls.mount("none", "/", None, calls.MS_REC | calls.MS_PRIVATE)
    calls.mount("none", root, "tmpfs", calls.MS_NOSUID | calls.MS_NODEV, _SMALL)
    _show_python(root)
    _show_package(root + PACKAGE)
    _make_devices(spec, root)
    _mount_proc(root)
    _bind(str(place.run), f"{root}/run", calls.NO_DEVICES | calls.NO_PROGRAMS)
    for one in spec.sources:
        _add(one, spec, place)


def seal() -> None:
    """Let nothing be made in the root that is by now this process's; OSError."""
    calls.restrict("/", calls.READ_ONLY)
    calls.restrict("/dev", calls.READ_ONLY)


def _show_python(root: str) -> None:
    library = os.path.dirname(os.path.realpath(os.__file__))
    _show(library, root + library)
    modules = {getattr(one, "__file__", None) for one in sys.modules.values()}
    for path in (PYTHON, *libraries.loaded(), _CACHE):
        there = path not in modules and os.path.exists(path)
        if there and not os.path.exists(root + path):
            _show(path, root + path)


def _show_package(target: str) -> None:
    for name in _OF_PACKAGE:
        _show(str(_TOP / name), f"{target}/pyvirt/{name}")
    import _cffi_backend

    _show(_cffi_backend.__file__, f"{target}/{os.path.basename(_cffi_backend.__file__)}")


def _show(path: str, target: str) -> None:
    _bind(path, target, calls.READ_ONLY | calls.NO_DEVICES)


def _bind(path: str, target: str, flags: int) -> None:
    """Mount a file or a folder at `target`, which is made; with all that is mounted below it."""
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    if os.path.isdir(path):
        os.makedirs(target, 0o755, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC, 0o644))
    calls.mount(path, target, None, calls.MS_BIND | calls.MS_REC)
    calls.restrict(target, flags, recursive=True)


def _make_devices(spec: Spec, root: str) -> None:
    """Make the nodes that the host has, the user's own; without root, show the host's."""
    folder = f"{root}/dev"
    os.mkdir(folder, 0o755)
    calls.mount("none", folder, "tmpfs", calls.MS_NOSUID | calls.MS_NOEXEC, _SMALL)
    for name in _DEVICES:
        path, target = f"/dev/{name}", f"{folder}/{name}"
        try:
            status = os.stat(path)
        except OSError:
            continue  # the host has no such device
        if not spec.is_root:
            _bind(path, target, calls.NO_PROGRAMS)
            continue
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.mknod(target, stat.S_IFCHR | 0o600, status.st_rdev)
        os.chown(target, spec.uid, spec.gid)


def _mount_proc(root: str) -> None:
    """Show a process to itself, which snapshots and long names of sockets need, and no more."""
    os.mkdir(f"{root}/proc", 0o755)
    flags = calls.MS_NOSUID | calls.MS_NODEV | calls.MS_NOEXEC | calls.MS_RDONLY
    try:
        calls.mount("proc", f"{root}/proc", "proc", flags, "subset=pid,hidepid=invisible")
    except OSError:
        return  # a container that hides parts of its own allows none, and a guest runs without


def _add(one: Source, spec: Spec, place: Place) -> None:
    target = f"{place.root}/{one.name}"
    if os.path.lexists(target):
        raise BackendError(f"jail: {one.option}: the jail has a /{one.name} already; rename one")
    flags = calls.NO_PROGRAMS | (calls.READ_ONLY if one.readonly else 0)
    path = one.path
    if one.copy:
        path = str(place.copies / one.name)
        shutil.copyfile(one.path, path)
        os.chmod(path, 0o600)
        os.chown(path, spec.uid, spec.gid)
    if not stat.S_ISBLK(os.stat(path).st_mode):
        flags |= calls.NO_DEVICES
    _bind(path, target, flags)
