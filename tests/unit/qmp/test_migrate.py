"""Snapshots by the words of migration, as StratoVirt has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pyvirt.errors import BackendError
from pyvirt.qmp.host import Saving

from .fake_machine import GENERIC

if TYPE_CHECKING:
    from .fake_machine import Bench


def test_a_running_machine_is_stopped_first(bench: Bench) -> None:
    assert bench.do("query-migrate") == {"status": "none"}
    assert bench.do("migrate", uri="file:/tmp/a,b") == {}
    assert [name for name, _ in bench.events] == ["STOP"]
    assert bench.host.calls == ["stop", "save /tmp/a,b"]
    memory = bench.host.memory
    assert bench.do("query-migrate") == {
        "status": "active",
        "x-memory": {"total": memory, "remaining": memory - 4096, "written": 0},
    }
    assert bench.do("migrate_cancel") == {}
    assert bench.host.calls[2:] == ["cancel_save"]


def test_only_what_has_changed(bench: Bench) -> None:
    assert bench.do("migrate", uri="file:/tmp/a", incremental=True) == {}
    assert bench.host.calls == ["stop", "save /tmp/a incremental"]
    refused = bench.refused("migrate", uri="template:/tmp/a", incremental=True)
    assert refused[1] == ("`incremental`: a template has all of a machine's memory; leave it out")


def test_a_failure_is_told_with_its_reason(bench: Bench) -> None:
    bench.host.saved = Saving("failed", "/tmp/a: No space left on device")
    assert bench.do("query-migrate") == {
        "status": "failed",
        "error-desc": "/tmp/a: No space left on device",
    }


def test_what_a_client_of_qemus_adds(bench: Bench) -> None:
    assert bench.do("migrate", uri="file:x", detach=True, blk=False, inc=False) == {}
    assert bench.refused("migrate", uri="file:x", blk=True)[0] == GENERIC


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("tcp:host:1", "MicroVM does not support migration"),
        ("unix:/tmp/socket", "MicroVM does not support migration"),
        ("exec:cat", "MicroVM does not support migration"),
        ("junk", "Invalid uri: junk"),
        ("file:", "Invalid uri: file:"),
        ("file:a\0b", "`uri` is no file name: 'file:a\\\\x00b'; name a file"),
        ("", "`uri` is no file name: ''; name a file"),
    ],
)
def test_places_that_cannot_be(bench: Bench, uri: str, text: str) -> None:
    before = bench.state()
    assert bench.refused("migrate", uri=uri) == (GENERIC, text)
    assert bench.state() == before


def test_what_the_machine_refuses_is_told(bench: Bench) -> None:
    bench.host.refusal = BackendError("/tmp/a: is not empty; name a new folder")
    before = bench.state()
    assert bench.refused("migrate", uri="file:/tmp/a") == (GENERIC, str(bench.host.refusal))
    assert bench.state() == before
