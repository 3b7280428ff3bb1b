"""A kernel's configuration, from wherever it is told."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.harness.guest import kconfig
from pyvirt.harness.guest.kernel import Kernel, find

TEXT = (
    '#\n# comment\n#\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D="a=b"\nCONFIG_E=17\n'
)
OPTIONS = {"CONFIG_A": "y", "CONFIG_B": "m", "CONFIG_D": '"a=b"', "CONFIG_E": "17"}
RELEASE = "6.1.0-mine"


def kernel(folder: Path, content: bytes = b"") -> Kernel:
    """Return a kernel whose ELF file holds `content`, in the folder's arch/x86/boot."""
    image = folder / "arch" / "x86" / "boot" / "vmlinux"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(b"\x7fELF Linux version " + RELEASE.encode() + b" " + content)
    return find(str(image))


def test_lines() -> None:
    assert kconfig.parse(TEXT) == OPTIONS


def test_embedded(tmp_path: Path) -> None:
    packed = b"before IKCFG_ST" + gzip.compress(TEXT.encode()) + b"IKCFG_ED behind"
    assert kernel(tmp_path, packed).config == OPTIONS


@pytest.mark.parametrize(
    "where", [f"arch/x86/boot/config-{RELEASE}", ".config", f"lib/modules/{RELEASE}/config"]
)
def test_files(where: str, tmp_path: Path) -> None:
    modules = tmp_path / "arch/x86/lib/modules" / RELEASE
    if where.startswith("lib"):
        where = f"arch/x86/{where}"
        modules.mkdir(parents=True)
        (modules / "modules.dep").touch()
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_text(TEXT)
    assert kernel(tmp_path).config == OPTIONS


def test_an_installed_file_goes_before_the_build_tree(tmp_path: Path) -> None:
    (tmp_path / ".config").write_text("CONFIG_OTHER=y\n")
    (tmp_path / "arch/x86/boot").mkdir(parents=True)
    (tmp_path / f"arch/x86/boot/config-{RELEASE}").write_text(TEXT)
    assert kernel(tmp_path).config == OPTIONS


def test_nothing_tells(tmp_path: Path) -> None:
    assert kernel(tmp_path).config is None


@pytest.mark.parametrize("rest", [b"", b"garbage", gzip.compress(TEXT.encode(), mtime=0)[:30]])
def test_damaged(rest: bytes) -> None:
    text = kconfig.embedded(b"IKCFG_ST" + rest)
    assert text is None or TEXT.startswith(text)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    kconfig.embedded(b"IKCFG_ST" + data)
