"""The file of a machine's fields: what is written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.errors import StateError
from pyvirt.vmm.snapshot import processor, shape, state_file

FIELDS: dict[str, object] = {"number": 1 << 63, "bytes": "00ff", "list": [{"a": True}, {"a": None}]}


def with_checksum(head: bytes, body: bytes) -> bytes:
    checksum = hashlib.sha256(head + b"\n" + body).hexdigest().encode()
    return head + b" " + checksum + b"\n" + body


def refusal(data: bytes) -> str:
    with pytest.raises(StateError) as info:
        state_file.decode(data)
    message = str(info.value)
    assert message.startswith("state: ")
    assert "\n" not in message
    return message


def test_what_is_written_is_read() -> None:
    fields = state_file.decode(state_file.encode(FIELDS))
    assert fields.integer("number", 0, 1 << 64) == 1 << 63
    assert fields.data("bytes") == b"\0\xff"
    first, second = fields.items("list", 2)
    assert first.flag("a")
    assert second.optional("a") is None
    fields.done()


def test_it_is_a_line_and_json() -> None:
    head, body = state_file.encode(FIELDS).split(b"\n", 1)
    assert re.fullmatch(rb"pyvirt-state 1 \d+ [0-9a-f]{64}", head)
    values = json.loads(body)
    assert values.pop("pyvirt")
    assert values == FIELDS


def test_what_older_ones_cannot_restore_they_refuse() -> None:
    assert state_file.encode({"parent": {}}).startswith(b"pyvirt-state 2 ")


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_bit_that_has_changed_is_found(place: int, bit: int) -> None:
    data = bytearray(state_file.encode(FIELDS))
    data[place % len(data)] ^= 1 << bit
    refusal(bytes(data))


@given(st.integers(0, 10_000))
def test_one_that_is_cut_off_is_found(length: int) -> None:
    data = state_file.encode(FIELDS)
    refusal(data[: length % len(data)])


def test_one_that_is_longer_is_found() -> None:
    assert "damaged" in refusal(state_file.encode(FIELDS) + b" ")


def test_what_is_not_ours_is_told() -> None:
    assert "no state of pyvirt" in refusal(b'{"MigrationHeader": 1}\n')
    assert "no state of pyvirt" in refusal(b"")


def test_a_newer_one_asks_for_a_newer_pyvirt() -> None:
    message = refusal(with_checksum(b"pyvirt-state 4 3", b"{}\n"))
    assert "format 4" in message
    assert "use a newer pyvirt" in message


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"\xff", b'{"pyvirt": NaN}', b'{"pyvirt": 1}', b"{}"),
        b"[" * 100_000,
        b'{"pyvirt": ' + b"9" * 5000 + b"}",
    ],
    ids=range(9),
)
def test_a_checksum_makes_no_sense_of_nonsense(body: bytes) -> None:
    refusal(with_checksum(b"pyvirt-state 1 %d" % len(body), body))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), values))
def test_whatever_fields_there_are_come_out_or_are_refused(given_fields: dict[str, Any]) -> None:
    body = json.dumps({"pyvirt": "0", **given_fields}).encode()
    try:
        fields = state_file.decode(with_checksum(b"pyvirt-state 1 %d" % len(body), body))
    except StateError:
        assert "pyvirt" in given_fields
        return
    for name, value in given_fields.items():
        if isinstance(value, bool) and name != "pyvirt":
            assert fields.flag(name) == value


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    refusal(data)
    refusal(b"pyvirt-state " + data)


def test_a_file_that_is_not_there_is_told_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(StateError, match=f"{path}: No such file or directory; name a folder"):
        state_file.read(str(path))
    path.write_bytes(b"x")
    with pytest.raises(StateError, match=f"{tmp_path}: state: is no state of pyvirt"):
        state_file.read(str(path))


@pytest.mark.parametrize("version", range(1, state_file.FORMAT + 1))
def test_there_is_a_state_of_each_format(version: int) -> None:
    """Without a KVM to restore it on, see tests/kvm/test_snapshot.py."""
    archive = Path(__file__).parent / f"format{version}.tar.xz"
    command = ["tar", "-xJOf", str(archive), "state"]
    data = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    assert data.startswith(b"pyvirt-state %d " % version)
    fields = state_file.decode(data)
    assert len(fields.data("snapshot")) == 16
    found = shape.read(fields.section("machine"))
    assert (found.memory, found.topology.vcpus, found.hotplug) == (128 << 20, 1, False)
    (vcpu,) = fields.items("vcpus", 1)
    assert processor.read(vcpu)
