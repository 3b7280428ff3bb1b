"""Compile every C file with each compiler at hand, warnings as errors; part of `make check`."""

import shutil
import subprocess
import sys

from .build import FLAGS, HERE, WARNINGS


def main() -> int:
    """Return the number of files that did not compile cleanly."""
    # Proofs are in C as Frama-C has it.
    ours = (p for p in sorted(HERE.rglob("*.c")) if not p.name.startswith("_native"))
    sources = [p for p in ours if p.parent.name != "proofs"]
    failed = 0
    for compiler in filter(shutil.which, ("gcc", "clang")):
        for source in sources:
            command = [compiler, *FLAGS, *WARNINGS, "-fsyntax-only", f"-I{HERE}", str(source)]
            failed += subprocess.run(command, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
