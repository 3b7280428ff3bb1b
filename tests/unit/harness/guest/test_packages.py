"""Package records and the ways in which apt disappoints; apt itself is a script of the test's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyvirt.errors import BackendError, ConfigError
from pyvirt.harness.guest import packages

RECORD = """\
Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (6.1.192+2)
Version: 1:6.1.192-2
Architecture: amd64
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), kmod | other (>> 1), tail
Description-en: Linux for clouds
 Size: 7 is a line of the description
Size: 1504
"""


def test_record_is_parsed() -> None:
    assert packages.parse(RECORD) == packages.Package(
        name="linux-image-cloud-amd64",
        version="1:6.1.192-2",
        architecture="amd64",
        depends=("linux-image-6.1.0-56-cloud-amd64", "kmod", "tail"),
        size=1504,
    )


def test_slug_is_a_file_name() -> None:
    package = packages.parse(RECORD)
    assert package is not None
    assert package.slug == "linux-image-cloud-amd64-1%3a6.1.192-2-amd64"


@pytest.mark.parametrize("shown", ["", "Package: a\n", "N: no such package\n"])
def test_no_record(shown: str) -> None:
    assert packages.parse(shown) is None


class Tools:
    """Stand-ins for apt and dpkg-deb on PATH, and a log of how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()

    def add(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.log}\n{body}\n')
        path.chmod(0o755)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    folder = tmp_path / "bin"
    folder.mkdir()
    tools = Tools(folder)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("PYVIRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    tools.add("apt-cache", f"cat <<'END'\n{RECORD}END")
    tools.add("apt-get", 'case "$*" in *download*) echo deb >a_1_amd64.deb;; esac')
    tools.add("dpkg-deb", 'mkdir -p "$3/boot"; cp "$2" "$3/boot/kernel"')
    return tools


@pytest.fixture
def package(tools: Tools) -> packages.Package:
    return packages.candidate("linux-image-cloud-amd64")


def test_package_is_fetched_once(package: packages.Package, tools: Tools, tmp_path: Path) -> None:
    place = packages.unpacked(package)
    assert place == tmp_path / f"cache/deb-{package.slug}"
    assert [str(p.relative_to(place)) for p in place.rglob("*")] == ["boot", "boot/kernel"]
    assert packages.unpacked(package) == place
    downloads = [call for call in tools.calls() if call.startswith("apt-get")]
    assert len(downloads) == 1
    assert downloads[0].endswith("download linux-image-cloud-amd64=1:6.1.192-2")
    assert "-qq" in downloads[0]


def test_failed_fetch_tells_why_and_leaves_nothing(
    package: packages.Package, tools: Tools, tmp_path: Path
) -> None:
    tools.add("apt-get", "echo 'W: a warning' >&2; echo 'E: 404 Not Found' >&2; exit 100")
    with pytest.raises(packages.FetchError, match=r"^apt-get download failed: E: 404 Not Found$"):
        packages.unpacked(package)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["locks"]


def test_damaged_package_leaves_nothing(
    package: packages.Package, tools: Tools, tmp_path: Path
) -> None:
    tools.add("dpkg-deb", 'touch "$3/half"; echo "dpkg-deb: error: not a deb" >&2; exit 2')
    with pytest.raises(BackendError, match="not a deb"):
        packages.unpacked(package)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["locks"]


def test_empty_lists_are_updated_by_root(tools: Tools, tmp_path: Path) -> None:
    tools.add("apt-cache", f"[ -e {tmp_path}/fresh ] || exit 100\ncat <<'END'\n{RECORD}END")
    tools.add("apt-get", f"touch {tmp_path}/fresh")
    assert packages.candidate("linux-image-cloud-amd64").size == 1504
    assert [call.split()[-1] for call in tools.calls() if call.startswith("apt-get")] == ["update"]


def test_empty_lists_are_told_to_others(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    tools.add("apt-cache", "exit 100")
    with pytest.raises(ConfigError, match=r"package thing .*; run: sudo apt-get update$"):
        packages.candidate("thing")
    assert not any(call.startswith("apt-get") for call in tools.calls())


def test_package_that_no_list_knows(tools: Tools) -> None:
    tools.add("apt-cache", "exit 100")
    with pytest.raises(ConfigError, match=r"package thing is not in .*, updated just now"):
        packages.candidate("thing")


def test_machine_without_apt(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendError, match=r"no Debian package client to fetch thing with.*path"):
        packages.candidate("thing")


def test_old_lists_are_updated_once(tools: Tools) -> None:
    attempts = []

    def action() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise packages.FetchError("404")
        return "done"

    assert packages.with_fresh_lists(action) == "done"
    assert [call.split()[-1] for call in tools.calls()] == ["update"]


def test_old_lists_of_others_stay(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def action() -> str:
        raise packages.FetchError("404")

    with pytest.raises(packages.FetchError, match="404"):
        packages.with_fresh_lists(action)
    assert tools.calls() == []


def test_other_failures_are_not_tried_again(tools: Tools) -> None:
    attempts = []

    def action() -> str:
        attempts.append(1)
        raise BackendError("the compiler failed")

    with pytest.raises(BackendError, match="compiler"):
        packages.with_fresh_lists(action)
    assert len(attempts) == 1
    assert tools.calls() == []
