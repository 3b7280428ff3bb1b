"""NICs on the command line of `pyvirt run`: every form, and what is refused in which words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options.parse import parse
from pyvirt.devices.nic import NicConfig, make
from pyvirt.devices.passt import PasstConfig
from pyvirt.devices.stream import StreamConfig
from pyvirt.devices.tap import TapConfig
from pyvirt.errors import BackendError

from ...refusal import attempt, refusal

MAC = "52:54:00:12:34:56"
TAP = "tap,id=n0,ifname=tap0"
DEVICE = "virtio-net-device,netdev=n0"


def fields(thing: object) -> dict[str, object]:
    slots = type(thing).__slots__  # type: ignore[attr-defined]
    return {name: getattr(thing, name) for name in slots if name not in {"is_whole", "iothread"}}


def shown(config: NicConfig) -> dict[str, object]:
    """Return a NIC's fields, those of a tap among them in place of it."""
    netdev = config.netdev
    inner = fields(netdev) if isinstance(netdev, TapConfig | StreamConfig) else {}
    return fields(config) | {"netdev": type(netdev)} | inner


def nics(*argv: str) -> list[dict[str, object]]:
    return [shown(config) for config in parse(list(argv)).nics]


def wanted(name: str, netdev: type = TapConfig, **changed: Any) -> dict[str, Any]:
    """Return the fields of a NIC that differs from the default in `changed`."""
    default: dict[str, Any] = {
        "id": name,
        "netdev": netdev,
        "mac": b"",
        "mtu": 0,
        "queue_size": 256,
        "rx_bytes": 0,
        "rx_packets": 0,
        "tx_bytes": 0,
        "tx_packets": 0,
    }
    if netdev is TapConfig:
        default |= {"ifname": "", "fds": (), "queues": 1, "vhost": False, "vhost_fds": ()}
    return default | changed


def test_no_nic_by_default() -> None:
    assert parse([]).nics == ()


def test_netdev_and_device_are_one_nic() -> None:
    expected = [wanted("n0", ifname="tap0")]
    assert nics("-netdev", TAP, "-device", DEVICE) == expected
    assert nics("-device", DEVICE, "-netdev", TAP) == expected
    device = f"{DEVICE},id=eth0,iothread=io1,mq=on"
    assert nics("-object", "iothread,id=io1", "-device", device, f"--netdev={TAP}") == expected
    assert nics("-netdev", TAP) == expected


def test_the_short_form() -> None:
    mac = bytes.fromhex(MAC.replace(":", ""))
    assert nics("-net", "tap0") == [wanted("net0", ifname="tap0")]
    assert nics("-net", f"tap0,mac={MAC},mtu=9000") == [
        wanted("net0", ifname="tap0", mac=mac, mtu=9000)
    ]
    assert nics("-net", "ifname=tap0,id=x") == [wanted("x", ifname="tap0")]
    assert nics("-net", "fds=3:4") == [wanted("net0", fds=(3, 4), queues=2)]
    assert nics("-net", "user") == [wanted("net0", PasstConfig)]


def test_the_form_of_stratovirt_20_09() -> None:
    """No kind, the address on the netdev, and no device."""
    mac = bytes.fromhex(MAC.replace(":", ""))
    text = f"id=n0,netdev=tap0,mac={MAC}"
    assert nics("-netdev", text) == [wanted("n0", ifname="tap0", mac=mac)]
    text = "id=n0,fds=5,vhost=on,vhostfds=6"
    assert nics("-netdev", text) == [wanted("n0", fds=(5,), vhost=True, vhost_fds=(6,))]


def test_a_user_network_and_a_socket() -> None:
    assert nics("-netdev", "user,id=u") == [wanted("u", PasstConfig)]
    expected = [wanted("s", StreamConfig, path="/a,b")]
    assert nics("-netdev", "stream,id=s,path=/a,,b") == expected
    assert nics("-netdev", "stream,id=s,server=off,addr.type=unix,addr.path=/a,,b") == expected


def test_nics_stand_in_the_order_of_their_options() -> None:
    argv = [
        *("-netdev", "tap,id=b,ifname=t1", "-net", "t2", "-device", "virtio-net-device,netdev=a"),
        *("-netdev", "tap,id=lone,ifname=t3", "-netdev", "user,id=a"),
        *("-disk", "/d", "-device", "virtio-net-device,netdev=b"),
    ]
    assert [nic["id"] for nic in nics(*argv)] == ["net1", "a", "lone", "b"]
    assert [disk.path for disk in parse(argv).disks] == ["/d"]


def test_disks_and_nics_have_their_own_devices() -> None:
    argv = [
        *("-drive", "id=d,file=/d,if=none", "-device", "virtio-blk-device,drive=d"),
        *("-netdev", TAP, "-device", DEVICE),
    ]
    options = parse(argv)
    assert [disk.id for disk in options.disks] == ["d"]
    assert [nic.id for nic in options.nics] == ["n0"]


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("throttling.rx-bytes=100M", {"rx_bytes": 100 << 20}),
        ("throttling.tx-bytes=1g", {"tx_bytes": 1 << 30}),
        ("throttling.rx-packets=1000", {"rx_packets": 1000}),
        ("throttling.tx-packets=2k", {"tx_packets": 2048}),
        ("throttling.tx-packets=0", {}),
        ("throttling.rx-bytes=1024G", {"rx_bytes": 1 << 40}),
        ("queues=4", {"queues": 4}),
        ("queues=64,vhost=on", {"queues": 64, "vhost": True}),
        ("vhostfd=7", {"vhost": True, "vhost_fds": (7,)}),
        ("vhost=off,script=no,downscript=no", {}),
    ],
)
def test_members_of_a_tap(text: str, changed: dict[str, Any]) -> None:
    assert nics("-netdev", f"{TAP},{text}") == [wanted("n0", ifname="tap0", **changed)]
    assert nics("-net", f"tap0,id=n0,{text}") == [wanted("n0", ifname="tap0", **changed)]


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("mtu=68", {"mtu": 68}),
        ("host_mtu=65535", {"mtu": 65535}),
        ("queue-size=1024", {"queue_size": 1024}),
        ("mq=off", {}),
    ],
)
def test_members_of_a_device(text: str, changed: dict[str, Any]) -> None:
    assert nics("-netdev", TAP, "-device", f"{DEVICE},{text}") == [
        wanted("n0", ifname="tap0", **changed)
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-netdev", "tap,ifname=tap0"], "has no id"),
        (["-netdev", "id=,netdev=tap0"], "0 characters"),
        (["-netdev", "bridge,id=a"], "no such kind; there are tap, user, stream and vhost-user"),
        (["-netdev", ""], "-netdev : no such kind"),
        (["-netdev", "tap"], "has no id"),
        (["-netdev", "tap,id=n0"], "-netdev tap: name one tap"),
        (["-netdev", f"{TAP},fd=3"], "-netdev tap: name one tap"),
        (["-netdev", "tap,id=n0,ifname="], "0 bytes, a tap's name has 1 to 15"),
        (["-netdev", "tap,id=n0,ifname=abcdefghijklmnop"], "16 bytes, a tap's name has 1 to 15"),
        (["-netdev", f"{TAP},queues=0"], "from 1 to 64"),
        (["-netdev", f"{TAP},queues=65"], "from 1 to 64"),
        (["-netdev", "tap,id=n0,fd=x"], "not numbers of open files"),
        (["-netdev", "tap,id=n0,fd=-1"], "not numbers of open files"),
        (["-netdev", "tap,id=n0,fd=3:4"], "-netdev fd 3:4: one number, or give -netdev fds"),
        (["-netdev", "tap,id=n0,fds=3:3"], "one of them is given twice"),
        (["-netdev", "tap,id=n0,fds=3:"], "not numbers of open files"),
        (["-netdev", "tap,id=n0,fds=3:4,queues=3"], "there are 2 fds; give one for each"),
        (["-netdev", f"{TAP},vhost=off,vhostfd=3"], "goes with vhost=on"),
        (["-netdev", f"{TAP},vhostfds=3:4"], "goes with vhost=on, one for each of 1 queues"),
        (["-netdev", f"{TAP},vhost=maybe"], "not one of on"),
        (["-netdev", f"{TAP},script=/etc/qemu-ifup"], "not one of no"),
        (["-netdev", f"{TAP},mac={MAC}"], "-netdev mac: not understood here"),
        (["-netdev", f"{TAP},throttling.rx-bytes=1.5M"], "not a rate"),
        (["-netdev", f"{TAP},throttling.rx-bytes=M"], "not a rate"),
        (["-netdev", f"{TAP},throttling.rx-bytes=-1"], "not a rate"),
        (["-netdev", f"{TAP},throttling.rx-bytes=1025G"], "not a rate"),
        (["-netdev", f"{TAP},throttling.rx-bytes="], "not a rate"),
        (["-netdev", "user,id=u,ifname=tap0"], "-netdev ifname: not understood here"),
        (["-netdev", "stream,id=s"], "names no socket"),
        (["-netdev", "stream,id=s,path="], "0 bytes, a socket's path has 1 to 107"),
        (["-netdev", f"stream,id=s,path=/{'x' * 107}"], "108 bytes"),
        (["-netdev", "stream,id=s,path=/a,server=on"], "not one of off"),
        (["-netdev", "id=n0,netdev=tap0,ifname=tap0"], "not understood here"),
        (["-netdev", TAP, "-netdev", TAP], "-netdev id=n0: there is one of that name"),
        (["-netdev", TAP, "-net", "tap1,id=n0"], "-net id=n0: there is one of that name"),
        (["-netdev", TAP, "-net", "tap0"], "-net tap0: two NICs have it"),
        (["-net", "fds=3:4", "-net", "fd=4"], "-net fd=4: two NICs have it"),
        (["-net", "fd=3,vhostfd=3"], "-net fd=3: two NICs have it"),
        (["-net", f"a,mac={MAC}", "-net", f"b,mac={MAC}"], f"mac={MAC}: two NICs have it"),
        (["-net", "a,mac=01:00:5e:00:00:01"], "-net mac 01:00:5e:00:00:01: a multicast address"),
        (["-net", "a,mac=52:54"], "-net mac 52:54: not a MAC address"),
        (["-net", "user,fd=3"], "-net fd: not understood here"),
        (["-net", "a,mtu=67"], "from 68 to 65535"),
        (["-net", "a,queue-size=48"], "not a power of two"),
        (["-net", "a,queue-size=2048"], "from 2 to 1024"),
        (["-device", DEVICE], "-device netdev=n0: there is no such -netdev"),
        (["-device", "virtio-net-device"], "names no netdev"),
        (["-device", "virtio-net-pci,netdev=n0"], "-device virtio-net-pci: no such device; there "),
        (["-netdev", TAP, "-device", DEVICE, "-device", DEVICE], "has a device already"),
        (["-net", "tap0,id=n0", "-device", DEVICE], "-device netdev=n0: has a device already"),
        (["-netdev", f"{TAP},queues=2", "-device", f"{DEVICE},mq=off"], "the netdev has 2 queues"),
        (
            ["-netdev", f"id=n0,netdev=t,mac={MAC}", "-device", f"{DEVICE},mac={MAC}"],
            "the MAC address is given with the -netdev too; give it once",
        ),
    ],
)
def test_refused(argv: list[str], words: str) -> None:
    assert words in refusal(lambda: parse(argv))


def test_nics_and_disks_may_share_a_thread() -> None:
    words = ["-netdev", TAP, "-device", f"{DEVICE},iothread=io1", "-net", "tap1"]
    words += ["-net", "user,iothread=io1", "-disk", "/a,iothread=io1"]
    options = parse(["-object", "iothread,id=io1", *words])
    assert [nic.iothread and nic.iothread.id for nic in options.nics] == ["io1", None, "io1"]
    assert options.nics[0].iothread is options.disks[0].iothread is options.iothreads[0]


@pytest.mark.parametrize(
    "words",
    [
        ["-net", "tap0,iothread=x,vhost=on"],
        ["-netdev", f"{TAP},vhost=on", "-device", f"{DEVICE},iothread=x"],
    ],
)
def test_a_thread_for_packets_that_the_kernel_moves_is_refused(words: list[str]) -> None:
    assert refusal(lambda: parse(["-object", "iothread,id=x", *words])) == (
        "iothread=x: not with vhost=on, by which the kernel moves the packets; give vhost=off or "
        "leave iothread out"
    )


@pytest.mark.parametrize(
    "words", [["-net", "tap0,iothread=x"], ["-netdev", TAP, "-device", f"{DEVICE},iothread=x"]]
)
def test_a_thread_that_is_not_there_is_refused(words: list[str]) -> None:
    message = "iothread=x: there is no such thread; add -object iothread,id=x"
    assert refusal(lambda: parse(["-object", "iothread,id=y", *words])) == message


@pytest.mark.parametrize(
    ("argv", "begins"),
    [
        (["-net", "no-such-tap"], "-net no-such-tap: there is no such tap"),
        (["-net", "fd=999"], "-net fd=999: "),
        (["-netdev", "tap,id=n,ifname=no-such-tap"], "-netdev ifname=no-such-tap: there is no"),
        (["-netdev", "stream,id=n,path=/none"], "-netdev stream,path=/none: No such file"),
    ],
)
def test_a_netdev_is_called_as_the_user_wrote_it(argv: list[str], begins: str) -> None:
    (config,) = parse(argv).nics
    assert refusal(lambda: make(config, "")).startswith(begins)


def test_a_missing_passt_is_told_of_as_the_user_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvirt.devices.passt.PROGRAM", "no-such-program")
    for argv, begins in ((["-net", "user"], "-net "), (["-netdev", "user,id=n"], "-netdev ")):
        (config,) = parse(argv).nics
        with pytest.raises(BackendError, match=f"^{begins}user: passt is not installed"):
            make(config, "")


def test_two_nics_of_one_tap_are_told_of_as_the_user_wrote_it() -> None:
    message = refusal(lambda: parse(["-net", "tap0", "-net", "tap0"]))
    assert message == "-net tap0: two NICs have it; give each its own"


def test_a_disk_and_a_nic_of_one_name_are_refused() -> None:
    words = ["-drive", "id=x,file=disk", "-netdev", "user,id=x"]
    assert refusal(lambda: parse(words)) == "-netdev id=x: a disk has that id; give another"


def test_two_devices_of_one_name_are_refused() -> None:
    argv = ["-netdev", "tap,id=a,ifname=a", "-netdev", "tap,id=b,ifname=b"]
    argv += ["-device", "virtio-net-device,netdev=a,id=x"]
    argv += ["-device", "virtio-net-device,netdev=b,id=x"]
    assert "-device id=x: there is one of that name" in refusal(lambda: parse(argv))


WORDS = st.sampled_from(
    [
        *("id=a", "tap", "user", "stream", "ifname=t", "netdev=a", "virtio-net-device", "mq=off"),
        *("fd=3", "queues=2", "vhost=on", "vhostfd=4", f"mac={MAC}", "=", "", "a,,b", "path=ß"),
        *("fds=1:2", "throttling.rx-bytes=1", "throttling.tx-packets=M"),
    ]
)


@given(st.lists(st.tuples(st.sampled_from(["net", "netdev", "device"]), st.lists(WORDS))))
def test_any_words_are_taken_or_refused_in_one_line(options: list[tuple[str, list[str]]]) -> None:
    argv = [f"-{name}={','.join(words)}" for name, words in options]
    attempt(lambda: parse(argv))
