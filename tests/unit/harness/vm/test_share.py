"""Folders of the host for VMs under test: the words that make them, and what the guest is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyvirt.errors import ConfigError
from pyvirt.harness.guest import default
from pyvirt.harness.vm.config import CMDLINE, VmConfig, words


def made(tmp_path: Path, *share: str) -> tuple[list[str], str]:
    """Return the shares of the command line, and the guest's command line."""
    found = words(VmConfig(share=share), Path("/k"), Path("/i"), tmp_path)
    given = [found[at + 1] for at, word in enumerate(found) if word == "-share"]
    (append,) = [word for word in found if word.startswith("-append=")]
    return given, append.removeprefix("-append=")


def test_each_has_a_tag_that_the_guest_is_told(tmp_path: Path) -> None:
    given, append = made(tmp_path, "/a", "/b,,c,tag=data,readonly=on", "/c")
    assert given == ["/a,tag=share0", "/b,,c,tag=data,readonly=on", "/c,tag=share2"]
    assert append == f"{CMDLINE} pyvirt.share=share0,data,share2"


def test_a_path_is_no_member(tmp_path: Path) -> None:
    assert made(tmp_path, "/a,,tag=x")[0] == ["/a,,tag=x,tag=share0"]


def test_without_one_nothing_is_said(tmp_path: Path) -> None:
    assert made(tmp_path) == ([], CMDLINE)
    assert default.cmdline("quiet", ()) == "quiet"
    assert default.cmdline("quiet", ("a", "b")) == "quiet pyvirt.share=a,b"


def test_a_text_is_no_list() -> None:
    with pytest.raises(ConfigError, match="share '/a': give a list of texts"):
        VmConfig(share="/a")  # type: ignore[arg-type]
