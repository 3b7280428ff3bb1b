"""The micro kernel's options and recipe; building it is for the tests that boot it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyvirt.errors import BackendError
from pyvirt.harness.guest import micro
from pyvirt.harness.guest.tool import PACKAGES

CONFIG = """\
#
# Automatically generated file; DO NOT EDIT.
#
CONFIG_A=y
# CONFIG_B is not set
CONFIG_NAME="-x"
CONFIG_N=64
"""


def test_held_options_pass() -> None:
    micro.check_config(
        '# a comment\n\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_NAME="-x"\n', CONFIG
    )
    micro.check_config("# CONFIG_AWAY is not set\n", CONFIG)


@pytest.mark.parametrize(
    ("fragment", "named"),
    [
        ("CONFIG_B=y", "CONFIG_B=y"),
        ("CONFIG_GONE=y", "CONFIG_GONE=y"),
        ("CONFIG_N=6", "CONFIG_N=6"),
        ("CONFIG_A=m", "CONFIG_A=m"),
        ("# CONFIG_A is not set", "CONFIG_A"),
        ("CONFIG_B=y\nCONFIG_A=y\nCONFIG_GONE=y", "CONFIG_B=y, CONFIG_GONE=y"),
    ],
)
def test_lost_options_are_named(fragment: str, named: str) -> None:
    with pytest.raises(BackendError, match=rf"does not hold {named};"):
        micro.check_config(fragment, CONFIG)


def test_fragment_is_well_formed() -> None:
    """Each line is a comment or an option, each option is there once."""
    options = []
    for line in micro.FRAGMENT.read_text().splitlines():
        if line.startswith("CONFIG_"):
            name, equals, value = line.partition("=")
            assert equals
            assert value == "y" or value.isdigit() or value.startswith('"')
            options.append(name)
        elif line.startswith("# CONFIG_"):
            assert line.endswith(" is not set")
            options.append(line.split()[1])
        else:
            assert line == "" or line.startswith("# ")
    assert len(options) == len(set(options))


def test_recipe_follows_what_it_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = micro.recipe()
    assert micro.recipe() == first
    fragment = tmp_path / "micro.config"
    fragment.write_text(micro.FRAGMENT.read_text() + "CONFIG_VSOCKETS=y\n")
    monkeypatch.setattr(micro, "FRAGMENT", fragment)
    assert micro.recipe() != first


def test_missing_tools_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "TOOLS", ("make", "flex", "lz4"))
    monkeypatch.setattr(micro, "HEADERS", {"/nonexistent.h": "libelf-dev"})
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendError, match=r"install -y .* make flex lz4 libelf-dev$"):
        micro.check_tools()


def test_every_tool_has_a_package() -> None:
    assert set(micro.TOOLS) <= PACKAGES.keys()
