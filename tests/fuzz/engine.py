"""Runs a target in Python under Atheris: libFuzzer, with what Python executes as its coverage.

python -m tests.fuzz.engine NAME [libFuzzer's options and folders]
"""

from __future__ import annotations

import sys

import atheris

from .target import targets


def main() -> None:
    """Run the target of the first argument; libFuzzer ends the process."""
    name = sys.argv.pop(1)
    target = next(one for one in targets() if one.name == name)
    sys.argv[0] = str(target.script)
    with atheris.instrument_imports(include=["pyvirt"]):
        function = target.function()
    atheris.Setup(sys.argv, function)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
