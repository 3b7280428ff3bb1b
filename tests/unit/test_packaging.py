"""What a wheel holds: every package of the monitor, and nothing that only the checkout needs."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest
from pyvirt.cli import main

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = {"tests", "benches", "build"}


def settings() -> dict[str, dict[str, list[str]]]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tool: dict[str, dict[str, dict[str, list[str]]]] = tomllib.loads(text)["tool"]
    return tool["setuptools"]


def test_every_package_is_listed() -> None:
    found = {"pyvirt"}
    for file in ROOT.glob("[a-z]*/**/__init__.py"):
        parts = file.parent.relative_to(ROOT).parts
        if parts[0] not in NOT_SHIPPED:
            found.add(".".join(("pyvirt", *parts)))
    assert set(settings()["packages"]) == found


def test_every_file_beside_the_modules_is_listed() -> None:
    listed = settings()["package-data"]
    for folder in ("cli", "harness/agent", "harness/guest", "harness/lab"):
        patterns = listed["pyvirt." + folder.replace("/", ".")]
        for file in (ROOT / folder).iterdir():
            if file.is_file() and file.suffix not in {".py", ".pyc"}:
                assert any(file.match(pattern) for pattern in patterns), file


def test_a_source_distribution_has_what_the_c_files_include() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    assert "recursive-include native *.h *.cdef" in manifest


def test_manual_pages_and_completions_are_made_of_what_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """setup.py puts them into a wheel: the page of what it is that is installed."""
    spec = importlib.util.spec_from_file_location("pyvirt_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyvirt").symlink_to(ROOT)
    module.make(package, tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in (tmp_path / "share").rglob("*.*")}
    assert {"share/man/man1/pyvirt.1", "share/man/man1/pyvirt-run.1"} <= found
    for name, words in module.PRINTED.items():
        assert main.dispatch(words.split()) == 0
        assert (tmp_path / name).read_text(encoding="utf-8") == capsys.readouterr().out
