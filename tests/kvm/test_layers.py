"""Snapshots of what has changed since another: they go on from that, and are refused without it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.cli import main
from pyvirt.errors import KvmError, PyvirtError, StateError
from pyvirt.vmm.execution import PAUSED
from pyvirt.vmm.log import Log
from pyvirt.vmm.memory import GuestMemory
from pyvirt.vmm.snapshot import state_file
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


def refused(restored: Restored, folder: Path) -> str:
    with pytest.raises(StateError) as info:
        restored.make("keep", folder)
    message = str(info.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


@pytest.mark.any_kvm
def test_without_its_parent_it_is_refused(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    folder = layered(machine, restored, tmp_path)
    link = folder / "parent"
    mend = f"let {link} be a link to the snapshot that it goes on from: ln -sfn DIR {link}"
    for place in ("first", "third", "nowhere"):
        link.unlink()
        link.symlink_to(tmp_path / place)
        what = "No such file or directory" if place == "nowhere" else "is another snapshot"
        assert refused(restored, folder) == f"{link}: {what}; {mend}"
    link.unlink()
    link.symlink_to("../second")
    other = tmp_path / "second/memory"
    kept = other.read_bytes()
    shutil.copy(tmp_path / "first/memory", other)
    assert f"{link}/memory: is of another snapshot" in refused(restored, folder)
    other.write_bytes(kept[:-1])
    assert f"{link}/memory: is of another snapshot" in refused(restored, folder)
    other.write_bytes(kept)
    state = tmp_path / "second/state"
    damaged = bytearray(state.read_bytes())
    damaged[-5] ^= 1
    state.write_bytes(damaged)
    assert refused(restored, folder) == f"{link}: state: is damaged, by its checksum; {mend}"


@pytest.mark.any_kvm
def test_not_without_a_snapshot_that_it_was_restored_from(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    first = saved(machine, tmp_path / "first")
    whole = restored.make("keep", tmp_path / "first", mapped=False)
    begun_anew = restored.make("keep", tmp_path / "first")
    begun_anew.start()
    begun_anew.reset()
    for guest in (first, whole, begun_anew):
        with pytest.raises(PyvirtError, match=r"has no memory of any; write all of it, without"):
            origin(guest)
    second = restored.make("keep", tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(PyvirtError, match=r"that is there no more; write all of it, without"):
        origin(second)


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
def test_no_parent_does_more_than_be_refused(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    saved(machine, tmp_path / "first")
    folder = tmp_path / "second"
    save_changes(restored.make("keep", tmp_path / "first"), folder)
    body = (folder / "state").read_bytes().split(b"\n", 1)[1]
    pages = len(json.loads(body)["parent"]["pages"])
    values: st.SearchStrategy[Any] = (
        st.none()
        | st.integers()
        | st.text("0123456789abcdef", max_size=34)
        | st.binary(min_size=pages // 2, max_size=pages // 2).map(bytes.hex)
        | st.dictionaries(st.sampled_from(["snapshot", "pages", "x"]), st.text(max_size=4))
    )

    @settings(max_examples=40, deadline=None)
    @given(st.sampled_from(["parent", "snapshot", "pages"]), values)
    def check(name: str, value: Any) -> None:
        state = json.loads(body)
        del state["pyvirt"]
        if name == "parent":
            state["parent"] = value
        else:
            state["parent"][name] = value
        (folder / "state").write_bytes(state_file.encode(state))
        with contextlib.suppress(StateError, KvmError):
            restored.make("keep", folder)
        restored.close()

    check()


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
