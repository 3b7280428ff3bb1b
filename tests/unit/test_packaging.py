"""What a wheel holds: every package of the monitor, and nothing that only the checkout needs."""

from __future__ import annotations

import tomllib
from pathlib import Path

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
    for folder in ("harness/agent", "harness/guest", "harness/lab"):
        patterns = listed["pyvirt." + folder.replace("/", ".")]
        for file in (ROOT / folder).iterdir():
            if file.is_file() and file.suffix not in {".py", ".pyc"}:
                assert any(file.match(pattern) for pattern in patterns), file


def test_a_source_distribution_has_what_the_c_files_include() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    assert "recursive-include native *.h *.cdef" in manifest
