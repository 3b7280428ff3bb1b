"""Disks with overlays: the image stays, each writes its own, and layers are handed on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.overlay import LAYERS_MAX, MARK_BYTES
from pyvirt.devices.virtio.block import RO, Block, BlockConfig, Image
from pyvirt.errors import BackendError, ConfigError
from pyvirt.vmm.memory import GuestMemory

from ...file_limit import file_limit
from ...refusal import refusal
from .test_block_hotplug import DISCARD, IOERR, OK, OUT, SECTORS, Guest, descriptors

CONTENT = bytes(range(256)) * (2 * SECTORS)
A, B = b"A" * 512, b"B" * 512
MARK = bytes(range(MARK_BYTES))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


class Disks:
    """Disks of guests, each with a driver that is bound; all are closed at the end."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack

    def make(self, place: str = "memory", layers: tuple[int, ...] = (), **options: Any) -> Guest:
        memory = GuestMemory(8 << 20)
        self._stack.callback(memory.close)
        block = Block(BlockConfig("d", str(self._path), overlay=place, layers=layers, **options))
        guest = Guest(memory, block)
        self._stack.callback(block.close)
        self._stack.callback(guest.close)
        guest.bind()
        return guest


@pytest.fixture
def disks(path: Path) -> Iterator[Disks]:
    with ExitStack() as stack:
        yield Disks(path, stack)
    assert path.read_bytes() == CONTENT


def test_two_disks_of_one_image_at_once(disks: Disks, tmp_path: Path) -> None:
    guests = [disks.make("memory"), disks.make(str(tmp_path))]
    for guest, data in zip(guests, (A, B), strict=True):
        assert guest.offered() & RO == 0
        assert guest.ask(OUT, 3, data) == OK
    for guest, data in zip(guests, (A, B), strict=True):
        assert guest.read(2, 1536) == CONTENT[1024:1536] + data + CONTENT[2048:2560]
    # Files of overlays have no names.
    assert os.listdir(tmp_path) == ["disk.img"]
    assert [guest.block.stats().overlay_bytes > 0 for guest in guests] == [True, True]


def test_who_writes_the_image_is_kept_out(disks: Disks, path: Path) -> None:
    disks.make()
    message = refusal(lambda: Image(BlockConfig("d", str(path))))
    assert message.endswith("end that one, or give readonly=on or overlay=memory to both")
    Image(BlockConfig("d", str(path), readonly=True)).close()


def test_an_image_that_nobody_may_write(disks: Disks, path: Path) -> None:
    path.chmod(0o444)
    assert disks.make().ask(OUT, 3, A) == OK


def test_a_fork_of_a_fork(disks: Disks) -> None:
    first = disks.make()
    assert first.block.freeze() == ()
    first.ask(OUT, 1, A)
    first.ask(OUT, 2, A)
    layers = first.block.freeze()
    assert len(layers) == 1
    assert first.block.freeze() == layers
    second = disks.make(layers=layers)
    second.ask(OUT, 2, B)
    both = second.block.freeze()
    assert len(both) == 2
    third = disks.make(layers=both)
    first.ask(OUT, 1, B)
    third.ask(OUT, 4, B)
    same = CONTENT[:512]
    assert first.read(0, 2560) == same + B + A + same + same
    assert second.read(0, 2560) == same + A + B + same + same
    assert third.read(0, 2560) == same + A + B + same + B


def copied(guest: Guest, path: Path) -> int:
    """Return the descriptor, to be read, of a file with what is in a guest's overlay."""
    overlay = guest.block.overlay()
    assert overlay
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        overlay.copy(fd, MARK, lambda: None)
    finally:
        os.close(fd)
    return os.open(path, os.O_RDONLY)


def test_a_copy_is_one_layer_that_stays_as_it_is(disks: Disks, tmp_path: Path) -> None:
    first = disks.make()
    first.ask(OUT, 1, A)
    second = disks.make(layers=first.block.freeze())
    second.ask(OUT, 2, B)
    second.ask(OUT, 8, bytes(4096))
    copy = copied(second, tmp_path / "copy")
    content = (tmp_path / "copy").read_bytes()
    assert content.endswith(MARK)
    # What is copied goes on, and so does who begins with the copy.
    second.ask(OUT, 3, A)
    third = disks.make(layers=(copy,))
    third.ask(OUT, 1, B)
    same = CONTENT[:512]
    assert second.read(0, 2560) == same + A + B + A + same
    assert third.read(0, 2560) == same + B + B + same + same
    assert third.read(8, 4096) == bytes(4096)
    again = copied(third, tmp_path / "again")
    assert disks.make(layers=(again,)).read(0, 2560) == third.read(0, 2560)
    assert (tmp_path / "copy").read_bytes() == content
    for fd in (copy, again):
        os.close(fd)


def test_what_has_been_written_to_by_anybody_is_not_empty(disks: Disks) -> None:
    def is_empty(guest: Guest) -> bool:
        overlay = guest.block.overlay()
        assert overlay
        return overlay.is_empty

    first = disks.make()
    assert is_empty(first)
    first.ask(OUT, 1, A)
    assert not is_empty(first)
    assert not is_empty(disks.make(layers=first.block.freeze()))


def test_a_copy_ends_when_it_is_to(disks: Disks, tmp_path: Path) -> None:
    guest = disks.make()
    guest.ask(OUT, 1, A)
    overlay = guest.block.overlay()
    assert overlay

    def check() -> None:
        raise InterruptedError

    with open(tmp_path / "copy", "wb") as file:
        with pytest.raises(InterruptedError):
            overlay.copy(file.fileno(), MARK, check)
        with file_limit(4096), pytest.raises(OSError, match="File too large"):
            overlay.copy(file.fileno(), MARK, lambda: None)
    assert guest.read(1) == A


def test_layers_are_sealed(disks: Disks) -> None:
    guest = disks.make()
    guest.ask(OUT, 1, A)
    (layer,) = guest.block.freeze()
    for change in (lambda: os.pwrite(layer, B, 512), lambda: os.ftruncate(layer, 0)):
        with pytest.raises(PermissionError):
            change()


def test_a_disk_without_an_overlay_has_no_layers(path: Path) -> None:
    block = Block(BlockConfig("d", str(path), readonly=True))
    assert (block.freeze(), block.overlay()) == ((), None)
    block.close()
    assert (Block(slot=1).freeze(), Block(slot=1).overlay()) == ((), None)


def test_discards_give_room_back(disks: Disks) -> None:
    guest = disks.make(unmap=True)
    guest.ask(OUT, 8, 8 * A)
    assert guest.block.stats().overlay_bytes >= 4096
    ranges = (8).to_bytes(8, "little") + (8).to_bytes(4, "little") + bytes(4)
    assert guest.ask(DISCARD, 0, ranges) == OK
    assert guest.block.stats().overlay_bytes == 0
    assert guest.read(8, 4096) == bytes(4096)


def test_no_room_is_a_failure_to_write(disks: Disks) -> None:
    guest = disks.make()
    with file_limit(4096):
        assert guest.ask(OUT, 100, A) == IOERR
        refused = refusal(disks.make)
    assert guest.block.take_failure() == ("write", errno.EFBIG)
    assert guest.read(100) == CONTENT[:512]
    assert refused.endswith("overlay=memory: File too large; raise ulimit -f")


def test_a_layer_that_has_no_room_is_not_frozen(disks: Disks) -> None:
    guest = disks.make()
    guest.ask(OUT, 1, A)
    message = r"^disk d: its overlay: File too large; make room$"
    with file_limit(4096), pytest.raises(BackendError, match=message):
        guest.block.freeze()
    guest.ask(OUT, 2, A)
    assert guest.read(1, 1024) == A + A
    assert len(guest.block.freeze()) == 1
    assert guest.read(1, 1024) == A + A


def test_size_stays(disks: Disks) -> None:
    guest = disks.make()
    with pytest.raises(ConfigError, match=r"^disk d: size 512: its image is only read; leave"):
        guest.block.resize(512)
    assert guest.ask(OUT, 3, A) == OK


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/none", "No such file or directory; name another folder, or give memory"),
        ("/dev/null", "Not a directory; name another folder, or give memory"),
        ("/proc", "; name another folder, or give memory"),
    ],
)
def test_no_place_for_an_overlay(path: Path, place: str, words: str) -> None:
    before = descriptors()
    message = refusal(lambda: Image(BlockConfig("d", str(path), overlay=place)))
    assert message.startswith(f"-drive file={path},overlay={place}: ")
    assert message.endswith(words)
    assert descriptors() == before


def test_what_is_no_layer(path: Path) -> None:
    before = descriptors()
    with open(path, "rb") as file:
        config = BlockConfig("d", str(path), overlay="memory", layers=(file.fileno(),))
        message = refusal(lambda: Image(config))
    assert message.endswith("what is to be below it is no layer of a disk of this size")
    assert descriptors() == before


def test_layers_have_a_limit(disks: Disks) -> None:
    guest = disks.make()
    for sector in range(LAYERS_MAX):
        guest.ask(OUT, sector, A)
        layers = guest.block.freeze()
    guest.ask(OUT, 0, B)
    with pytest.raises(BackendError, match="16 layers are frozen, which is the most; begin anew"):
        guest.block.freeze()
    assert guest.read(0, 1024) == B + A
    assert (
        disks.make(layers=layers).read(0, 512 * LAYERS_MAX + 512)
        == LAYERS_MAX * A + (CONTENT[:512])
    )
    more = (*layers, layers[0])
    assert "17 layers, and 16 is the most" in refusal(lambda: disks.make(layers=more))
