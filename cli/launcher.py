"""Print the script that starts pyvirt: the interpreter without its site module.

Reading site-packages and its .pth files costs more than all of pyvirt's own modules, and a
package that is installed in place is found only through them. So the script says itself where
cffi's back end and the package are; `build/pyvirt` is a link to the checkout.
"""

import sys
import sysconfig
from pathlib import Path

SCRIPT = """\
#!{python} -IS
import sys
sys.path += [{site!r}, {parent!r}]
from pyvirt.cli.main import main
main()
"""


def script(python: Path, site: Path, parent: Path) -> str:
    """Return the text of the script: `site` holds cffi, `parent` the package."""
    return SCRIPT.format(python=python, site=str(site), parent=str(parent))


if __name__ == "__main__":
    sys.stdout.write(
        script(
            Path(sys.prefix, "bin", "python3"),
            Path(sysconfig.get_path("platlib")),
            Path(__file__).resolve().parent.parent / "build",
        )
    )
