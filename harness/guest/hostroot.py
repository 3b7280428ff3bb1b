"""A folder of the host as a guest's root: whether it can be one, and what the guest is told."""

from __future__ import annotations

import os
import re

from ...errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

TAG = "pyvirt-root"
MODULES_TAG = "pyvirt-modules"
OVERLAY = "pyvirt.overlay="  # of the kernel's command line: the tag of the root
_MODULES = "pyvirt.modules="
_CWD, _EXEC = "pyvirt.cwd=", "pyvirt.exec="
_PLAIN = re.compile(rb"[A-Za-z0-9_./:@%+,-]")
# The kernel takes 2048 bytes of command line, and there is more on it.
_EXEC_MAX = 1200


def check_folder(option: str, folder: str) -> None:
    """Refuse a folder that cannot be a root; ConfigError names the `option` with its value."""
    if not os.path.isdir(folder):
        what = "not a folder" if os.path.exists(folder) else "no such folder"
        raise ConfigError(f"{option}: {what}; name one with a system in it, such as /")
    shell = os.path.join(folder, "bin/sh")
    # A link in it may be absolute, and so lead astray from here.
    if not os.path.lexists(shell) and not os.path.islink(os.path.join(folder, "bin")):
        raise ConfigError(f"{option}: it has no /bin/sh; name one with a system in it, such as /")


def words(folder: str, tree: Path | None) -> tuple[str, list[str]]:
    """Return what the kernel is told of its root, and more words for `pyvirt run` beside -root.

    `tree` is the kernel's lib/modules/RELEASE: the guest has it from the root if it is in
    `folder`, else as a file system of its own.
    """
    told = OVERLAY + TAG
    if tree is None:
        return told, []
    path, root = os.path.realpath(tree), os.path.realpath(folder)
    inside = "/" + os.path.relpath(path, root)
    if _escaped(inside) == inside and os.path.commonpath((path, root)) == root:
        return f"{told} {_MODULES}{inside}", []
    share = path.replace(",", ",,") + f",tag={MODULES_TAG},readonly=on"
    return f"{told} {_MODULES}{MODULES_TAG}", ["-share", share]


def inside(folder: str, path: str) -> str:
    """Return where a folder of the host is in the guest; "/" if it is not there."""
    path, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath((path, root)) != root:
        return "/"
    below = os.path.relpath(path, root)
    # Of these the guest has its own.
    return "/" if below.split("/")[0] in {".", "dev", "proc", "run", "sys"} else f"/{below}"


def console_words(cwd: str, command: str | None) -> str:
    """Return what the init of hostboot.py is told: where a shell runs, or a command in its place.

    ConfigError for a command that is too long.
    """
    told = _CWD + _escaped(cwd)
    if command is None:
        return told
    escaped = _escaped(command)
    if not command.strip():
        raise ConfigError("-exec: names no command; give -exec COMMAND")
    if len(escaped) > _EXEC_MAX:
        raise ConfigError(f"-exec {command[:40]}: too long; put it into a script, and name that")
    return f"{told} {_EXEC}{escaped}"


def _escaped(text: str) -> str:
    """Return a word for the kernel's command line that `printf %b` makes the text of."""
    return "".join(
        chr(byte) if _PLAIN.match(bytes([byte])) else f"\\0{byte:03o}" for byte in os.fsencode(text)
    )
