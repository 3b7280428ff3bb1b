"""The hostile guest on devices that another process serves: what the monitor itself holds it to.

That is registers, accesses, queues and life. What is in the rings is the back end's affair: these
leave a ring alone that has broken a rule, and none of them can say NEEDS_RESET.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pyvirt.devices.vhost_user import protocol as p
from pyvirt.devices.virtio.queue import DriverError

from ..hostile import report
from ..unit.devices.vhost_user.back_end import BackEnd
from ..unit.devices.vhost_user.switch import PROTOCOL, Switch
from ..unit.devices.vhost_user.test_plugged_nic import ALL
from .test_hostile import Play, check, folder, guest, play

pytestmark = [pytest.mark.any_kvm, pytest.mark.long]
__all__ = ["folder", "guest", "play"]  # fixtures
SECTOR, SECTORS = 512, 128
_BLOCK_CONFIG = struct.pack("<Q52x", SECTORS)
IN, OUT = 0, 1
OK, UNSUPPORTED = b"\0", b"\2"
OURS = [
    rule
    for rule in report.rules("register", "access", "queue", "life")
    if rule not in {"needs-reset-is-told", "needs-reset-stays", "neighbours-serve"}
]
ONLY = f"hostile.only={','.join(OURS)}"


class Careful(BackEnd):
    """Serves a ring until it breaks a rule."""

    def _serve(self, index: int) -> None:
        with suppress(DriverError):
            super()._serve(index)


class CarefulSwitch(Switch):
    """The same for NICs."""

    def _serve(self, index: int) -> None:
        with suppress(DriverError):
            super()._serve(index)


def block(_queue: int, data: bytes) -> bytes:
    """Answer a disk's request: all sectors are zeros."""
    kind = int.from_bytes(data[:4], "little")
    return {IN: bytes(SECTOR) + OK, OUT: OK}.get(kind, UNSUPPORTED)


def files(_queue: int, data: bytes) -> bytes:
    """Answer FUSE_INIT, as to its frame (struct fuse_out_header)."""
    unique = int.from_bytes(data[8:16], "little")
    return struct.pack("<IiQ64x", 80, 0, unique)


Start = Callable[..., BackEnd]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Return a function that starts a back end; it ends with the test, and tells its own faults."""
    started: list[BackEnd] = []

    def go(kind: type[BackEnd], *words: object, **options: object) -> BackEnd:
        started.append(kind(folder / "s", *words, **options))  # type: ignore[arg-type]
        return started[-1]

    yield go
    for one in started:
        one.die()


def chardev(back_end: BackEnd) -> tuple[str, ...]:
    return ("-chardev", f"socket,id=c,path={back_end.path}")


def test_files(play: Play, start: Start) -> None:
    one = start(Careful, files)
    verdicts = play(*chardev(one), "-device", "vhost-user-fs-device,chardev=c,tag=t", append=ONLY)
    check(verdicts, "fs0")
    assert one.heard.count(p.GET_VRING_BASE) > 100, "resets while it serves"


def test_disk(play: Play, start: Start) -> None:
    one = start(Careful, block, config=_BLOCK_CONFIG)
    verdicts = play(*chardev(one), "-device", "vhost-user-blk-device,chardev=c", append=ONLY)
    check(verdicts, "block0")
    assert one.heard.count(p.GET_VRING_BASE) > 100


def test_network(play: Play, start: Start) -> None:
    one = start(CarefulSwitch, features=ALL, protocol=PROTOCOL)
    nic = ("-netdev", "vhost-user,id=n,chardev=c", "-device", "virtio-net-device,netdev=n")
    check(play(*chardev(one), *nic, append=ONLY), "net0")
    assert one.heard.count(p.GET_VRING_BASE) > 100
