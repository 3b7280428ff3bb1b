"""The options of vhost-user devices: what they make, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config
from pyvirt.devices.vhost_user.block import BlockConfig
from pyvirt.devices.vhost_user.fs import FsConfig
from pyvirt.devices.vhost_user.net import NetConfig
from pyvirt.devices.vhost_user.socket import SocketBackEnd

from ...refusal import attempt, refusal

FS, BLOCK = "vhost-user-fs-device", "vhost-user-blk-device"
A = ["-chardev", "socket,id=a,path=/a"]
B = ["-chardev", "socket,id=b,path=/b"]


def device(text: str) -> list[str]:
    return ["-device", text]


def made(*words: str) -> list[FsConfig | BlockConfig]:
    return list(config(parse(list(words))).devices)  # type: ignore[arg-type]


def where(one: FsConfig | BlockConfig) -> str:
    assert isinstance(one.back_end, SocketBackEnd)
    return one.back_end.where


def test_a_file_system() -> None:
    (one,) = made(*A, *device(f"{FS},chardev=a,tag=share"))
    assert isinstance(one, FsConfig)
    assert (one.id, one.tag, one.queues, one.queue_size) == ("fs0", b"share", 1, 128)
    assert where(one) == "-chardev id=a: /a"


def test_a_disk() -> None:
    (one,) = made(*A, *device(f"{BLOCK},chardev=a,num-queues=4,queue-size=256,config-wce=off"))
    assert isinstance(one, BlockConfig)
    assert (one.id, one.queues, one.queue_size, one.config_wce) == ("blk0", 4, 256, False)


def test_kata_says_that_it_is_a_server() -> None:
    words = ["-chardev", "socket,id=a,path=/a,server,nowait"]
    options = parse([*words, *device(f"{FS},chardev=a,tag=t")])
    (chardev,) = options.chardevs
    assert not chardev.listens


def test_each_has_an_id_of_its_own() -> None:
    found = made(
        *A, *B, *device(f"{FS},chardev=a,tag=s"), *device(f"{BLOCK},chardev=b,id=x"),
        "-chardev", "socket,id=c,path=/c", *device(f"{FS},chardev=c,tag=t,num-request-queues=3"),
    )  # fmt: skip
    assert [one.id for one in found] == ["fs0", "x", "fs1"]
    assert [where(one)[-2:] for one in found] == ["/a", "/b", "/c"]


def test_guest_memory_can_be_seen_by_others() -> None:
    assert config(parse([*A, *device(f"{FS},chardev=a,tag=t")])).share
    assert not config(parse(["-m", "256"])).share


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (device(f"{FS},tag=t"), "names no chardev; give chardev=ID"),
        (device(f"{FS},chardev=a,tag=t"), "a is no -chardev"),
        ([*A, *device(f"{FS},chardev=a")], "has no tag; give tag=NAME"),
        ([*A, *device(f"{FS},chardev=a,tag=")], "0 bytes, a tag has 1 to 36"),
        ([*A, *device(f"{FS},chardev=a,tag={'x' * 37}")], "37 bytes, a tag has 1 to 36"),
        ([*A, *device(f"{FS},chardev=a,tag={'ä' * 19}")], "38 bytes, a tag has 1 to 36"),
        (
            [*A, *B, *device(f"{FS},chardev=a,tag=t"), *device(f"{FS},chardev=b,tag=t")],
            "tag=t: two have it",
        ),
        (
            [*A, *device(f"{FS},chardev=a,tag=t"), *device(f"{BLOCK},chardev=a")],
            "give each its own -chardev",
        ),
        ([*A, *device(f"{FS},chardev=a,tag=t,queue-size=100")], "not a power of two"),
        ([*A, *device(f"{FS},chardev=a,tag=t,num-request-queues=64")], "from 1 to 63"),
        ([*A, *device(f"{BLOCK},chardev=a,tag=t")], "tag: not understood here"),
        ([*A, *device(f"{BLOCK},chardev=a,num-queues=0")], "from 1 to 64"),
        (
            ["-chardev", "socket,id=a,fd=5", *device(f"{FS},chardev=a,tag=t")],
            "a is no Unix socket",
        ),
        (
            [*A, *B, *device(f"{FS},chardev=a,tag=t,id=x"), *device(f"{BLOCK},chardev=b,id=x")],
            "a device has that id",
        ),
    ],
)
def test_what_cannot_be(words: list[str], said: str) -> None:
    assert said in refusal(lambda: parse(words))


@given(st.text("acdegimnqrstuz=,-0123456789", max_size=40), st.sampled_from([FS, BLOCK]))
def test_any_members_are_read_or_refused_in_one_line(text: str, driver: str) -> None:
    attempt(lambda: parse([*A, f"-device={driver},chardev=a,{text}"]))


def nics(*words: str) -> list[NetConfig]:
    found = list(config(parse(list(words))).devices)
    assert all(isinstance(one, NetConfig) for one in found)
    return found  # type: ignore[return-value]


NETDEV = ["-netdev", "vhost-user,id=n,chardev=a"]


def test_a_nic() -> None:
    (one,) = nics(*A, *NETDEV, *device("virtio-net-device,netdev=n,mac=52:54:00:00:00:01,mtu=9000"))
    assert (one.id, one.mac, one.mtu, one.queue_size) == ("n", b"RT\0\0\0\1", 9000, 256)
    assert isinstance(one.back_end, SocketBackEnd)
    assert one.back_end.where == "-chardev id=a: /a"


def test_a_nic_of_several_pairs() -> None:
    netdev = ["-netdev", "vhost-user,id=n,chardev=a,queues=4,vhostforce=on"]
    (one,) = nics(*A, *netdev, *device("virtio-net-device,netdev=n,mq=on,queue-size=512"))
    assert (one.pairs, one.queue_size) == (4, 512)


def test_a_nic_without_a_device_and_beside_another() -> None:
    options = parse([*A, "-net", "tap0", *NETDEV, *device("virtio-net-device,netdev=x"),
                     "-netdev", "tap,id=x,ifname=tap1"])  # fmt: skip
    assert len(options.nics) == 2
    (one,) = options.devices
    assert isinstance(one, NetConfig)
    assert one.mac[0] & 3 == 2
    assert one.mac == nics(*A, *NETDEV)[0].mac


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-netdev", "vhost-user,chardev=a"], "has no id; give id=ID"),
        (["-netdev", "vhost-user,id=n"], "has no chardev; give chardev=ID"),
        (NETDEV, "a is no -chardev"),
        ([*A, "-netdev", "vhost-user,id=n,chardev=a,queues=65"], "from 1 to 64"),
        ([*A, "-netdev", "vhost-user,id=n,chardev=a,ifname=x"], "ifname: not understood here"),
        ([*A, *NETDEV, *NETDEV], "id=n: two have it"),
        (
            [*A, *NETDEV, *device("virtio-net-device,netdev=n") * 2],
            "netdev=n: two devices have it",
        ),
        (
            [
                *(*A, "-netdev", "vhost-user,id=n,chardev=a,queues=2"),
                *device("virtio-net-device,netdev=n,mq=off"),
            ],
            "the netdev has 2 queues; leave mq or queues out",
        ),
        ([*A, *NETDEV, *device("virtio-net-device,netdev=n,mtu=1")], "from 68 to 65535"),
    ],
)
def test_nics_that_cannot_be(words: list[str], said: str) -> None:
    assert said in refusal(lambda: parse(words))
