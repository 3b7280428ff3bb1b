"""Devices that clients plug, read as those of the command line are."""

from __future__ import annotations

import pytest
from pyvirt.cli.options.plugged import maker
from pyvirt.devices.virtio.console import ConsoleConfig
from pyvirt.devices.virtio.rng import RngConfig
from pyvirt.errors import ConfigError

GIVEN = [
    ("object", "rng-random,id=src,filename=/dev/zero"),
    ("object", "rng-random,id=other"),
    ("qmp", "unix:/tmp/x,server,nowait"),
    ("device", "virtio-rng-device,id=rng0,rng=other"),
]


def test_a_device_of_an_object() -> None:
    config = maker(GIVEN)("virtio-rng-device", {"id": "r", "rng": "src"}, {})
    assert isinstance(config, RngConfig)
    assert (config.id, config.filename) == ("r", "/dev/zero")


def test_a_device_of_a_chardev_whose_path_has_a_comma() -> None:
    make = maker([("machine", "mem-share=on")])
    members = {"id": "fs", "chardev": "c", "tag": "share"}
    config = make("vhost-user-fs-device", members, {"c": "/tmp/a,b", "unused": "/tmp/x"})
    assert config.id == "fs"
    assert "/tmp/a,b" in config.back_end.where  # type: ignore[attr-defined]


@pytest.mark.parametrize("driver", ["virtserialport", "virtconsole"])
def test_a_port_comes_with_its_device(driver: str) -> None:
    members = {"id": "p", "chardev": "c", "name": "org.example"}
    config = maker(GIVEN)(driver, members, {"c": "/tmp/port"})
    assert isinstance(config, ConsoleConfig)
    (port,) = config.ports
    assert (config.id, port.name, port.chardev.path) == ("p", "org.example", "/tmp/port")
    assert port.is_console == (driver == "virtconsole")


@pytest.mark.parametrize(
    ("driver", "members", "text"),
    [
        ("virtio-rng-device", {"id": "r", "rng": "none"}, "none is no -object"),
        ("virtio-rng-device", {"id": "r"}, "names no source; give rng=ID"),
        ("virtio-balloon-device", {"id": "b", "odd": "1"}, "odd: not understood here"),
        ("vhost-user-fs-device", {"id": "f", "chardev": "x", "tag": "t"}, "x is no -chardev"),
        ("python", {"id": "p"}, "names no file"),
        ("virtserialport", {"id": "p", "chardev": "x"}, "x is no -chardev"),
        ("virtconsole", {"id": "p"}, "chardev"),
    ],
)
def test_refused(driver: str, members: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=f"^device_add .*{text}"):
        maker(GIVEN)(driver, members, {})
