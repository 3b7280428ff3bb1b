"""The start-up path of `pyvirt run` imports what it must and nothing more.

Every module costs start-up time, which is budgeted. One that is missing from the list below is
to be imported where it is used, or argued for here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import pyvirt

STANDARD = {
    "__future__",
    "_collections_abc",
    "_stat",
    "_struct",
    "errno",
    "genericpath",
    "mmap",
    "os",
    "os.path",
    "posixpath",
    "select",
    "stat",
    "struct",
}
COMMANDS = {"main", "run", "options", "control", "daemon", "timeline"}
RUN = "import pyvirt.cli.main, pyvirt.cli.run"
MACHINE = "import pyvirt.vmm.machine, pyvirt.devices.serial"


def imported(tmp_path: Path, statement: str) -> set[str]:
    """Return the modules of an interpreter, started as the launcher does, after `statement`."""
    package = tmp_path / "pyvirt"
    if not package.exists():
        package.symlink_to(Path(pyvirt.__file__).parent)
    program = (
        f"import sys; sys.path += [{sysconfig.get_path('platlib')!r}, {str(tmp_path)!r}]\n"
        f"{statement}\nprint(*sys.modules, sep='\\n')"
    )
    command = [sys.executable, "-IS", "-c", program]
    environment = {"PATH": os.defpath}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    return set(result.stdout.split())


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return what `pyvirt run` imports beyond what a bare interpreter has."""
    folder = tmp_path_factory.mktemp("parent")
    return imported(folder, f"{RUN}; {MACHINE}") - imported(folder, "")


def test_the_run_command_is_what_is_looked_at(added: set[str]) -> None:
    assert {"pyvirt.cli.run", "pyvirt.vmm.machine", "_cffi_backend"} <= added


def test_standard_library(added: set[str]) -> None:
    standard = {name for name in added if name.partition(".")[0] in sys.stdlib_module_names}
    assert standard - STANDARD == set()


def test_no_other_package(added: set[str]) -> None:
    top = {name.partition(".")[0] for name in added}
    assert top - sys.stdlib_module_names == {"pyvirt", "_cffi_backend"}


def test_of_pyvirt_only_what_runs_a_guest(added: set[str]) -> None:
    ours = [name.split(".") for name in added if name.startswith("pyvirt.")]
    assert {name[1] for name in ours} == {"cli", "vmm", "devices", "native", "errors"}
    assert {name[2] for name in ours if name[1] == "cli" and name[2:]} == COMMANDS
    assert ["pyvirt", "vmm", "probe"] not in ours


def test_the_vm_is_begun_before_what_is_on_it_is_imported(tmp_path: Path) -> None:
    """The one takes about as long as the other, and they go on at the same time."""
    first = imported(tmp_path, RUN)
    later = imported(tmp_path, f"{RUN}; {MACHINE}") - first
    assert "pyvirt.vmm.groundwork" in first
    rooms = {"pyvirt.devices.virtio", "pyvirt.vmm.boot"}
    assert rooms | {"pyvirt.vmm.slots", "pyvirt.vmm.vcpu", "pyvirt.vmm.cpuid"} <= later
    assert len(later) > len([name for name in first if name.startswith("pyvirt")])


def test_nothing_is_imported_with_the_command_itself(tmp_path: Path) -> None:
    names = imported(tmp_path, "import pyvirt.cli.main") - imported(tmp_path, "")
    ours = {name for name in names if name.startswith("pyvirt")}
    assert ours == {"pyvirt", "pyvirt.cli", "pyvirt.cli.main", "pyvirt.errors"}
