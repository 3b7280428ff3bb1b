"""The commands that look into guest memory: what they hand on, and what they refuse."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from .fake_machine import Bench

if TYPE_CHECKING:
    from pathlib import Path

HIGH = (1 << 64) - 1


def test_reading(bench: Bench) -> None:
    def read(**given: Any) -> bytes:
        return base64.b64decode(bench.do("x-read-memory", **given)["data"])

    assert read(val=0, size=3) == b"\xff\xff\xff"
    assert read(val=0, size=3, cpu_index=1) == b"\xff\xff\xff"
    assert read(val=4096, size=2, virtual=True) == b"\0\0"
    assert read(val=4096, size=2, virtual=True, cpu_index=1) == b"\1\1"
    assert len(read(val=0, size=65536)) == 65536


def test_saving(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "out"
    assert bench.do("memsave", val=0, size=2, filename=str(path), cpu_index=1) == {}
    assert path.read_bytes() == b"\1\1"
    assert bench.do("pmemsave", val=0, size=2, filename=str(path)) == {}
    assert path.read_bytes() == b"\xff\xff"
    assert bench.do("dump-guest-memory", paging=False, protocol=f"file:{path}") == {}
    assert path.read_bytes() == b"core"


def test_registers_and_nmi(bench: Bench) -> None:
    first, second = bench.do("x-query-registers")
    assert first == {"cpu-index": 0, "registers": {"rip": 0xFFFF_FFFF_81C0_13F0, "rax": 0}}
    assert second["registers"]["rax"] == 1
    assert bench.do("inject-nmi") == {}
    assert bench.host.calls == ["nmi"]


def test_watchdog_action(bench: Bench) -> None:
    assert bench.do("watchdog-set-action", action="pause") == {}
    assert bench.host.calls == ["watchdog pause"]


SIZE_TEXT = "expected a number from 1 to 65536 for `size`"


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        ("x-read-memory", {"val": HIGH, "size": 1},
         "`val` 0xffffffffffffffff and `size` 1: 0xffffffffffffffff is not there"),
        ("x-read-memory", {"val": 1 << 28, "size": 1, "virtual": True},
         "`val` 0x10000000 and `size` 1: 0x10000000 is not there"),
        ("x-read-memory", {"val": 0, "size": 0}, f"invalid value: integer `0`, {SIZE_TEXT}"),
        ("x-read-memory", {"val": 0, "size": 65537},
         f"invalid value: integer `65537`, {SIZE_TEXT}"),
        ("x-read-memory", {"val": -1, "size": 1},
         "invalid value: integer `-1`, expected a number from 0 to 18446744073709551615 for `val`"),
        ("x-read-memory", {"val": 0, "size": 1, "cpu-index": 2},
         "`cpu-index` 2: the machine has 2 vCPUs, counted from 0"),
        ("memsave", {"val": 0, "size": 1, "filename": "/nowhere", "cpu-index": 2},
         "`cpu-index` 2: the machine has 2 vCPUs, counted from 0"),
        ("memsave", {"val": 1 << 28, "size": 1, "filename": "/nowhere"},
         "`val` 0x10000000 and `size` 1: 0x10000000 is not there"),
        ("pmemsave", {"val": 1 << 28, "size": 1, "filename": "/nowhere"},
         "`val` 0x10000000 and `size` 1: 0x10000000 is not there"),
        ("pmemsave", {"val": 0, "size": 1, "filename": ""},
         "`filename` is no file name: ''; name a file"),
        ("dump-guest-memory", {"paging": True, "protocol": "file:/nowhere"},
         "`paging` true is not offered: readers walk the page tables; give false"),
        ("dump-guest-memory", {"paging": False, "protocol": "fd:dump"},
         "`protocol` fd:dump is not known; give file:PATH"),
        ("dump-guest-memory", {"paging": False, "protocol": "file:"},
         "`protocol` file: is not known; give file:PATH"),
    ],
)  # fmt: skip
def test_refusals(bench: Bench, command: str, arguments: dict[str, Any], text: str) -> None:
    answer = bench.ask(command, **{k.replace("-", "_"): v for k, v in arguments.items()})
    assert answer == {"error": {"class": "GenericError", "desc": text}}
