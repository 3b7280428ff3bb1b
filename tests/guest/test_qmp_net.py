"""The requests that operators send for NICs, byte for byte, against a running Linux."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pyvirt.devices import mac
from pyvirt.devices.tap import Tap, TapConfig
from pyvirt.errors import ConfigError

from ..unit.namespace import ip, network_namespace
from .live import Live, reporting
from .network import interface
from .test_hotplug import folder, guest, saved
from .test_qmp import Operator, operator

__all__ = ["folder", "guest", "operator", "saved"]  # fixtures

ADD = '{"execute":"netdev_add", "arguments":{"id":"net-0", "ifname":"tap0"}}'
PLUG = (
    '{"execute":"device_add", "arguments":{"id":"net-0", "driver":"virtio-net-mmio", "addr":"0x0"}}'
)
UNPLUG = '{"execute": "device_del", "arguments": {"id": "net-0"}}'
DELETED = re.compile(
    r'\{"event":"DEVICE_DELETED","data":\{"device":"net-0","path":"net-0"\},'
    r'"timestamp":\{"seconds":[0-9]+,"microseconds":[0-9]+\}\}'
)
DONE = '{"return":{}}'
CARRIERS = "cat /sys/class/net/eth0/carrier /sys/class/net/eth1/carrier"


def make_tap(number: int) -> None:
    ip(f"tuntap add tap{number} mode tap")
    ip(f"addr add 10.0.{number}.1/24 dev tap{number}")
    ip(f"link set tap{number} up")


@pytest.fixture(autouse=True)
def taps() -> Iterator[None]:
    """Have two taps, whose host answers at 10.0.0.1 and 10.0.1.1."""
    with network_namespace():
        ip("link set lo up")
        for number in range(2):
            make_tap(number)
        yield


@pytest.fixture
def linked(guest: Live) -> Live:
    """The guest with both its NICs set up, though nothing is plugged in."""
    guest.run(interface("eth0", "10.0.0.2/24").replace("\n", "; ") + "true")
    guest.run(interface("eth1", "10.0.1.2/24").replace("\n", "; ") + "true")
    assert carriers(guest) == [0, 0]
    return guest


def carriers(guest: Live) -> list[int]:
    return [int(word) for word in guest.run(CARRIERS).split()]


def wait_for_carriers(guest: Live, expected: list[int]) -> None:
    """The interrupt is there when the host returns; what the guest does then takes a moment."""
    until = time.monotonic() + 20
    while (seen := carriers(guest)) != expected:
        assert time.monotonic() < until, f"{seen} instead of {expected}"


def ping(guest: Live, number: int = 0) -> None:
    """The first packet may be lost to the link's coming up; all others arrive."""
    guest.run(f"until ping -c 1 -W 1 10.0.{number}.1 >/dev/null; do :; done")
    said = guest.run(f"ping -A -q -c 50 10.0.{number}.1")
    assert "50 packets transmitted, 50 packets received" in said


def check_free(tap: str) -> None:
    Tap(TapConfig(tap)).close()


def check_used(tap: str) -> None:
    with pytest.raises(ConfigError, match="in use by another process"):
        Tap(TapConfig(tap))


def unplug(operator: Operator) -> None:
    assert DELETED.fullmatch(operator.says(UNPLUG))
    assert operator.line() == DONE


def test_nic_by_the_book(linked: Live, operator: Operator) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert operator.says(ADD) == DONE
        check_used("tap0")
        assert carriers(linked) == [0, 0]
        assert operator.says(PLUG) == DONE
        wait_for_carriers(linked, [1, 0])
        ping(linked)
        unplug(operator)
        check_free("tap0")
        wait_for_carriers(linked, [0, 0])
        linked.run("! ping -c 1 -W 1 10.0.0.1 >/dev/null 2>&1")
    assert len(os.listdir("/proc/self/fd")) == before
    assert linked.log.read_text() == ""


def change_promiscuity(linked: Live, operator: Operator, switch: str, told: str) -> None:
    """Change it in the guest; an event must tell, and a request then show what it is."""
    # An event that comes with the answer may be of a change after it, and the next has none.
    while operator.says('{"execute":"query-rx-filter"}') and operator.skipped:
        pass
    linked.run(f"ip link set eth0 promisc {switch}")
    event = operator.line(filters=True)
    assert '"NIC_RX_FILTER_CHANGED","data":{"name":"net-0","path":"net-0"}' in event
    answer = operator.says('{"execute":"query-rx-filter"}')
    assert f'"name":"net-0","promiscuous":{told}' in answer


def test_what_the_guest_wants_to_receive_is_told(linked: Live, operator: Operator) -> None:
    assert operator.says(ADD) == DONE
    assert operator.says(PLUG) == DONE
    wait_for_carriers(linked, [1, 0])
    with reporting(linked.machine):
        for switch, told in (("on", "true"), ("off", "false")):
            change_promiscuity(linked, operator, switch, told)
    unplug(operator)


def test_both_slots(linked: Live, operator: Operator) -> None:
    """The second has a backend of another name; without `addr` the first free slot is taken."""
    assert operator.says(ADD.replace("net-0", "behind").replace("tap0", "tap1")) == DONE
    plug = PLUG.replace('"addr":"0x0"', '"addr":"0x1", "netdev":"behind"')
    assert operator.says(plug.replace("net-0", "second")) == DONE
    wait_for_carriers(linked, [0, 1])
    ping(linked, 1)
    assert operator.says(ADD) == DONE
    assert operator.says(PLUG.replace(', "addr":"0x0"', "")) == DONE
    wait_for_carriers(linked, [1, 1])
    ping(linked, 0)
    ping(linked, 1)
    assert '"second"' in operator.says(UNPLUG.replace("net-0", "second"))
    assert operator.line() == DONE
    wait_for_carriers(linked, [1, 0])
    ping(linked, 0)
    check_free("tap1")


def test_a_tap_that_the_client_opened(linked: Live, operator: Operator) -> None:
    """It comes by SCM_RIGHTS, and is the client's again when the NIC is gone."""
    tap = Tap(TapConfig("tap0"))
    before = len(os.listdir("/proc/self/fd"))
    getfd = '{"execute":"getfd", "arguments":{"fdname":"mine"}}'
    assert "Invalid SCM message" in operator.says(getfd)
    assert operator.sends(getfd, tap.fds[0]) == DONE
    add = '{"execute":"netdev_add", "arguments":{"id":"net-0", "fd":"mine"}}'
    assert operator.says(add) == DONE
    assert "File descriptor named 'mine' not found" in operator.says(add.replace("-0", "-1"))
    assert operator.says(PLUG) == DONE
    wait_for_carriers(linked, [1, 0])
    ping(linked)
    unplug(operator)
    wait_for_carriers(linked, [0, 0])
    assert len(os.listdir("/proc/self/fd")) == before
    check_used("tap0")
    tap.close()
    check_free("tap0")


def test_a_guest_says_where_it_is_when_it_is_plugged_in(linked: Live, operator: Operator) -> None:
    arp, own = 0x0806, socket.inet_aton("10.0.0.2")
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(arp)) as wire,
        reporting(linked.machine),
    ):
        wire.bind(("tap0", arp))
        wire.settimeout(20)
        assert operator.says(ADD) == DONE
        assert operator.says(PLUG) == DONE
        frame = b""
        # Sender and target are the same.
        while (frame[28:32], frame[38:42]) != (own, own):
            frame = wire.recv(100)
    unplug(operator)


def test_refusals(linked: Live, operator: Operator) -> None:
    """Each leaves everything as it was: descriptors, links, and what was plugged in before."""

    def refused(request: str) -> str:
        before = len(os.listdir("/proc/self/fd"))
        answer: dict[str, Any] = json.loads(operator.says(request))
        assert answer["error"]["class"] == "GenericError"
        assert len(os.listdir("/proc/self/fd")) == before
        text: str = answer["error"]["desc"]
        return text

    missing = refused(ADD.replace("tap0", "tap9"))
    assert missing.startswith("`ifname` tap9: there is no such tap")
    assert missing.endswith("; make it: sudo pyvirt net up tap9")
    assert refused(ADD.replace("tap0", "lo")).startswith("`ifname` lo: is no tap")
    assert refused(PLUG) == "Failed to find device configuration."
    held = Tap(TapConfig("tap0"))
    assert "in use by another process" in refused(ADD)
    held.close()
    with socket.socket() as no_tap:
        getfd = '{"execute":"getfd", "arguments":{"fdname":"mine"}}'
        assert operator.sends(getfd, no_tap.fileno()) == DONE
    by_fd = '{"execute":"netdev_add", "arguments":{"id":"net-0", "fd":"mine"}}'
    assert refused(by_fd).startswith("`fd` mine: no tap")

    assert operator.says(ADD) == DONE
    assert refused(ADD.replace("tap0", "tap1")) == "net-0 is already registered."
    assert refused(PLUG.replace("-net-", "-blk-")).startswith("The device type is blk")
    assert refused(PLUG.replace("0x0", "0x2")).startswith("A maximum of 2 net")
    with_mac = PLUG.replace('"0x0"', '"0x0", "mac":"52:54:00:12:34:56"')
    own = mac.show(linked.machine.slot("net", 0).config()[:6])
    assert refused(with_mac) == (
        f"NIC slot 0: the guest's driver knows this slot by the address {own}, which it asks only "
        "when it starts; give that mac or none, and set yours in the guest (ip link set dev NAME "
        "address MAC), or unbind the driver there first"
    )
    assert carriers(linked) == [0, 0]
    assert operator.says(with_mac.replace("52:54:00:12:34:56", own)) == DONE
    wait_for_carriers(linked, [1, 0])
    assert linked.run("cat /sys/class/net/eth0/address") == own

    assert operator.says(ADD.replace("net-0", "net-1").replace("tap0", "tap1")) == DONE
    assert refused(PLUG.replace("net-0", "net-1")) == "The slot 6 is occupied already."
    assert "is plugged already" in refused(PLUG.replace('"0x0"', '"0x1", "netdev":"net-1"'))
    ping(linked)
    unplug(operator)
    assert refused(UNPLUG) == "Device net-0 not found"


def test_plug_while_paused(linked: Live, operator: Operator) -> None:
    assert '"STOP"' in operator.says('{"execute":"stop"}')
    assert operator.line() == DONE
    assert operator.says(ADD) == DONE
    assert operator.says(PLUG) == DONE
    assert '"RESUME"' in operator.says('{"execute":"cont"}')
    assert operator.line() == DONE
    wait_for_carriers(linked, [1, 0])
    ping(linked)


def test_unplug_under_load(linked: Live, operator: Operator) -> None:
    """What is under way is lost, as by a pulled cable, and nothing is wrong afterwards."""
    for _ in range(2):
        assert operator.says(ADD) == DONE
        assert operator.says(PLUG) == DONE
        wait_for_carriers(linked, [1, 0])
        ping(linked)
        linked.run("ping -A -q -s 1400 10.0.0.1 >/dev/null & echo $! >/tmp/load")
        time.sleep(0.3)
        unplug(operator)
        wait_for_carriers(linked, [0, 0])
        linked.run("kill $(cat /tmp/load); wait $(cat /tmp/load) 2>/dev/null || :")
    assert linked.log.read_text() == ""
