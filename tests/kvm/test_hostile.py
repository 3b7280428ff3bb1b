"""A driver that breaks every rule, against every device: none of it costs more than the device."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest
from pyvirt.harness.plugin.ktap import FAILED, SKIPPED

from ..hostile import report
from ..hostile.report import Verdict
from .support import PATIENCE
from .test_run import command

pytestmark = pytest.mark.any_kvm
SECTOR = 512
ZEROES = bytes(64 << 10)
NEEDS_RESET = "NEEDS_RESET"
PREFIX = 4  # bytes of a length
ROOM = 1 << 16
# What every device answers in this way where it has the rule to answer to: by the letter, and at
# once. The guest would take other answers as well.
_BREAKS = """
    queue-size-0 queue-size-3 queue-size-above-max queue-size-huge queue-size-beyond-16-bits
    desc-misaligned avail-misaligned used-misaligned
    desc-outside-memory avail-outside-memory used-outside-memory
    rings-wrap rings-in-registers ring-over-the-end
    avail-jumps avail-jumps-half-way avail-goes-back head-out-of-range head-huge
    other-queues-head other-queues-loop other-queues-outside-memory
    next-out-of-range next-huge loop-to-itself loop-of-empty-links flags-unknown
    readable-after-writable segment-outside-memory segment-high-bit segment-address-wraps
    segment-length-wraps segment-over-the-end segment-in-registers
    table-not-negotiated table-and-next table-in-table table-in-itself table-odd-length table-empty
    table-outside-memory table-wraps table-in-registers table-next-out-of-range table-loop
    table-long sum-wraps needs-reset-is-told needs-reset-stays
"""
BREAKS = frozenset(_BREAKS.split())
# What no device may break over: the driver's word alone is wrong, or nothing is.
_WORKS = """
    identity narrow-reads narrow-writes wide-reads wide-writes across-registers over-the-end
    string-accesses locked-accesses unknown-registers read-only-registers select-out-of-range
    notify-out-of-range features-too-late status-bits-cleared status-unknown-bits
    live-queue-grows live-queue-grows-beyond-max live-queue-size-0 live-queue-moves
    live-queue-unready live-queue-ready-again queue-reset-not-offered
    avail-flags used-ring-scribbled event-index kicks-for-nothing idx-wraps
    segments-of-a-byte table table-writable
    reset-in-flight reset-rounds kick-before-driver-ok reset-twice neighbours-serve
"""
WORKS = frozenset(_WORKS.split())
# Registers take 4 bytes at their place, and nothing else.
ACCESSES = frozenset(("narrow-writes", *report.rules("access")))
SERVES = {"served", "used, nothing written"}


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the hostile guest's kernel."""
    return report.build(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder for sockets and images."""
    with TemporaryDirectory() as name:
        yield Path(name)


def _frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole frames with their lengths before them, and what is left."""
    frames = []
    while len(data) >= PREFIX and len(data) >= (end := PREFIX + int.from_bytes(data[:PREFIX])):
        frames.append(data[:end])
        data = data[end:]
    return frames, data


def _echo(listening: socket.socket) -> None:
    """Send every frame back; those for which there is no room are lost, so that nobody waits."""
    with listening:
        peer, _ = listening.accept()
    peer.setblocking(False)
    coming = going = b""
    with peer, contextlib.suppress(OSError):  # the machine ends with something in flight
        while True:
            readable, _, _ = select.select([peer], [peer] if going else [], [])
            if readable:
                data = peer.recv(1 << 16)
                if not data:
                    return
                frames, coming = _frames(coming + data)
                going += b"".join(frames) if len(going) < ROOM else b""
            with contextlib.suppress(BlockingIOError):
                going = going[peer.send(going) :]


@pytest.fixture
def network(folder: Path) -> Iterator[Path]:
    """Return the socket of a network whose frames all come back."""
    path = folder / "net.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(1)
    thread = Thread(target=_echo, args=(listening,))
    thread.start()
    yield path
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.connect_ex(str(path))  # where the machine never came
    thread.join()


Play = Callable[..., list[Verdict]]


@pytest.fixture
def play(guest: Path, folder: Path) -> Play:
    """Return a function that plays rules on devices, in a machine that ends by the guest's will."""

    def run(*options: str, append: str = "") -> list[Verdict]:
        words = command(guest, "-append", f"hostile.rounds=20 {append}", *options)
        with (folder / "log").open("w") as log:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                timeout=3.5 * PATIENCE,
                check=False,
            )
        verdicts = report.read(done.stdout.decode())
        assert done.returncode == any(v.outcome == FAILED for v in verdicts), done
        return verdicts

    return run


def check(verdicts: list[Verdict], *devices: str) -> None:
    """Fail when a rule was broken, or answered in another way than ours."""
    assert [v for v in verdicts if v.outcome == FAILED] == []
    assert {v.device for v in verdicts} == set(devices)
    played = [v for v in verdicts if v.outcome != SKIPPED]
    assert [v for v in played if v.rule in BREAKS and v.answer != NEEDS_RESET] == []
    assert [v for v in played if v.rule in WORKS and v.answer == NEEDS_RESET] == []
    assert [v for v in played if v.rule in ACCESSES and v.answer not in SERVES] == []


def skipped(verdicts: list[Verdict]) -> set[str]:
    return {v.rule for v in verdicts if v.outcome == SKIPPED}


ENTROPY = ("-object", "rng-random,id=source", "-device", "virtio-rng-device,rng=source")
OTHER_QUEUES = {f"other-queues-{what}" for what in ("head", "loop", "outside-memory")}


@pytest.mark.long
def test_disk(play: Play, folder: Path) -> None:
    image = folder / "image"
    image.write_bytes(ZEROES)
    verdicts = play("-disk", str(image))
    check(verdicts, "block0")
    assert skipped(verdicts) == {"block-write-read-only"} | OTHER_QUEUES
    written = image.read_bytes()
    assert written[:SECTOR] != ZEROES[:SECTOR]
    assert written[SECTOR:] == ZEROES[SECTOR:]


@pytest.mark.long
def test_read_only_disk(play: Play, folder: Path) -> None:
    """As any disk, but for what is written."""
    image = folder / "image"
    image.write_bytes(ZEROES)
    rules = [rule for rule in report.rules() if rule.startswith("block-")]
    verdicts = play("-disk", f"{image},readonly=on", append=f"hostile.only={','.join(rules)}")
    check(verdicts, "block0")
    assert skipped(verdicts) == {"block-write-and-read"}
    assert image.read_bytes() == ZEROES


def test_entropy(play: Play) -> None:
    verdicts = play(*ENTROPY)
    check(verdicts, "entropy0")
    assert skipped(verdicts) == OTHER_QUEUES


@pytest.mark.long
def test_network(play: Play, network: Path) -> None:
    verdicts = play(
        *("-netdev", f"stream,id=n,path={network}", "-device", "virtio-net-device,netdev=n")
    )
    check(verdicts, "net0")
    assert skipped(verdicts) == set()


@pytest.mark.long
def test_sockets(play: Play, folder: Path) -> None:
    verdicts = play("-device", f"vsock-device,guest-cid=77,uds={folder}/vsock.sock")
    check(verdicts, "socket0")
    assert skipped(verdicts) == set()


@pytest.mark.long
def test_console(play: Play) -> None:
    verdicts = play(
        *("-chardev", "null,id=one", "-chardev", "null,id=other"),
        *("-device", "virtio-serial-device", "-device", "virtconsole,chardev=one"),
        *("-device", "virtserialport,chardev=other,name=org.example.port"),
    )
    check(verdicts, "console0")
    assert skipped(verdicts) == set()


@pytest.mark.long
def test_balloon(play: Play) -> None:
    verdicts = play("-device", "virtio-balloon-device")
    check(verdicts, "balloon0")
    assert skipped(verdicts) == set()


@pytest.mark.long
def test_neighbours(play: Play, folder: Path) -> None:
    """Those of one kind, which share a thread, and of others."""
    image = folder / "image"
    image.write_bytes(ZEROES)
    disks = [
        word
        for name in ("one", "other")
        for word in (
            *("-drive", f"id={name},file={image},readonly=on"),
            *("-device", f"virtio-blk-device,drive={name},iothread=shared"),
        )
    ]
    verdicts = play(
        *("-object", "iothread,id=shared", *disks, *ENTROPY, "-device", "virtio-balloon-device"),
        append="hostile.only=neighbours-serve,identity,reset-in-flight",
    )
    check(verdicts, "block0", "block1", "entropy0", "balloon0")
    assert skipped(verdicts) == set()


def test_windows_of_the_command_line(play: Play) -> None:
    """Where one is named nothing else is looked at."""
    named = "virtio_mmio.device=4K@0xd0001000:6"
    verdicts = play(
        *(*ENTROPY, "-device", "virtio-balloon-device"),
        append=f"{named} hostile.only=identity,head-huge",
    )
    assert [(v.device, v.rule) for v in verdicts] == [
        ("balloon0", "identity"),
        ("balloon0", "head-huge"),
    ]


@pytest.mark.parametrize("form", report.FORMS)
def test_each_form_is_entered(guest: Path, folder: Path, form: str) -> None:
    image = folder / "image"
    image.write_bytes(ZEROES)
    words = command(guest.with_name(form), "-append", "hostile.only=segment-over-the-end")
    done = subprocess.run(
        [*words, "-disk", str(image)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    (verdict,) = report.read(done.stdout.decode())
    assert verdict.answer == NEEDS_RESET, "it was told where memory ends"
    assert done.returncode == 0


@pytest.mark.long
def test_with_another_compiler(tmp_path: Path) -> None:
    report.build(tmp_path, "clang")


def test_every_rule_is_known_here() -> None:
    assert not BREAKS & WORKS
    assert set(report.rules()) >= BREAKS | WORKS
