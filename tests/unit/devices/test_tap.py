"""Taps of the host, real ones in a network namespace: opened, probed, and refused in one line."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from pyvirt.devices import tap
from pyvirt.devices.tap import Tap, TapConfig

from ..namespace import ip, network_namespace
from ..refusal import refusal, unprivileged

FRAME = bytes.fromhex("ffffffffffff 525400123456 88b5") + bytes(46)
ALL = tap.TUN_F_CSUM | tap.TUN_F_TSO4 | tap.TUN_F_TSO6 | tap.TUN_F_TSO_ECN
USO = tap.TUN_F_USO4 | tap.TUN_F_USO6


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        ip("tuntap add tap0 mode tap")
        yield


@pytest.fixture
def open_to_all(monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> None:
    """Stand a /dev/net/tun in that anybody may open, as it is on most hosts."""
    device = open_folder / "tun"
    os.mknod(device, stat.S_IFCHR, os.stat(tap.DEVICE).st_rdev)
    device.chmod(0o666)
    monkeypatch.setattr(tap, "DEVICE", str(device))


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def open_raw(name: str = "tap0", flags: int = tap.IFF_NO_PI | tap.IFF_VNET_HDR) -> int:
    """Open a tap as another program would."""
    fd = os.open(tap.DEVICE, os.O_RDWR)
    fcntl.ioctl(fd, tap.TUNSETIFF, struct.pack("16sH22x", name.encode(), tap.IFF_TAP | flags))
    return fd


def test_a_tap_carries_frames_behind_headers_of_12_bytes() -> None:
    ip("link set tap0 up mtu 9000")
    one = TapConfig("tap0").open()
    assert (one.name, one.mtu, len(one.fds), one.vhost_fds) == ("tap0", 9000, 1, ())
    (fd,) = one.fds
    assert not os.get_blocking(fd)
    assert not os.get_inheritable(fd)
    before = int(Path("/proc/thread-self/net/dev").read_text().split("tap0:")[1].split()[1])
    assert os.write(fd, bytes(12) + FRAME) == 12 + len(FRAME)
    after = int(Path("/proc/thread-self/net/dev").read_text().split("tap0:")[1].split()[1])
    assert after == before + 1
    one.close()


def test_the_probe_finds_the_offloads() -> None:
    one = TapConfig("tap0").open()
    assert one.offloads & ~USO == ALL
    assert one.offloads & USO in {0, USO}
    one.close()


class OldKernel:
    """An ioctl of a kernel without USO, or without anything but checksums."""

    def __init__(self, known: int) -> None:
        self.known = known
        self.set = -1

    def __call__(self, fd: int, request: int, argument: int) -> None:
        assert request == tap.TUNSETOFFLOAD
        if argument & ~self.known:
            raise OSError(errno.EINVAL, "")
        self.set = argument


@pytest.mark.parametrize("known", [0, tap.TUN_F_CSUM, ALL, ALL | USO])
def test_an_older_kernel_has_fewer_offloads(monkeypatch: pytest.MonkeyPatch, known: int) -> None:
    kernel = OldKernel(known)
    monkeypatch.setattr(fcntl, "ioctl", kernel)
    assert tap._probe_offloads(3) == known
    assert kernel.set == 0


def test_four_queues() -> None:
    ip("tuntap add tap4 mode tap multi_queue")
    one = TapConfig("tap4", queues=4).open()
    assert len(set(one.fds)) == 4
    assert "numqueues 4" in ip("-d link show tap4")
    one.close()


def test_one_queue_of_a_tap_that_has_many() -> None:
    ip("tuntap add tap4 mode tap multi_queue")
    one = TapConfig("tap4").open()
    assert len(one.fds) == 1
    one.close()


@pytest.mark.parametrize("flags", [0, tap.IFF_MULTI_QUEUE])
def test_a_tap_that_is_open_already(flags: int) -> None:
    ip("tuntap add tap4 mode tap multi_queue")
    wanted = tap.IFF_NO_PI | tap.IFF_VNET_HDR | flags
    count = 2 if flags else 1
    fds = tuple(open_raw("tap4" if flags else "tap0", wanted) for _ in range(count))
    one = TapConfig(fds=fds, queues=count).open()
    assert one.name == ("tap4" if flags else "tap0")
    assert one.fds == fds
    assert not any(os.get_inheritable(fd) or os.get_blocking(fd) for fd in fds)
    one.close()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TapConfig("tap9"), "no such tap; make it: sudo pyvirt net up tap9"),
        (TapConfig("lo"), "is no tap"),
        (TapConfig("tun1"), "is no tap"),
        (TapConfig("tap0", queues=2), "the tap has one queue; make it anew"),
        (TapConfig(fds=(0,)), "-netdev fd=0: no tap"),
        (TapConfig(fds=(999,)), "-netdev fd=999: not an open file"),
        (TapConfig("tap0", vhost=True, vhost_fds=(0,)), "-netdev vhostfd=0: not a file of"),
    ],
)
def test_refused_and_nothing_left(config: TapConfig, words: str) -> None:
    ip("tuntap add tun1 mode tun")
    before = descriptors()
    assert words in refusal(config.open)
    assert descriptors() == before
    assert "tap9" not in ip("link")
    Tap(TapConfig("tap0")).close()


def test_a_tap_of_the_host_is_not_one_of_the_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVIRT_LAB", "1")
    assert refusal(TapConfig("tap9").open) == (
        "-netdev ifname=tap9: there is no such tap in the nested lab, which has not the host's; "
        "make it: sudo pyvirt net up tap9"
    )


def test_a_busy_tap_is_refused() -> None:
    holder = TapConfig("tap0").open()
    before = descriptors()
    message = refusal(TapConfig("tap0").open)
    assert message == (
        "-netdev ifname=tap0: in use by another process; end that one, or give another tap"
    )
    assert "the tap has one queue" in refusal(TapConfig("tap0", queues=2).open)
    assert descriptors() == before
    holder.close()
    TapConfig("tap0").open().close()


def test_more_queues_than_a_tap_has_are_refused() -> None:
    ip("tuntap add tap4 mode tap multi_queue")
    before = descriptors()
    assert "-netdev ifname=tap4" in refusal(TapConfig("tap4", queues=300).open)
    assert descriptors() == before


@pytest.mark.usefixtures("open_to_all")
def test_anothers_tap_is_refused() -> None:
    ip("tuntap add tap1 mode tap user 12345")
    with unprivileged():
        message = refusal(TapConfig("tap1").open)
    assert "no permission; run as root, or make it yours: sudo pyvirt net up tap1" in message


@pytest.mark.usefixtures("open_to_all")
def test_a_tap_of_ones_own_needs_no_privileges() -> None:
    ip("tuntap add tap1 mode tap user 65534")
    with unprivileged():
        TapConfig("tap1").open().close()


def test_no_tun_device(monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> None:
    monkeypatch.setattr(tap, "DEVICE", str(open_folder / "tun"))
    assert "run: sudo modprobe tun" in refusal(TapConfig("tap0").open)
    (open_folder / "tun").touch(mode=0o600)
    with unprivileged():
        assert "Permission denied; run as root" in refusal(TapConfig("tap0").open)


def test_files_without_the_header_are_refused_and_stay_the_givers() -> None:
    fd = open_raw(flags=tap.IFF_NO_PI)
    message = refusal(TapConfig(fds=(fd,)).open)
    assert "not a tap with IFF_NO_PI and IFF_VNET_HDR" in message
    os.close(fd)


def test_files_of_two_taps_are_refused() -> None:
    ip("tuntap add tap1 mode tap")
    fds = (open_raw("tap0"), open_raw("tap1"))
    message = refusal(TapConfig(fds=fds, queues=2).open)
    assert "queues of tap0 and tap1; give those of one tap" in message
    for fd in fds:
        os.close(fd)


def test_no_vhost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tap, "VHOST_DEVICE", str(tmp_path / "vhost-net"))
    before = descriptors()
    message = refusal(TapConfig("tap0", vhost=True).open)
    assert "sudo modprobe vhost_net; or give vhost=off" in message
    assert descriptors() == before
    (tmp_path / "vhost-net").touch()
    one = TapConfig("tap0", vhost=True).open()
    assert len(one.vhost_fds) == 1
    one.close()
    assert descriptors() == before


def test_a_tap_that_goes_while_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tap.set_interface

    def attach(fd: int, name: str, flags: int) -> int:
        result = real(fd, name, flags)
        ip(f"link del {name}")
        return result

    monkeypatch.setattr(tap, "set_interface", attach)
    before = descriptors()
    assert "it was removed meanwhile" in refusal(partial(Tap, TapConfig("tap0")))
    assert descriptors() == before
