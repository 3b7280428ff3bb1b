"""The C extension, and what is made of the command's own tables; the rest is in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import setup  # isort: skip  (it brings distutils)
from distutils.command.install_data import install_data

# Manual pages and completions, and the words after `pyvirt` that print them.
PRINTED = {
    "share/man/man1/pyvirt.1": "man",
    "share/man/man1/pyvirt-run.1": "man run",
    "share/bash-completion/completions/pyvirt": "completion bash",
    "share/zsh/site-functions/_pyvirt": "completion zsh",
    "share/fish/vendor_completions.d/pyvirt.fish": "completion fish",
}
_MADE = Path("build/printed")
_PROGRAM = "from pyvirt.cli.main import main; main()"


def make(package: Path, target: Path) -> None:
    """Have the pyvirt that is in the folder `package` print the files, below `target`."""
    for name, words in PRINTED.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", _PROGRAM, *words.split()]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), *sys.path])}
        with file.open("wb") as output:
            subprocess.run(command, stdout=output, env=environment, check=True, timeout=60)


class InstallPrinted(install_data):
    """Installs the files, made by what has just been built."""

    def run(self) -> None:
        """Make them, and go on as usual."""
        make(Path(self.get_finalized_command("build").build_lib).resolve(), _MADE)
        super().run()


if __name__ == "__main__":
    setup(
        cffi_modules=["native/build.py:ffibuilder"],
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
        cmdclass={"install_data": InstallPrinted},
        data_files=[(os.path.dirname(name), [str(_MADE / name)]) for name in PRINTED],
    )
