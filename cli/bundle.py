"""Make the file that bundled.py tells of: `python cli/bundle.py FILE`, beside the package.

It has what `pyvirt run` loads for a guest with disks, NICs, consoles and monitors, and what its
-via does.
"""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
import sysconfig
from importlib.util import MAGIC_NUMBER
from pathlib import Path

_BUNDLED = Path(__file__).with_name("bundled.py")
# And what these import.
_MODULES = (
    *("cli.main", "cli.run", "cli.registry", "cli.options.gather", "cli.options.chardevs"),
    *("cli.options.disks", "cli.options.machine", "cli.options.monitors", "cli.options.nics"),
    *("cli.options.objects", "cli.options.ports", "cli.options.sizes", "cli.options.sockets"),
    *("devices.chardev", "devices.nic", "devices.serial", "devices.terminal"),
    *("devices.virtio.block", "devices.virtio.console", "devices.virtio.net", "qmp.machine"),
    *("cli.via", "qmp.server", "vmm.accel", "vmm.machine", "vmm.sandbox"),
)
# Prints of each module that is loaded then: its name, 1 for a package, its file.
_PROGRAM = """\
import sys
before = set(sys.modules)
sys.path += {path!r}
for name in {names!r}:
    __import__("pyvirt." + name)
for name, module in sys.modules.items():
    # Of the others Python has the code in itself, or they are another's by another name.
    if name not in before and getattr(getattr(module, "__spec__", None), "has_location", False):
        if module.__spec__.name == name:
            print(name, int(hasattr(module, "__path__")), module.__file__)
"""


def _loaded(path: list[str]) -> list[tuple[str, bool, str]]:
    command = [sys.executable, "-IS", "-c", _PROGRAM.format(path=path, names=_MODULES)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=120)
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    return [(name, is_package == "1", file) for name, is_package, file in lines]


def _compiled(file: str, source: bytes) -> bytes:
    return marshal.dumps(compile(source, file, "exec", dont_inherit=True))


def make(parent: Path) -> bytes:
    """Return the content of the file."""
    entries: dict[str, tuple[str, int, int, bool, int, int]] = {}
    codes = b""
    for name, is_package, file in _loaded([sysconfig.get_path("platlib"), str(parent)]):
        with open(file, "rb") as opened:
            status = os.fstat(opened.fileno())
            code = _compiled(file, opened.read()) if file.endswith(".py") else b""
        place = (len(codes), len(code))
        entries[name] = (file, status.st_mtime_ns, status.st_size, is_package, *place)
        codes += code
    start = _compiled(str(_BUNDLED), _BUNDLED.read_bytes())
    return MAGIC_NUMBER + start + marshal.dumps(entries) + codes


def main() -> None:
    """Write the file in one step, as somebody may be about to start."""
    file = Path(sys.argv[1]).absolute()
    made = file.with_suffix(f".{os.getpid()}")
    made.write_bytes(make(file.parent))
    made.rename(file)


if __name__ == "__main__":
    main()
