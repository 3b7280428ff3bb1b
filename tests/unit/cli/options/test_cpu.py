"""`-cpu`: the host's processor, less what is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options.parse import parse

from ...refusal import attempt, refusal


@pytest.mark.parametrize(
    ("text", "vendor", "on", "off"),
    [
        ("host", "", (), ()),
        ("max", "", (), ()),
        ("host,vendor=GenuineIntel", "GenuineIntel", (), ()),
        ("host,-pcid,+svm", "", ("svm",), ("pcid",)),
        ("host,pcid=off,svm=on", "", ("svm",), ("pcid",)),
        ("host,+pcid,pcid=off", "", (), ("pcid",)),
        ("max,-tsc_deadline,-sse4.1", "", (), ("tsc-deadline", "sse4.1")),
        ("model=host,-lahf_lm", "", (), ("lahf-lm",)),
    ],
)
def test_values(text: str, vendor: str, on: tuple[str, ...], off: tuple[str, ...]) -> None:
    model = parse(["-cpu", text]).cpu
    assert model is not None
    assert (model.vendor, model.on, model.off) == (vendor, on, off)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qemu64", "-cpu qemu64: qemu64 is none of host, max; give host"),
        ("host,vendor=VIA", "-cpu vendor VIA: not one of GenuineIntel, AuthenticAMD, HygonGenuine"),
        ("host,+nosuch", "-cpu host,+nosuch: +nosuch: no feature of that name is known here"),
        ("host,pcid=perhaps", "-cpu pcid perhaps: not one of on, yes, true, off, no, false"),
        ("host,pcid", "-cpu pcid : not one of on"),
        ("host,-pcid,-pcid", "-pcid is given twice"),
        ("host,phys-bits=36", "not one of on"),
        ("", "none of host, max"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    assert message in refusal(lambda: parse([f"-cpu={text}"]))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=20))
def test_anything_is_understood_or_refused(text: str) -> None:
    attempt(lambda: parse([f"-cpu=host,{text}"]))
    attempt(lambda: parse([f"-cpu={text}"]))


@pytest.mark.parametrize(("text", "pit"), [("pit=off", False), ("microvm,pit=on", True)])
def test_the_timer_of_old(text: str, pit: bool) -> None:
    assert parse(["-machine", text]).pit is pit


def test_test_devices() -> None:
    assert not parse([]).testdev
    assert not parse(["-device", "isa-debug-exit,iobase=244,iosize=0x04,id=x"]).testdev
    assert parse(["-device", "isa-debug-exit", "-device", "pc-testdev,id=t"]).testdev
