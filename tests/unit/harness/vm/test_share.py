"""Folders of the host for VMs under test: the words that make them, and what the guest is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyvirt.errors import ConfigError
from pyvirt.harness.guest import default, hostroot
from pyvirt.harness.vm.config import CMDLINE, VmConfig, words


def made(*share: str) -> tuple[list[str], str]:
    """Return the shares of the command line, and the guest's command line."""
    found = words(VmConfig(share=share), Path("/k"), Path("/i"))
    given = [found[at + 1] for at, word in enumerate(found) if word == "-share"]
    (append,) = [word for word in found if word.startswith("-append=")]
    return given, append.removeprefix("-append=")


def test_each_has_a_tag_that_the_guest_is_told() -> None:
    given, append = made("/a", "/b,,c,tag=data,readonly=on", "/c")
    assert given == ["/a,tag=share0", "/b,,c,tag=data,readonly=on", "/c,tag=share2"]
    assert append == f"{CMDLINE} pyvirt.share=share0,data,share2"


def test_a_path_is_no_member() -> None:
    assert made("/a,,tag=x")[0] == ["/a,,tag=x,tag=share0"]


def test_without_one_nothing_is_said() -> None:
    assert made() == ([], CMDLINE)
    assert default.cmdline("quiet", ()) == "quiet"
    assert default.cmdline("quiet", ("a", "b")) == "quiet pyvirt.share=a,b"


def test_a_text_is_no_list() -> None:
    with pytest.raises(ConfigError, match="share '/a': give a list of texts"):
        VmConfig(share="/a")  # type: ignore[arg-type]


def test_a_root_is_told_with_the_modules() -> None:
    config = VmConfig(root="/", share=("/a",))
    found = words(config, Path("/k"), Path("/i"), modules=Path("/lib/modules/6.1.7-fake"))
    assert found[found.index("-root") + 1] == "/"
    (append,) = [word for word in found if word.startswith("-append=")]
    lib = Path("/lib").resolve()
    assert append == (
        f"-append={CMDLINE} pyvirt.overlay=pyvirt-root pyvirt.modules={lib}/modules/6.1.7-fake "
        "pyvirt.share=share0"
    )


def test_roots_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vm: root /nowhere: no such folder"):
        VmConfig(root="/nowhere")
    with pytest.raises(ConfigError, match=r"it has no /bin/sh"):
        VmConfig(root=str(tmp_path))
    with pytest.raises(ConfigError, match=r"vm: root /: not with files; put\(\) them there"):
        VmConfig(root="/", files={"/a": b""})


def test_where_folders_of_the_host_are() -> None:
    assert hostroot.inside("/", "/usr/bin/../lib") == "/usr/lib"
    assert hostroot.inside("/usr", "/usr/lib") == "/lib"
    assert hostroot.inside("/usr", "/etc") == "/"
    assert hostroot.inside("/", "/") == hostroot.inside("/", "/proc/sys") == "/"
