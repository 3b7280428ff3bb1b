"""Snapshots of what has changed since another: they go on from that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from pyvirt.cli import main
from pyvirt.vmm.execution import PAUSED
from pyvirt.vmm.log import Log
from pyvirt.vmm.memory import GuestMemory
from pyvirt.vmm.snapshot.flatten import flatten
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.layers import origin
from pyvirt.vmm.snapshot.save import Saver
from pyvirt.vmm.snapshot.template import read_folder

from .conftest import Make
from .support import BUFFER, MEMORY, Guest
from .test_life import wait_until
from .test_qmp_run import Monitored
from .test_snapshot import COUNT, FLAG, KEPT, Restored, restored, saved

__all__ = ["restored"]  # a fixture

FAR = 96 << 20  # where nobody has written before
PAGE = 4096


def save_changes(guest: Guest, folder: Path) -> int:
    """Return how many bytes of memory were written."""
    since = origin(guest)
    saver = Saver(guest, Log())
    saver.start(Folder(str(folder), since.path), since)
    saver.wait()
    assert (saver.status, saver.error) == ("completed", "")
    assert guest.state == PAUSED
    return saver.progress()[2]


def go_on(guest: Guest) -> None:
    before = guest.read_words(COUNT, 1)[0]
    guest.start()
    wait_until(lambda: guest.read_words(COUNT, 1)[0] > before + 100, "the guest goes on")
    guest.pause()


def layered(machine: Make, restored: Restored, tmp_path: Path) -> Path:
    """Return the newest of three snapshots that go on from one another."""
    saved(machine, tmp_path / "first", flag=0)
    second = restored.make("keep", tmp_path / "first")
    go_on(second)
    second.write_words(FAR, 2)
    second.write_words(BUFFER, 0)
    save_changes(second, tmp_path / "second")
    third = restored.make("keep", tmp_path / "second")
    go_on(third)
    third.write_words(FAR + PAGE, 3)
    third.write_words(FLAG, 1)
    save_changes(third, tmp_path / "third")
    return tmp_path / "third"


@pytest.mark.parametrize("mapped", [True, pytest.param(False, marks=pytest.mark.any_kvm)])
def test_the_newest_is_the_whole_machine(
    machine: Make, restored: Restored, tmp_path: Path, mapped: bool
) -> None:
    folder = layered(machine, restored, tmp_path)
    was = restored.made[-1]
    for name in ("second", "third"):
        assert (tmp_path / name / "memory").stat().st_blocks * 512 < 16 * PAGE
        assert os.readlink(tmp_path / name / "parent").startswith("../")
    again = restored.make("keep", folder, mapped=mapped)
    assert again.read_words(FAR, 1) + again.read_words(FAR + PAGE, 1) == [2, 3]
    assert again.read_words(COUNT, 1) == was.read_words(COUNT, 1)
    assert again.run() == ("debug-exit", KEPT)


@pytest.mark.any_kvm
def test_only_what_changed_is_written(machine: Make, restored: Restored, tmp_path: Path) -> None:
    saved(machine, tmp_path / "first")
    second = restored.make("keep", tmp_path / "first")
    assert second.memory
    # To read makes nothing the machine's own.
    second.memory.read(0, 16 << 20)
    written = save_changes(second, tmp_path / "second")
    assert written <= 4 * PAGE
    second.write_words(FAR, *range(1, 1024))
    assert save_changes(second, tmp_path / "third") == written + 2 * PAGE
    # Its parent is the one that it was restored from, not the one that was written since.
    assert os.readlink(tmp_path / "third/parent") == "../first"


@pytest.mark.any_kvm
def test_pages_that_became_zeroes_are_zeroes(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    guest = saved(machine, tmp_path / "before", flag=0)
    guest.write_words(BUFFER, *[7] * 1024)
    saver = Saver(guest, Log())
    saver.start(Folder(str(tmp_path / "first")))
    saver.wait()
    second = restored.make("keep", tmp_path / "first")
    second.write_words(BUFFER, *[0] * 1024)
    save_changes(second, tmp_path / "second")
    for mapped in (True, False):
        again = restored.make("keep", tmp_path / "second", mapped=mapped)
        assert again.read_words(BUFFER, 1024) == [0] * 1024


@pytest.mark.any_kvm
def test_made_one_it_needs_no_other(
    machine: Make, restored: Restored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = layered(machine, restored, tmp_path)
    assert main.dispatch(["snapshot", "flatten", str(folder), str(tmp_path / "whole")]) == 0
    assert "MiB of memory are not zeroes" in capsys.readouterr().out
    flatten(str(tmp_path / "second"), str(tmp_path / "other second"))
    for name in ("first", "second"):
        shutil.rmtree(tmp_path / name)
    whole = restored.make("keep", tmp_path / "whole")
    assert whole.read_words(FAR, 1) == [2]
    assert whole.run() == ("debug-exit", KEPT)
    assert sorted(os.listdir(tmp_path / "whole")) == ["memory", "state"]
    # It stands for what it was made of.
    (folder / "parent").unlink()
    (folder / "parent").symlink_to(tmp_path / "other second")
    assert restored.make("keep", folder).run() == ("debug-exit", KEPT)


@pytest.mark.any_kvm
def test_a_template_is_whole(machine: Make, restored: Restored, tmp_path: Path) -> None:
    folder = layered(machine, restored, tmp_path)
    was = restored.made[-1]
    with closing(read_folder(str(folder))) as template:
        for name in ("first", "second", "third"):
            shutil.rmtree(tmp_path / name)
        with closing(GuestMemory(MEMORY, content=template.incoming())) as memory:
            for address in (FAR, FAR + PAGE, BUFFER, COUNT):
                assert memory.read(address, PAGE) == was.read(address, PAGE)


@pytest.mark.any_kvm
def test_by_qmp_and_by_the_command(
    kernel: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Monitored(kernel("spin")) as guest:
        assert main.dispatch(["snapshot", str(guest.path), str(tmp_path / "first")]) == 0
        assert main.dispatch(["qmp", str(guest.path), "quit"]) == 0
    with Monitored(kernel("spin"), "-incoming", f"file:{tmp_path}/first") as guest:
        words = ["snapshot", "-incremental", "-cont", str(guest.path), str(tmp_path / "second")]
        assert main.dispatch(words) == 0
        assert "memory have changed and are not zeroes" in capsys.readouterr().out
        assert guest.client.execute("query-status")["running"]
    with Monitored(kernel("spin"), "-incoming", f"file:{tmp_path}/second") as guest:
        assert guest.client.execute("query-status")["running"]
