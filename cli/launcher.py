"""Print the script that starts pyvirt: the interpreter without its site module.

Reading site-packages and its .pth files costs more than all of pyvirt's own modules, and a
package that is installed in place is found only through them. So the script says itself where
cffi's back end and the package are; `build/pyvirt` is a link to the checkout. It has the modules
from the file that bundle.py makes, if that is there and of this interpreter.
"""

import sys
import sysconfig
from pathlib import Path

SCRIPT = """\
{start}
import marshal, sys
from _frozen_importlib_external import MAGIC_NUMBER
sys.path += [{site!r}, {parent!r}]
try:
    with open({bundle!r}, "rb") as file:
        if file.read(len(MAGIC_NUMBER)) == MAGIC_NUMBER:
            exec(marshal.load(file), bundled := {{"__name__": "pyvirt.cli.bundled"}})
            bundled["install"](file)
except (OSError, EOFError, TypeError, ValueError):
    pass
from pyvirt.cli.main import main
main()
"""
BUNDLE = "bundle"  # the file's name, beside the package


# What the kernel takes of a script's first line (BINPRM_BUF_SIZE, less in old kernels).
_FIRST_LINE_MAX = 127


def script(python: Path, site: Path, parent: Path) -> str:
    """Return the text of the script: `site` holds cffi, `parent` the package."""
    start = f"#!{python} -IS"
    if " " in str(python) or len(start) > _FIRST_LINE_MAX:
        # A shell starts the interpreter, which then takes the same lines for a string.
        start = f"#!/bin/sh\n'''exec' \"{python}\" -IS \"$0\" \"$@\"\n' '''"
    return SCRIPT.format(
        start=start, site=str(site), parent=str(parent), bundle=str(parent / BUNDLE)
    )


if __name__ == "__main__":
    sys.stdout.write(
        script(
            Path(sys.prefix, "bin", "python3"),
            Path(sysconfig.get_path("platlib")),
            Path(__file__).resolve().parent.parent / "build",
        )
    )
