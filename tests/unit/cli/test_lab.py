"""The options of `pyvirt lab`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pyvirt.cli import lab
from pyvirt.errors import ConfigError

from ..refusal import refusal

DEFAULTS = {"forward": [], "memory_mib": 4096, "cpus": 1, "icount": False, "timeout": None}


@pytest.fixture
def calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[tuple[list[str], dict[str, object]]]:
    """What was asked of the lab, which is not booted and answers 42."""
    made: list[tuple[list[str], dict[str, object]]] = []
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def run(command: Sequence[str], machines: str, **options: object) -> int:
        assert Path(machines).is_dir()
        made.append((list(command), options))
        return 42

    monkeypatch.setattr("pyvirt.harness.lab.run", run)
    return made


@pytest.mark.parametrize(
    ("words", "command", "options"),
    [
        (["exec", "--", "make", "-j2", "--", "x"], ["make", "-j2", "--", "x"], {}),
        (["exec", "make", "-m", "3"], ["make", "-m", "3"], {}),
        (["exec", "-m", "2G", "-smp", "4", "--", "a"], ["a"], {"memory_mib": 2048, "cpus": 4}),
        (["exec", "--m", "512m", "--", "a"], ["a"], {"memory_mib": 512}),
        (["exec", "-icount", "--", "a"], ["a"], {"icount": True}),
        (["exec", "-timeout", "1.5", "--", "a"], ["a"], {"timeout": 1.5}),
        (
            ["exec", "-forward", "a=b=/c", "--forward", "d=/e", "--", "a"],
            ["a"],
            {"forward": [("a=b", "/c"), ("d", "/e")]},
        ),
    ],
)
def test_options(
    calls: list[tuple[list[str], dict[str, object]]],
    words: list[str],
    command: list[str],
    options: dict[str, object],
) -> None:
    assert lab.main(words) == 42
    assert calls == [(command, DEFAULTS | options)]


def test_shell(
    calls: list[tuple[list[str], dict[str, object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    assert lab.main(["shell"]) == 42
    assert calls == [(["/bin/sh"], DEFAULTS)]
    monkeypatch.setenv("SHELL", "/no/shell")
    with pytest.raises(ConfigError, match="SHELL=/no/shell"):
        lab.main(["shell"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required"),
        (["boot"], "invalid choice"),
        (["exec", "-m", "4T", "--", "a"], "4T: give a size such as 4096, 4096M or 4G"),
        (["exec", "-smp", "x", "--", "a"], "-smp"),
        (["exec", "-forward", "x", "--", "a"], "x: give HOST=LAB"),
        (["exec", "-timeout", "0", "--", "a"], "0: give a number of seconds above 0"),
        (["exec", "-timeout", "inf", "--", "a"], "above 0"),
    ],
)
def test_wrong_usage(words: list[str], message: str) -> None:
    assert message in refusal(lambda: lab.main(words))
