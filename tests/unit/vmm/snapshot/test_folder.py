"""The folder of a snapshot: whole, or as it was."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
from pyvirt.errors import BackendError
from pyvirt.vmm.snapshot.folder import Folder

from ...refusal import unprivileged

if TYPE_CHECKING:
    from pathlib import Path


def memory(fd: int) -> None:
    os.write(fd, b"memory")


def write(path: Path) -> None:
    Folder(str(path)).write(memory, lambda: b"state")


def refusal(path: Path) -> str:
    with pytest.raises(BackendError) as info:
        Folder(str(path)).check()
    assert "\n" not in str(info.value)
    with pytest.raises(BackendError) as later:
        write(path)
    assert str(later.value) == str(info.value)
    return str(info.value)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("is_there", [False, True])
def test_a_new_or_an_empty_one(tmp_path: Path, is_there: bool) -> None:
    path = tmp_path / "snapshot"
    if is_there:
        path.mkdir(0o755)
    Folder(str(path)).check()
    write(path)
    assert content(path) == {"memory": b"memory", "state": b"state"}
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}
    assert path.stat().st_mode & 0o777 == (0o755 if is_there else 0o700)


def test_one_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    assert refusal(tmp_path) == f"{tmp_path}: is not empty; name a new folder, or empty this one"
    assert os.listdir(tmp_path) == [".hidden"]


def test_places_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"{file}: Not a directory" in refusal(file)
    assert "No such file or directory" in refusal(tmp_path / "a" / "b")


def test_one_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with unprivileged(), pytest.raises(BackendError, match="Permission denied; name a folder"):
        write(tmp_path / "snapshot")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("where", ["memory", "overlay-3", "state"])
def test_nothing_half_made_stays(tmp_path: Path, is_there: bool, where: str) -> None:
    path = tmp_path / "snapshot"
    if is_there:
        path.mkdir()

    def fail(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(name: str, fd: int) -> None:
        memory(fd)
        if where == name:
            fail()

    target = Folder(str(path))
    target.overlays = {slot: partial(fill, f"overlay-{slot}") for slot in (1, 3, 5)}
    with pytest.raises(BackendError, match="No space left on device; name a folder"):
        target.write(partial(fill, "memory"), fail)
    assert path.exists() == is_there
    assert not is_there or not os.listdir(path)


def test_a_state_is_there_only_when_all_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    rename = os.rename

    def look(source: str, target: str) -> None:
        rename(source, target)
        seen.append(sorted(os.listdir(tmp_path)))

    monkeypatch.setattr(os, "rename", look)
    target = Folder(str(tmp_path))
    target.overlays[7] = memory
    target.write(memory, lambda: b"state")
    assert seen == [
        ["memory", "overlay-7.part", "state.part"],
        ["memory", "overlay-7", "state.part"],
        ["memory", "overlay-7", "state"],
    ]
