"""Options that StratoVirt's first versions had."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyvirt.cli.options.parse import parse
from pyvirt.devices.virtio.balloon import BalloonConfig
from pyvirt.devices.virtio.rng import RngConfig

from ...refusal import refusal


def test_an_older_rng() -> None:
    (device,) = parse(["-rng", "random_file=/dev/urandom,bytes_per_sec=1000"]).devices
    (today,) = parse(
        [
            *("-object", "rng-random,id=rng0,filename=/dev/urandom"),
            *("-device", "virtio-rng-device,rng=rng0,max-bytes=1000,period=1000"),
        ]
    ).devices
    assert isinstance(device, RngConfig)
    assert isinstance(today, RngConfig)
    for name in RngConfig.__slots__:
        assert getattr(device, name) == getattr(today, name)


def test_an_older_balloon() -> None:
    (device,) = parse(["-balloon", "deflate-on-oom=true"]).devices
    assert isinstance(device, BalloonConfig)
    assert device.deflate_on_oom


def test_an_older_iothread() -> None:
    assert [
        thread.id for thread in parse(["-iothread", "id=a", "-iothread", "id=b"]).iothreads
    ] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bytes_per_sec=1000", "-rng bytes_per_sec=1000: names no file; give random_file=FILE"),
        ("random_file=/a,bytes=1", ("-rng bytes: not understood here; accepted are random_file, "
         "bytes_per_sec")),
        ("random_file=/a,bytes_per_sec=x",
         "-rng bytes_per_sec x: not a number from 0 to 999999999"),
    ],
)  # fmt: skip
def test_refused(text: str, message: str) -> None:
    assert refusal(lambda: parse(["-rng", text])) == message


def test_in_a_file_they_have_their_places(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('smp = 1\n[rng]\nrandom_file = "/dev/urandom"\nbytes_per_sec = 1\n')
    message = refusal(lambda: parse(["-config", str(path)]))
    assert message.startswith(f"{path}:")
    assert "64" in message
