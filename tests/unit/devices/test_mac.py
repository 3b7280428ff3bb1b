"""MAC addresses: how they are written, which are refused, and which are made."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.devices import mac

from ..refusal import attempt, refusal


def test_an_address_is_read_and_written() -> None:
    address = mac.parse("mac", "52:54:00:aB:Cd:0f")
    assert address == bytes([0x52, 0x54, 0, 0xAB, 0xCD, 0x0F])
    assert mac.show(address) == "52:54:00:ab:cd:0f"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a MAC address"),
        ("52:54:00:12:34", "not a MAC address"),
        ("52:54:00:12:34:56:78", "not a MAC address"),
        ("52-54-00-12-34-56", "not a MAC address"),
        ("52:54:0:12:34:56", "not a MAC address"),
        ("52:54:00:12:34:5g", "not a MAC address"),
        ("52:54:00:12:34:+5", "not a MAC address"),
        ("52:54:00:12:34:٣٣", "not a MAC address"),
        ("53:54:00:12:34:56", "a multicast address"),
        ("ff:ff:ff:ff:ff:ff", "a multicast address"),
        ("00:00:00:00:00:00", "nobody's address"),
    ],
)
def test_refused(text: str, words: str) -> None:
    message = refusal(lambda: mac.parse("-device mac", text))
    assert message.startswith(f"-device mac {text}: ")
    assert words in message


@given(
    st.text(st.characters(exclude_characters="\n"))
    | st.from_regex(r"[0-9a-fA-F:]{17}", fullmatch=True)
)
def test_any_text_is_an_address_or_refused(text: str) -> None:
    address = attempt(lambda: mac.parse("mac", text))
    if address is not None:
        assert mac.show(address) == text.lower()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3))
def test_one_that_is_made_is_local_unicast_and_stays(words: list[str]) -> None:
    address = mac.made(*words)
    assert len(address) == mac.SIZE
    assert address[0] & 3 == 2
    assert mac.made(*words) == address


def test_those_made_differ() -> None:
    names = [("", "net0", f"tap{i}") for i in range(5000)] + [
        ("vm", f"net{i}") for i in range(5000)
    ]
    assert len({mac.made(*name) for name in names}) == len(names)
    assert mac.made("ab", "c") != mac.made("a", "bc")


def test_hosts_make_different_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = set()
    for number in range(3):
        monkeypatch.setattr(mac, "_MACHINE_ID", str(tmp_path / f"{number}"))
        if number:
            (tmp_path / f"{number}").write_text(f"{number:032x}\n")
        made.add(mac.made("tap0"))
    assert len(made) == 3
