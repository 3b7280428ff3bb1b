"""Snapshots of what has changed since another are refused without it, and with words of others."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.errors import KvmError, PyvirtError, StateError
from pyvirt.vmm.snapshot import state_file
from pyvirt.vmm.snapshot.layers import origin

from .conftest import Make
from .test_layers import layered, save_changes
from .test_snapshot import Restored, restored, saved

__all__ = ["restored"]  # a fixture

pytestmark = pytest.mark.any_kvm


def refused(restored: Restored, folder: Path) -> str:
    with pytest.raises(StateError) as info:
        restored.make("keep", folder)
    message = str(info.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


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


def test_not_without_a_snapshot_that_it_was_restored_from(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    first = saved(machine, tmp_path / "first")
    whole = restored.make("keep", tmp_path / "first", mapped=False)
    begun_anew = restored.make("keep", tmp_path / "first")
    begun_anew.reset()
    for guest in (first, whole, begun_anew):
        with pytest.raises(PyvirtError, match=r"has no memory of any; write all of it, without"):
            origin(guest)
    second = restored.make("keep", tmp_path / "first")
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(PyvirtError, match=r"that is there no more; write all of it, without"):
        origin(second)


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
