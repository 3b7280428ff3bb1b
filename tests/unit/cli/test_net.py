"""`pyvirt net`: what it makes and removes in a namespace, and what it leaves of a failure."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.cli import net
from pyvirt.devices.tap import TapConfig
from pyvirt.errors import BackendError, ConfigError, PyvirtError
from pyvirt.harness.guest import tool
from pyvirt.harness.vm import network

from ..namespace import ip, network_namespace
from ..refusal import refusal


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


def run(*words: str) -> None:
    assert net.main(list(words)) == 0


def links() -> dict[str, str]:
    """Return the links by their names, each with what `ip` shows of it."""
    shown = re.split(r"^\d+: ", ip("-d link"), flags=re.MULTILINE)[1:]
    return {re.split("[:@]", one)[0]: one for one in shown if not one.startswith("lo:")}


def rules() -> str:
    nft = shutil.which("nft", path="/usr/sbin:/usr/bin:/sbin")
    assert nft
    done = subprocess.run(
        [nft, "list", "ruleset"], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def state() -> tuple[list[str], str, str, str]:
    """Return what a call that fails must leave as it was, times and counters apart."""
    forward = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    return sorted(links()), re.sub(r"\d+sec|forever", "", ip("addr")), rules(), forward


def test_a_tap_alone() -> None:
    run("up", "tap0")
    assert list(links()) == ["tap0"]
    assert "type tap" in links()["tap0"]
    assert ",UP" in links()["tap0"]
    assert f"alias {network.MARK}" in links()["tap0"]
    TapConfig("tap0").open().close()
    run("down", "tap0")
    assert links() == {}


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_a_tap_in_a_bridge_with_an_address(dashes: str) -> None:
    for _ in range(2):  # the second time there is nothing to do
        run("up", "tap0", f"{dashes}bridge", "br0", f"{dashes}address", "10.1.2.3/24")
        assert sorted(links()) == ["br0", "tap0"]
        assert "master br0" in links()["tap0"]
        assert ip("-4 -br addr show br0").split()[2:] == ["10.1.2.3/24"]
    run("down", "tap0")
    assert links() == {}
    assert refusal(lambda: run("down", "tap0")).startswith("net down tap0: there is no such tap; ")


def test_a_bridge_goes_with_its_last_tap() -> None:
    run("up", "tap0", "-bridge", "br0")
    before = re.search(r"link/ether (\S+)", links()["br0"])
    run("up", "tap1", "-bridge", "br0")
    after = re.search(r"link/ether (\S+)", links()["br0"])
    assert before
    assert after
    assert before[1] == after[1]
    run("down", "tap0")
    assert sorted(links()) == ["br0", "tap1"]
    run("down", "tap1")
    assert links() == {}


def test_a_bridge_of_anothers_stays() -> None:
    ip("link add br0 type bridge")
    run("up", "tap0", "-bridge", "br0")
    run("down", "tap0")
    assert list(links()) == ["br0"]


def test_a_bridge_with_a_port_of_anothers_stays() -> None:
    run("up", "tap0", "-bridge", "br0")
    ip("tuntap add other mode tap")
    ip("link set other master br0")
    run("down", "tap0")
    assert sorted(links()) == ["br0", "other"]


def test_what_a_tap_is_made_like() -> None:
    run("up", "tap4", "-multi-queue", "-user", "nobody", "-mtu", "9000")
    shown = links()["tap4"]
    assert "multi_queue numqueues" in shown
    assert "user nobody" in shown
    assert "mtu 9000" in shown
    TapConfig("tap4", queues=4).open().close()


@pytest.mark.parametrize(("address", "family"), [("10.9.0.1/24", "ip"), ("fd00::1/64", "ip6")])
def test_masquerading(address: str, family: str) -> None:
    for _ in range(2):
        run("up", "tap0", "-bridge", "br0", "-address", address, "-nat")
        assert rules().count("masquerade") == 1
    assert f"table {family} pyvirt-br0" in rules()
    assert f"{family} saddr" in rules()
    run("down", "tap0")
    assert rules() == ""
    assert links() == {}


def test_packets_are_forwarded_with_nat_alone() -> None:
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    forward.write_text("0\n")
    run("up", "tap0", "-address", "10.9.0.1/24")
    assert forward.read_text() == "0\n"
    run("up", "tap0", "-address", "10.9.0.1/24", "-nat")
    assert forward.read_text() == "1\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tap0 -address 10.0.0.1", "not an address with a prefix length"),
        ("tap0 -address 10.0.0.1/33", "not an address with a prefix length"),
        ("tap0 -address 10.0.0.256/24", "not an address with a prefix length"),
        ("tap0 -nat", "takes an -address as well"),
        ("tap0 -user nobodyelse", "there is no such user"),
        ("tap0 -mtu 67", "from 68 to 65521"),
        ("tap0 -mtu 65522", "from 68 to 65521"),
        ("abcdefghijklmnop", "not a name for an interface"),
        ("a/b", "not a name for an interface"),
        ("tap%d", "not a name for an interface"),
        ("tap0 -bridge br:0", "net up -bridge br:0: not a name"),
        ("lo", "there is such an interface, and it is no tap"),
        ("tun0", "there is such an interface, and it is no tap"),
        ("tap0 -bridge lo", "net up -bridge lo: not a bridge"),
        ("many -bridge br0", "the tap has many queues; run first: pyvirt net down many"),
        ("single -multi-queue", "the tap has one queue; run first: pyvirt net down single"),
        ("ported -bridge br0 -address 10.0.0.1/24", "it is in other already"),
        ("tap0 -bridge other -address 10.0.0.1/24 -nat", "other was not made by pyvirt net up"),
    ],
)
def test_refused_and_nothing_left(words: str, message: str) -> None:
    ip("tuntap add tun0 mode tun")
    ip("tuntap add many mode tap multi_queue")
    ip("tuntap add single mode tap")
    ip("tuntap add ported mode tap")
    ip("link add other type bridge")
    ip("link set ported master other")
    before = state()
    assert message in refusal(lambda: run("up", *words.split()))
    assert state() == before


@pytest.mark.parametrize(
    "broken",
    ["make_bridge", "join", "change", "add_address", "masquerade", "raise_link"],
)
def test_what_fails_halfway_leaves_nothing(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Each step fails when it is done itself, so that all before it are to be undone."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0\n")
    before = state()
    real = getattr(network._Host, broken)

    def fail(*arguments: object, **words: object) -> None:
        real(*arguments, **words)
        raise BackendError("a step failed")

    words = ["up", "tap0", "-bridge", "br0", "-address", "10.0.0.1/24", "-nat", "-mtu", "1400"]
    with monkeypatch.context() as patch:
        patch.setattr(network._Host, broken, fail)
        with pytest.raises(BackendError, match="a step failed"):
            run(*words)
    assert state() == before
    run(*words)
    run("down", "tap0")
    assert state()[:3] == before[:3]


def test_a_failed_change_leaves_what_was_there() -> None:
    run("up", "tap0", "-bridge", "br0", "-address", "10.0.0.1/24")
    before = state()
    with pytest.raises(ConfigError):
        run("up", "tap0", "-bridge", "lo", "-address", "10.0.1.1/24")
    # The same address once more, on another bridge: the tap stays where it is.
    with pytest.raises(ConfigError, match="it is in br0 already"):
        run("up", "tap0", "-bridge", "br1", "-address", "10.0.1.1/24", "-mtu", "1400")
    assert state() == before


def test_a_tool_that_is_missing_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = state()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(tool, "SYSTEM_PATH", "/nowhere")
    with pytest.raises(PyvirtError, match="nft is not installed; run: sudo apt-get install"):
        run("up", "tap0", "-address", "10.0.0.1/24", "-nat")
    monkeypatch.undo()
    assert state() == before


def test_anothers_tap_is_not_removed() -> None:
    ip("tuntap add tap7 mode tap")
    run("up", "tap7", "-address", "10.0.0.1/24")
    assert "not made by pyvirt net up" in refusal(lambda: run("down", "tap7"))
    assert list(links()) == ["tap7"]


def test_without_privileges() -> None:
    program = "import sys; from pyvirt.cli.main import main; main()"
    for words in (["up", "tap0"], ["up", "tap0", "-bridge", "br0"]):
        done = subprocess.run(
            ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", program, "net", *words],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "pyvirt: net tap0: Operation not permitted; "
            "it takes CAP_NET_ADMIN: run it as root, as by sudo\n"
        )
    assert links() == {}
