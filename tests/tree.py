"""A copy of the checkout that tests run in, to be changed, or with another build of the extension.

It has the environment of the checkout but for pyvirt itself, which is the copy's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Tree:
    """The copy in `folder`, which is made, or brought to what the checkout is now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / ".venv/bin/python"
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=60,
        )
        names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
        for name in names:
            self.restore(name)
        self._link_environment()
        parent = folder / "build"
        parent.mkdir(exist_ok=True)
        if not (parent / "pyvirt").is_symlink():
            (parent / "pyvirt").symlink_to("..")
        with (folder / ".venv/bin/pyvirt").open("wb") as file:
            subprocess.run(
                [self.python, "cli/launcher.py"], cwd=folder, stdout=file, check=True, timeout=60
            )
            os.fchmod(file.fileno(), 0o755)

    def restore(self, name: str) -> None:
        """Have a file as it is in the checkout."""
        ours, theirs = ROOT / name, self.folder / name
        if not ours.exists():  # removed, and git does not know yet
            theirs.unlink(missing_ok=True)
        elif not theirs.exists() or theirs.read_bytes() != ours.read_bytes():
            theirs.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ours, theirs)

    def install(self, module: Path) -> None:
        """Have another build of the extension; a new file, as others may have the last one open."""
        made = self.folder / "native/_native.new"
        shutil.copy(module, made)
        made.rename(self.folder / "native/_native.abi3.so")

    def _link_environment(self) -> None:
        site = Path(sysconfig.get_path("platlib"))
        theirs = self.folder / ".venv" / site.relative_to(sys.prefix)
        theirs.mkdir(parents=True, exist_ok=True)
        for entry in site.iterdir():
            link = theirs / entry.name
            if not entry.name.startswith("__editable__") and not link.is_symlink():
                link.symlink_to(entry)
        (theirs / "pyvirt.pth").write_text(f"{self.folder / 'build'}\n")
        shutil.copy(Path(sys.prefix, "pyvenv.cfg"), self.folder / ".venv")
        self.python.parent.mkdir(exist_ok=True)
        interpreter = Path(sys.executable).resolve()
        for name in ("python", "python3", interpreter.name):
            link = self.python.with_name(name)
            if not link.is_symlink():
                link.symlink_to(interpreter)
