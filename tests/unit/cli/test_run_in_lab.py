"""Disks and NICs of a guest that runs in the lab: checked before it boots; disks stay locked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pyvirt.cli import run_in_lab
from pyvirt.cli.options.incoming import open_snapshot
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config
from pyvirt.devices.disk import Disk

from ..refusal import refusal
from .options.test_incoming import snapshot

__all__ = ["snapshot"]  # a fixture


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 1 << 20)
    return path


def run(monkeypatch: pytest.MonkeyPatch, argv: list[str], lab: Any) -> int:
    """Run with `lab` in place of the nested lab, and a kernel that nobody looks at."""
    monkeypatch.setattr(run_in_lab, "_check", lambda _config: None)
    monkeypatch.setattr("pyvirt.harness.lab.run", lab)
    options = parse([*argv, "-kernel", "k", "-accel", "lab"])
    return run_in_lab.run(options, config(options), "asked for")


def test_an_image_is_locked_while_the_lab_has_it(
    monkeypatch: pytest.MonkeyPatch, image: Path
) -> None:
    commands = []

    def lab(command: list[str], **_: object) -> int:
        commands.append(command)
        assert "in use" in refusal(lambda: Disk(str(image)))
        return 5

    argv = ["-drive", f"id=a,file={image}", "-device", "virtio-blk-device,drive=a"]
    assert run(monkeypatch, argv, lab) == 5
    assert f"-drive=id=a,file={image}" in commands[0]
    assert "-device=virtio-blk-device,drive=a" in commands[0]
    Disk(str(image)).close()


def test_a_missing_image_is_refused_before_the_lab_boots(
    monkeypatch: pytest.MonkeyPatch, image: Path, tmp_path: Path
) -> None:
    def lab(_command: list[str], **_: object) -> int:
        raise AssertionError("the lab was started")

    argv = ["-disk", str(image), "-disk", str(tmp_path / "none.img")]
    assert "none.img: No such file" in refusal(lambda: run(monkeypatch, argv, lab))
    Disk(str(image)).close()


def test_the_same_image_twice_is_refused(monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    argv = ["-disk", str(image), "-disk", str(image)]
    message = refusal(lambda: run(monkeypatch, argv, lambda *_, **__: 0))
    assert "in use by another process or drive" in message
    readers = [f"-disk={image},readonly=on"] * 2
    assert run(monkeypatch, readers, lambda *_, **__: 0) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["-net", "tap0"],
        ["-netdev", "tap,id=n,ifname=tap0", "-device", "virtio-net-device,netdev=n"],
        ["-netdev", "stream,id=n,path=/run/switch"],
    ],
)
def test_a_nic_is_refused_before_the_lab_boots(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """The message names what was written, and not what it stands for."""

    def lab(_command: list[str], **_: object) -> int:
        raise AssertionError("the lab was started")

    message = refusal(lambda: run(monkeypatch, ["-net", "user", *words], lab))
    assert message.startswith(f"{' '.join(words[:2])}: this host's networks are not in the nested")
    assert message.endswith("or give -net user")


def test_passt_has_a_way_out_of_the_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def lab(command: list[str], **_: object) -> int:
        commands.append(command)
        return 0

    assert run(monkeypatch, ["-net", "user"], lab) == 0
    assert "-net=user" in commands[0]


def test_a_snapshot_is_restored_in_the_lab(monkeypatch: pytest.MonkeyPatch, snapshot: str) -> None:
    """Its files are there, and the lab has room for as much memory as it says."""
    ran: list[tuple[list[str], int]] = []

    def lab(command: list[str], *, memory_mib: int, **_: object) -> int:
        ran.append((command, memory_mib))
        return 0

    monkeypatch.setattr("pyvirt.harness.lab.run", lab)
    place = f"file:{snapshot.replace(',', ',,')},mapped=on"
    options = parse(["-incoming", place, "-accel", "lab"])
    incoming = open_snapshot(options)
    options.memory = 8 << 30
    assert run_in_lab.run(options, config(options), "asked for") == 0
    incoming.close()
    ((command, memory),) = ran
    assert f"-incoming={place}" in command
    assert memory > 8 << 10
