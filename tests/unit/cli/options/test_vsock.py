"""The options of socket devices: what they make, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config
from pyvirt.devices.virtio.vsock import VhostVsockConfig, VsockConfig

from ...refusal import attempt, refusal


def device(*members: str) -> list[str]:
    return ["-device", ",".join(("vsock-device", *members))]


def vsock(*members: str) -> VsockConfig:
    (found,) = config(parse(device(*members))).devices
    assert isinstance(found, VsockConfig)
    return found


def test_a_device() -> None:
    made = vsock("guest-cid=3", "uds=/tmp/v.sock")
    assert (made.id, made.guest_cid, made.path) == ("vsock0", 3, "/tmp/v.sock")
    made = vsock("uds=a,,b", "id=v", "guest-cid=4294967294")
    assert (made.id, made.guest_cid, made.path) == ("v", 4294967294, "a,b")
    assert len(vsock("guest-cid=3", f"uds={'p' * 96}").path) == 96


@pytest.mark.parametrize("driver", ["vhost-vsock-device", "vsock"])
@pytest.mark.parametrize(
    ("members", "made"),
    [
        # As Kata gives it, and StratoVirt 20.09.
        ("id=vsock-id,guest-cid=77,vhostfd=3", ("vsock-id", 77, 3)),
        ("id=v,guest-cid=3", ("v", 3, -1)),
        ("guest-cid=3", ("vsock0", 3, -1)),
    ],
)
def test_one_that_the_kernel_serves(driver: str, members: str, made: tuple[str, int, int]) -> None:
    (found,) = config(parse(["-device", f"{driver},{members}"])).devices
    assert isinstance(found, VhostVsockConfig)
    assert (found.id, found.guest_cid, found.fd) == made
    assert found.driver == driver


RANGE = "a number from 3 to 4294967294"
LONG = "p" * 97
REFUSED = [
    ((), "-device vsock-device: has no guest-cid; give one, such as guest-cid=3"),
    (("uds=/v",), "-device vsock-device,uds=/v: has no guest-cid; give one, such as guest-cid=3"),
    (("guest-cid=3",),
     "-device vsock-device,guest-cid=3: names no socket of the host; give uds=PATH"),
    (("guest-cid=0",), f"-device guest-cid 0: that address is the hypervisor's; give {RANGE}"),
    (("guest-cid=1",),
     f"-device guest-cid 1: that address is a guest's own, for itself; give {RANGE}"),
    (("guest-cid=2",), f"-device guest-cid 2: that address is the host's; give {RANGE}"),
    (("guest-cid=4294967295",),
     f"-device guest-cid 4294967295: that address is anybody's; give {RANGE}"),
    (("guest-cid=4294967296",), f"-device guest-cid 4294967296: not {RANGE}"),
    (("guest-cid=-3",), f"-device guest-cid -3: not {RANGE}"),
    (("guest-cid=",), f"-device guest-cid : not {RANGE}"),
    (("guest-cid=0x3",), f"-device guest-cid 0x3: not {RANGE}"),
    (("guest-cid=3", "guest-cid=4", "uds=/v"),
     "-device guest-cid=3,guest-cid=4,uds=/v: guest-cid is given twice; give it once"),
    (("guest-cid=3", "uds="), ("-device uds : 0 bytes, the path has 1 to 96, so that _PORT finds "
     "room behind it; shorten it")),
    (("guest-cid=3", f"uds={LONG}"), (f"-device uds {LONG}: 97 bytes, the path has 1 to 96, so "
     "that _PORT finds room behind it; shorten it")),
    (("guest-cid=3", "uds=/v", "port=1"),
     "-device port: not understood here; accepted are guest-cid, uds, id"),
]  # fmt: skip


@pytest.mark.parametrize(("members", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refused(members: tuple[str, ...], text: str) -> None:
    assert refusal(lambda: parse(device(*members))) == text


OF_VHOST = [
    ("", "-device vhost-vsock-device: has no guest-cid; give one, such as guest-cid=3"),
    (",guest-cid=2", f"-device guest-cid 2: that address is the host's; give {RANGE}"),
    (",guest-cid=3,vhostfd=2", "-device vhostfd 2: not a number from 3 to 1048576"),
    (",guest-cid=3,vhostfd=x", "-device vhostfd x: not a number from 3 to 1048576"),
    (",guest-cid=3,uds=/v",
     "-device uds: not understood here; accepted are guest-cid, vhostfd, id"),
]  # fmt: skip


@pytest.mark.parametrize(("members", "text"), OF_VHOST, ids=range(len(OF_VHOST)))
def test_refused_of_the_kernels(members: str, text: str) -> None:
    assert refusal(lambda: parse(["-device", f"vhost-vsock-device{members}"])) == text


@pytest.mark.parametrize("second", ["vsock-device,guest-cid=4,uds=/b", "vsock,guest-cid=4"])
def test_two_devices(second: str) -> None:
    words = [*device("guest-cid=3", "uds=/a"), "-device", second]
    assert refusal(lambda: parse(words)) == (
        f"-device {second}: there is a socket device already; drop one"
    )


def test_an_id_that_a_disk_has() -> None:
    words = ["-disk", "/disk,id=d", *device("guest-cid=3", "uds=/a", "id=d")]
    assert refusal(lambda: parse(words)) == "-device id=d: a disk has that id; give another"


@given(st.lists(st.text(alphabet="guest-cid=3,u/v \0é", max_size=20), max_size=3))
def test_anything_is_made_or_refused_in_a_line(members: list[str]) -> None:
    attempt(lambda: parse(device(*members)))
