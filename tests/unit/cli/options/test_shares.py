"""The option that shares a folder: what it makes, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config
from pyvirt.devices.vhost_user.fs import FsConfig
from pyvirt.devices.vhost_user.virtiofsd import Virtiofsd

from ...refusal import refusal


def made(*words: str) -> list[FsConfig]:
    found = list(config(parse(list(words))).devices)
    assert all(isinstance(one, FsConfig) for one in found)
    return found  # type: ignore[return-value]


def back_end(one: FsConfig) -> Virtiofsd:
    assert isinstance(one.back_end, Virtiofsd)
    return one.back_end


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (one,) = made("-share", ".")
    assert (one.id, one.tag, back_end(one).where) == ("share0", b"share0", f"-share {tmp_path}")
    assert parse(["-share", "."]).shares == ("share0",)
    assert config(parse(["-share", "."])).share  # memory that virtiofsd can see


def test_tags_are_given_or_counted(tmp_path: Path) -> None:
    folders = ["", ",tag=share0", "", ",tag=x.y_z-1,readonly=on", ""]
    words = [w for members in folders for w in ("-share", f"{tmp_path}{members}")]
    found = made(*words)
    assert [one.id for one in found] == ["share1", "share0", "share2", "x.y_z-1", "share3"]
    assert [back_end(one)._readonly for one in found] == [False, False, False, True, False]


def test_commas_in_a_path_are_doubled(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a=b").mkdir()
    assert back_end(made("-share", f"{tmp_path}/a,,b")[0])._folder == str(tmp_path / "a,b")
    assert back_end(made("-share", f"path={tmp_path}/a=b")[0])._folder == str(tmp_path / "a=b")
    assert "a comma within a value is written twice" in refusal(
        lambda: parse(["-share", f"{tmp_path}/a,b"])
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-share", "/nowhere"], "-share /nowhere: no such folder; name one that is there"),
        (["-share", "/etc/passwd"], "-share /etc/passwd: not a folder"),
        (["-share", ""], "no such folder"),
        (["-share=tag=x"], "-share: names no folder"),
        (["-share", "/,tag="], "not a tag; give 1 to 36 letters"),
        (["-share", f"/,tag={'x' * 37}"], "not a tag; give 1 to 36 letters"),
        (["-share", "/,tag=a b"], "not a tag"),
        (["-share", "/,tag=.."], "not a tag"),
        (["-share", "/,tag=a/b"], "not a tag"),
        (["-share", "/,readonly=maybe"], "not one of on"),
        (["-share", "/,size=1"], "not understood here"),
        (["-share", "/,tag=a", "-share", "/tmp,tag=a"], "-share tag=a: two have it"),
        (
            [
                *("-chardev", "socket,id=c,path=/c", "-share", "/,tag=a"),
                *("-device", "vhost-user-fs-device,chardev=c,tag=a"),
            ],
            "-share tag=a: two have it",
        ),
    ],
)
def test_what_cannot_be(words: list[str], said: str) -> None:
    assert said in refusal(lambda: parse(words))


def test_a_tag_that_a_device_has_is_not_given_again() -> None:
    words = [
        *("-chardev", "socket,id=c,path=/c", "-share", os.sep),
        *("-device", "vhost-user-fs-device,chardev=c,tag=share0"),
    ]
    assert parse(words).shares == ("share1",)
