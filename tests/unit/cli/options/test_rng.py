"""The options of entropy devices: what they make, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options.objects import KINDS
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config
from pyvirt.devices.virtio.rng import RngConfig

from ...refusal import attempt, refusal

SOURCE = ["-object", "rng-random,id=src"]


def device(text: str) -> list[str]:
    return ["-device", f"virtio-rng-device,{text}"]


def made(*words: str) -> list[tuple[str, str, str, int]]:
    devices = config(parse(list(words))).devices
    assert all(isinstance(one, RngConfig) for one in devices)
    return [(d.id, d.object_id, d.filename, d.rate) for d in devices if isinstance(d, RngConfig)]


def test_a_source_and_its_device() -> None:
    assert made(*device("rng=src"), *SOURCE) == [("rng0", "src", "/dev/urandom", 0)]


def test_two_devices_may_have_one_source() -> None:
    words = ["-object", "rng-random,id=o,filename=/dev/a,,b"]
    assert made(*words, *device("rng=o"), *device("rng=o,id=mine")) == [
        ("rng0", "o", "/dev/a,b", 0),
        ("mine", "o", "/dev/a,b", 0),
    ]


@pytest.mark.parametrize(
    ("limit", "rate"),
    [
        ("max-bytes=64,period=1000", 64),
        ("period=65536,max-bytes=65536", 1000),
        ("max-bytes=1000000000,period=1000", 1_000_000_000),
        ("max-bytes=1000000,period=1", 1_000_000_000),
    ],
)
def test_a_limit_is_a_rate(limit: str, rate: int) -> None:
    assert made(*SOURCE, *device(f"rng=src,{limit}"))[0][3] == rate


def test_a_source_that_nobody_uses_is_left_alone() -> None:
    assert made(*SOURCE) == []


REFUSED = [
    (device("rng=x"),
     "-device virtio-rng-device,rng=x: x is no -object; add -object rng-random,id=x"),
    ([*device("rng=x"), "-object", "iothread,id=x"],
     "-device virtio-rng-device,rng=x: x is an -object iothread; add -object rng-random,id=x"),
    (["-device", "virtio-rng-device", *SOURCE],
     "-device virtio-rng-device: names no source; give rng=ID and -object rng-random,id=ID"),
    ([*device("rng=src"), *SOURCE, *SOURCE],
     "-object id=src: there is one of that name; give another"),
    ([*device("rng=src,id=a"), *device("rng=src,id=a"), *SOURCE],
     "-device id=a: there is one of that name; give another"),
    ([*device("rng=src,max-bytes=100"), *SOURCE],
     ("-device virtio-rng-device,rng=src,max-bytes=100: a limit is max-bytes in a period; "
      "give period=MS as well")),
    ([*device("rng=src,period=100"), *SOURCE],
     ("-device virtio-rng-device,rng=src,period=100: a limit is max-bytes in a period; "
      "give max-bytes=N as well")),
    ([*device("rng=src,max-bytes=63,period=1000"), *SOURCE],
     ("-device virtio-rng-device,rng=src,max-bytes=63,period=1000: max-bytes in period ms is "
      "63 bytes a second; make it 64 to 1000000000")),
    ([*device("rng=src,max-bytes=1000001,period=1"), *SOURCE],
     ("-device virtio-rng-device,rng=src,max-bytes=1000001,period=1: max-bytes in period ms is "
      "1000001000 bytes a second; make it 64 to 1000000000")),
    ([*device("rng=src,max-bytes=0,period=1"), *SOURCE],
     "-device max-bytes 0: not a number from 1 to 9223372036854775807"),
    ([*device("rng=src,max-bytes=1,period=99999999999999999999"), *SOURCE],
     "-device period 99999999999999999999: not a number from 1 to 9223372036854775807"),
    ([*device("rng=src,color=red"), *SOURCE],
     "-device color: not understood here; accepted are rng, id, max-bytes, period"),
    (["-object", "rng-random"], "-object rng-random: has no id; give rng-random,id=NAME"),
    (["-object", "rng-random,id=a,filename="],
     "-object filename: not the name of a file (a comma within a value is written twice)"),
    (["-object", "rng-random,id=a,path=/dev/random"],
     "-object path: not understood here; accepted are id, filename"),
    (["-object", "rng-builtin,id=a"],
     f"-object rng-builtin: no such object; there is {', '.join(KINDS)}"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refused(words: list[str], text: str) -> None:
    assert refusal(lambda: parse(words)) == text


@given(
    st.lists(st.sampled_from(["rng=src", "rng=", ",", "id=", "max-bytes=", "9", "period=", "é"]))
)
def test_any_text_is_understood_or_refused(words: list[str]) -> None:
    attempt(lambda: parse([*SOURCE, *device("".join(words))]))
