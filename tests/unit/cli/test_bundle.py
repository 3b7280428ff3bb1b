"""The file that a start has its modules from: they are the same, and no start needs it."""

from __future__ import annotations

import importlib
import marshal
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import pytest
import pyvirt
from pyvirt.cli import bundle, bundled, launcher

SITE = Path(sysconfig.get_path("platlib"))
# Shows of each module of ours, and of cffi's, where it is from, and whether that was the file.
SHOWN = """
import pyvirt.cli.run, pyvirt.vmm.machine, inspect
for name, module in sorted(sys.modules.items()):
    if name.startswith(("pyvirt", "_cffi")) and hasattr(module, "__file__"):
        spec = module.__spec__
        kind = type(spec.loader)
        is_ours = "bundled" in kind.__module__ or kind.__name__ == "ExtensionFileLoader"
        where = (module.__file__, spec.origin, spec.has_location, getattr(module, "__path__", ""))
        print(name, is_ours, *where, spec.parent, getattr(spec.loader, "path", ""), sep="|")
print(inspect.getsource(pyvirt.cli.run.main).splitlines()[0])
print(inspect.getsourcefile(pyvirt.errors))
try:
    pyvirt.cli.run.parse(["x"])
except Exception as error:
    import traceback
    print(traceback.format_exc())
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package and the file."""
    parent = tmp_path_factory.mktemp("parent")
    (parent / "pyvirt").symlink_to(Path(pyvirt.__file__).parent)
    subprocess.run(
        [sys.executable, bundle.__file__, parent / launcher.BUNDLE], check=True, timeout=120
    )
    return parent


def start(parent: Path, *, main: str = "", words: tuple[str, ...] = ()) -> str:
    """Return what the start script prints, or does with `main` in place of pyvirt's."""
    script = launcher.script(Path(sys.executable), SITE, parent)
    if main:
        script = script.partition("from pyvirt.cli.main")[0] + main
    path = parent / "start"
    path.write_text(script, encoding="utf-8")
    command = [sys.executable, "-IS", str(path), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"LC_ALL": "C.UTF-8"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_modules_are_as_if_found_one_by_one(made: Path) -> None:
    with_it = start(made, main=SHOWN)
    hidden = made / launcher.BUNDLE
    content = hidden.read_bytes()
    hidden.unlink()
    without = start(made, main=SHOWN)
    hidden.write_bytes(content)
    assert with_it.replace("|True|", "|False|") == without.replace("|True|", "|False|")
    ours = [line for line in with_it.splitlines() if line.startswith("pyvirt") and "|" in line]
    assert len(ours) > 30
    assert [line for line in ours if "|True|" not in line] == []
    assert [line for line in without.splitlines() if "|False|" in line] != []


@pytest.mark.parametrize(
    "content",
    [b"", MAGIC_NUMBER[:3], b"\0\0\0\0", MAGIC_NUMBER, MAGIC_NUMBER + b"\xff" * 64],
    ids=["empty", "short", "another Python's", "cut off", "garbage"],
)
def test_a_file_that_is_none_is_left_out(made: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pyvirt").symlink_to(Path(pyvirt.__file__).parent)
    (tmp_path / launcher.BUNDLE).write_bytes(content)
    assert start(tmp_path, words=("version",)) == f"pyvirt {pyvirt.__version__}\n"


@pytest.mark.parametrize("length", [10, 1000])
def test_a_file_that_was_cut_off_is_left_out(made: Path, tmp_path: Path, length: int) -> None:
    content = (made / launcher.BUNDLE).read_bytes()
    test_a_file_that_is_none_is_left_out(made, tmp_path, content[:length])


def test_no_file_and_a_folder_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "pyvirt").symlink_to(Path(pyvirt.__file__).parent)
    told = f"pyvirt {pyvirt.__version__}\n"
    assert start(tmp_path, words=("version",)) == told
    (tmp_path / launcher.BUNDLE).mkdir()
    assert start(tmp_path, words=("version",)) == told


def finder(path: Path) -> bundled.Finder:
    """Return one that has the module `made` from a file as it is now, with code of its own."""
    status = path.stat()
    code = marshal.dumps(compile("value = 'from the bundle'", str(path), "exec"))
    entry = (str(path), status.st_mtime_ns, status.st_size, False, 3, len(code))
    found = bundled.Finder({"made": entry})
    found.codes = memoryview(b"..." + code + b"...")
    return found


def edit(path: Path) -> None:
    path.write_text("value = 'edited with another size'\n")


def edit_within_size(path: Path) -> None:
    path.write_text("value = 'from-the source'\n")
    os.utime(path, ns=(0, 1))


@pytest.mark.parametrize("change", [edit, edit_within_size, Path.unlink])
def test_a_module_that_has_changed_is_not_found(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "made.py"
    path.write_text("value = 'from the source'\n")
    assert finder(path).find_spec("made") is not None
    stale = finder(path)
    change(path)
    assert stale.find_spec("made") is None


def test_a_module_is_found_once_and_then_reloaded_from_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "made.py"
    path.write_text("value = 'from the source'\n")
    found = finder(path)
    monkeypatch.setattr(sys, "meta_path", [found, *sys.meta_path])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        made = importlib.import_module("made")
        assert made.value == "from the bundle"
        assert found.find_spec("made") is None
        assert importlib.reload(made).value == "from the source"
    finally:
        sys.modules.pop("made", None)


def test_an_extension_is_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "made.so"
    path.write_bytes(b"")
    status = path.stat()
    entry = (str(path), status.st_mtime_ns, status.st_size, False, 0, 0)
    spec = bundled.Finder({"made": entry}).find_spec("made")
    assert spec is not None
    assert (type(spec.loader), spec.origin) == (ExtensionFileLoader, str(path))
