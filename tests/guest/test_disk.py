"""Disks under Linux's own driver: data, errors, limits, and what a killed monitor leaves."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.harness.lab import module

from ..unit.file_limit import file_limit
from .conftest import SHM, Boot, Ended, Running, make

MIB = 1 << 20
NOISE = os.urandom(3 * MIB)


def head(path: str | Path, size: int = len(NOISE)) -> bytes:
    """Return what an image begins with."""
    with open(path, "rb") as file:
        return file.read(size)


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


# On /dev/$d, and all of it is whole when the sums are the same.
FILL = """
dd if=/dev/urandom of=/tmp/a bs=64k count=16 2>/dev/null
md5sum </tmp/a
dd if=/tmp/a of=/dev/$d bs=64k conv=fsync 2>/dev/null
dd if=/tmp/a of=/dev/$d bs=64k seek=512 oflag=direct 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/$d bs=64k count=16 2>/dev/null | md5sum
dd if=/dev/$d bs=64k skip=512 count=16 iflag=direct 2>/dev/null | md5sum
"""
FILES = """
mke2fs -F /dev/$d >/dev/null
mkdir /m
for n in 1 2; do
  mount -t ext4 /dev/$d /m
  [ $n = 2 ] || cp /tmp/a /m/a
  md5sum </m/a
  umount /m
  echo 3 >/proc/sys/vm/drop_caches
done
"""
KNOWN = """
cd /sys/block/$d
echo "serial=$(cat serial) size=$(cat size) ro=$(cat ro) segments=$(cat queue/max_segments)"
echo "queues=$(ls mq | wc -l) cache=$(cat queue/write_cache)"
echo "physical=$(cat queue/physical_block_size)"
"""
READ_ONLY = """
cat /sys/block/$d/ro
dd if=/dev/zero of=/dev/$d bs=4k count=1 conv=fsync && echo written
dd if=/dev/$d bs=64k count=16 2>/dev/null | md5sum
"""
DISCARD = "blkdiscard -o $((1 << 20)) -l $((1 << 20)) /dev/$d && echo done"
# The disks of one guest: what it does with each, one after the other, and how it has it.
DISKS = {
    "io_uring-on": (FILL, "-disk={image},aio=io_uring,direct=on"),
    "io_uring-off": (FILL, "-disk={image},aio=io_uring,direct=off"),
    "threads-on": (FILL, "-disk={image},aio=threads,direct=on"),
    "threads-off": (FILL, "-disk={image},aio=threads,direct=off"),
    "files": (FILL + FILES, "-drive=id=files,file={image}"),
    "known": (
        KNOWN,
        "-drive=id=d,file={image},if=none",
        "-device=virtio-blk-device,drive=d,serial=PV 0001,num-queues=2,queue-size=64",
    ),
    "read-only": (READ_ONLY, "-disk={image},readonly=on"),
    "discard": (DISCARD, "-disk={shm},discard=unmap"),
    "no-discard": ("cat /sys/block/$d/queue/discard_max_bytes", "-disk={shm}"),
    "block-device": (FILL, "-disk={loop}"),
    "block-device-discard": (DISCARD, "-disk={loop},discard=unmap"),
}


@dataclass(frozen=True)
class Disk:
    """A disk of the guest: what is behind it, and what the guest said of it."""

    image: Path  # of 64 MiB, which began with NOISE and was empty behind it
    blocks: int  # of 512 bytes, that the image took up before
    source: str  # the image or what stands for it
    said: list[str]


@dataclass(frozen=True)
class Looked:
    """How the guest ended that used all the disks."""

    ended: Ended
    disks: dict[str, Disk]


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """A block device of the host, backed by the image."""
    if not Path("/dev/loop-control").exists():
        module.load("loop")
    made = subprocess.run(
        ["losetup", "--find", "--show", str(image)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=60)


@pytest.fixture(scope="module")
def looked(boot: Boot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looked]:
    """One guest with all of DISKS."""
    folder = tmp_path_factory.mktemp("disks")
    options, script, places = ["-smp", "2", "-stats"], "", {}
    with TemporaryDirectory(prefix="pyvirt-test-", dir=SHM) as shm, ExitStack() as stack:
        for letter, (name, (work, *words)) in zip("abcdefghijk", DISKS.items(), strict=True):
            in_memory = "{image}" not in words[0]
            image = make(Path(shm if in_memory else folder, name), 64 * MIB, NOISE)
            loop = stack.enter_context(loop_device(image)) if "{loop}" in words[0] else ""
            options += [word.format(image=image, shm=image, loop=loop) for word in words]
            script += f"echo; echo '== {name}'; (d=vd{letter}; {work}\n)\n"
            places[name] = (image, image.stat().st_blocks, loop or str(image))
        places["read-only"][0].chmod(0o444)
        ended = boot(f"{script}echo", *options)
        found = re.findall(r"^== (\S+)\n(.*?)(?=^$|\Z)", ended.console, re.MULTILINE | re.DOTALL)
        said = {name: text.splitlines() for name, text in found}
        disks = {name: Disk(*place, said[name]) for name, place in places.items()}
        yield Looked(ended, disks)


def sums(said: list[str]) -> list[str]:
    return re.findall(r"^([0-9a-f]{32})  -$", "\n".join(said), re.MULTILINE)


def test_all_is_well(looked: Looked) -> None:
    assert looked.ended.status == 0
    assert "init: script ended with status 0" in looked.ended.console
    assert looked.ended.messages.count("errors 0,") == len(DISKS)
    assert "Traceback" not in looked.ended.messages
    assert not any(line.startswith("pyvirt:") for line in looked.ended.messages.splitlines())


@pytest.mark.parametrize("direct", ["on", "off"])
@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_data(looked: Looked, aio: str, direct: str) -> None:
    name = f"{aio}-{direct}"
    disk = looked.disks[name]
    assert len(sums(disk.said)) == 3
    assert set(sums(disk.said)) == {md5(head(disk.image, MIB))}
    flushes = re.findall(r"flushes (\d+)", looked.ended.messages)
    assert int(flushes[list(DISKS).index(name)]) > 0


def test_a_file_system_is_whole(looked: Looked) -> None:
    disk = looked.disks["files"]
    assert len(sums(disk.said)) == 5
    assert len(set(sums(disk.said))) == 1
    checked = subprocess.run(
        ["/sbin/e2fsck", "-fn", str(disk.image)], capture_output=True, check=False, timeout=60
    )
    assert checked.returncode == 0, checked.stdout


def test_what_the_guest_knows_of_a_disk(looked: Looked) -> None:
    assert looked.disks["known"].said == [
        f"serial=PV 0001 size={64 * MIB // 512} ro=0 segments=62",
        "queues=2 cache=write back",
        "physical=4096",
    ]


def test_a_read_only_disk_stays_as_it_is(looked: Looked) -> None:
    disk = looked.disks["read-only"]
    assert disk.said[0] == "1"
    assert "written" not in disk.said
    assert sums(disk.said) == [md5(NOISE[:MIB])]
    assert head(disk.image) == NOISE


def test_discarded_sectors_take_no_room(looked: Looked) -> None:
    disk = looked.disks["discard"]
    assert disk.said == ["done"]
    assert disk.image.stat().st_blocks <= disk.blocks - MIB // 512
    assert head(disk.image) == NOISE[:MIB] + bytes(MIB) + NOISE[2 * MIB :]
    assert disk.image.stat().st_size == 64 * MIB


def test_without_discard_there_is_none(looked: Looked) -> None:
    assert looked.disks["no-discard"].said == ["0"]


def test_a_block_device_of_the_host(looked: Looked) -> None:
    disk = looked.disks["block-device"]
    assert len(sums(disk.said)) == 3
    assert set(sums(disk.said)) == {md5(head(disk.source, MIB))}


def test_sectors_of_a_block_device_are_discarded(looked: Looked) -> None:
    disk = looked.disks["block-device-discard"]
    assert disk.said == ["done"]
    assert disk.image.stat().st_blocks <= disk.blocks - MIB // 512
    assert head(disk.image) == NOISE[:MIB] + bytes(MIB) + NOISE[2 * MIB :]
    assert disk.image.stat().st_size == 64 * MIB


TEBI = 1 << 40
# Writes beyond the end of what the host allows, and over and to where a 32-bit sector ends.
BEYOND = """
cat /sys/block/$d/size
dd if=/dev/zero of=/dev/$d bs=4k count=1 seek=$((3 << 28)) oflag=direct && echo bad
dd if=/dev/zero of=/dev/$d bs=4k count=1 seek=1 oflag=direct && echo good
dd if=/dev/urandom of=/tmp/$d bs=1024 count=64 2>/dev/null
for seek in $(((2 << 30) - 32)) $(((3 << 30) - 64)); do
  dd if=/tmp/$d of=/dev/$d bs=1024 seek=$seek oflag=direct 2>/dev/null
  dd if=/dev/$d bs=1024 skip=$seek count=64 iflag=direct 2>/dev/null | md5sum
done
dd if=/tmp/$d of=/dev/$d bs=1024 seek=$(((3 << 30) + 64)) count=1 oflag=direct || echo full
dd if=/dev/$d bs=1024 skip=64 count=64 2>/dev/null | md5sum
"""
SHRUNK = """
dd if=/dev/$d of=/dev/null bs=4k count=1 skip=9000 iflag=direct && echo whole
echo ready; read -r word
dd if=/dev/$d of=/dev/null bs=4k count=1 skip=9000 iflag=direct || echo shrunk
dd if=/dev/$d of=/dev/null bs=4k count=1 iflag=direct && echo still
"""
# All at once, each with several requests under way.
COPY = """
for d in d e f g h i j k; do
  for part in 0 1 2 3; do
    dd if=/dev/vd$d of=/dev/vd$d bs=16k count=4 iflag=direct oflag=direct \\
      skip=$((4 * part)) seek=$((16 + 4 * part)) 2>/dev/null &
  done
done
wait
for d in d e f g h i j k; do
  cd /sys/block/vd$d
  echo vd$d $(cat serial) $(cat size) $(dd if=/dev/vd$d bs=64k count=8 2>/dev/null | md5sum)
done
"""


class Strained:
    """A guest of which more is wanted than can be: what it said, and the images of its disks."""

    def __init__(self, micro: kernel.Kernel, shm: Path) -> None:
        # One of each engine, of which the last 64 KiB are more than the host allows.
        self.huge = [make(shm / aio, 3 * TEBI + (64 << 10)) for aio in ("io_uring", "threads")]
        self.shrunk = make(shm / "shrunk", 64 * MIB)
        self.data = [os.urandom(MIB // 4) for _ in range(8)]
        self.copied = [make(shm / f"{n}", (n + 3) * MIB, data) for n, data in enumerate(self.data)]
        options = [f"-disk={image},aio={image.name}" for image in self.huge]
        options.append(f"-disk={self.shrunk}")
        for number, image in enumerate(self.copied):
            aio = ("io_uring", "threads")[number % 2]
            options.append(f"-disk={image},serial=n{number},aio={aio}")
        script = "".join(f"echo '== {d}'; d=vd{d}\n{BEYOND}" for d in "ab")
        script += f"echo '== c'; d=vdc\n{SHRUNK}echo '== d'\n{COPY}dmesg | grep 'I/O error'\n"
        initrd = initramfs.build(micro, script=script)
        with (
            file_limit(3 * TEBI),
            Running(micro.image, "-initrd", str(initrd), *options) as guest,
        ):
            guest.expect("ready\r\n")
            os.truncate(self.shrunk, 16 * MIB)
            guest.type("go\n")
            self.status = guest.end()
        self.console = guest.console.replace("\r\n", "\n")
        found = re.findall(r"^== (.)\n(.*?)(?=^==|\Z)", self.console, re.MULTILINE | re.DOTALL)
        self.said = {name: text.splitlines() for name, text in found}


@pytest.fixture(scope="module")
def strained(micro: kernel.Kernel) -> Iterator[Strained]:
    with TemporaryDirectory(prefix="pyvirt-test-", dir=SHM) as shm:
        yield Strained(micro, Path(shm))


def test_a_guest_with_failing_disks_is_well(strained: Strained) -> None:
    assert strained.status == 0
    assert "init: script ended with status 0" in strained.console


@pytest.mark.parametrize("disk", ["a", "b"])
def test_a_write_error_is_the_guests(strained: Strained, disk: str) -> None:
    """By either engine."""
    said = strained.said[disk]
    assert "bad" not in said
    assert "good" in said
    assert f"I/O error, dev vd{disk}, sector {3 << 31}" in strained.console


@pytest.mark.parametrize(("number", "disk"), [(0, "a"), (1, "b")])
def test_a_disk_of_three_tebibytes(strained: Strained, number: int, disk: str) -> None:
    """Written over the 2 TiB, where a 32-bit sector ends, and to the end of the file."""
    said, image = strained.said[disk], strained.huge[number]
    assert str((3 << 31) + 128) in said
    assert "full" in said
    assert image.stat().st_size == 3 * TEBI + (64 << 10)
    assert image.stat().st_blocks * 512 < MIB
    expected = []
    with image.open("rb") as file:
        for place in (2 * TEBI - 32768, 3 * TEBI - 65536):
            file.seek(place)
            expected.append(md5(file.read(65536)))
    assert expected[0] == expected[1] != md5(bytes(65536))
    assert sums(said) == [*expected, md5(bytes(65536))]


def test_a_shrunk_file_is_a_read_error(strained: Strained) -> None:
    assert {"whole", "shrunk", "still"} <= set(strained.said["c"])


def test_eight_disks_at_once(strained: Strained) -> None:
    """Each is copied onto itself, front to back and with several requests under way."""
    for number, (image, data) in enumerate(zip(strained.copied, strained.data, strict=True)):
        size = image.stat().st_size
        name = f"vd{'defghijk'[number]} n{number} {size // 512}"
        assert f"{name} {md5(data * 2)} -" in strained.said["d"]
        assert image.read_bytes() == (data * 2).ljust(size, b"\0")
