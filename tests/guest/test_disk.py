"""Disks under Linux's own driver: data, errors, limits, and what a killed monitor leaves."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.harness.lab import module

from .conftest import Boot, Running, make

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make(tmp_path / "disk.img", 64 * MIB)


@pytest.fixture
def fast_image(shm: Path) -> Path:
    return make(shm / "disk.img", 64 * MIB)


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


FILL = """
dd if=/dev/urandom of=/tmp/a bs=64k count=32 2>/dev/null
md5sum </tmp/a
dd if=/tmp/a of=/dev/vda bs=64k conv=fsync 2>/dev/null
dd if=/tmp/a of=/dev/vda bs=64k seek=512 oflag=direct 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vda bs=64k count=32 2>/dev/null | md5sum
dd if=/dev/vda bs=4k skip=8192 count=512 iflag=direct 2>/dev/null | md5sum
"""
FILES = """
mke2fs -F /dev/vda >/dev/null
mkdir /m
for n in 1 2; do
  mount -t ext4 /dev/vda /m
  [ $n = 2 ] || cp /tmp/a /m/a
  md5sum </m/a
  umount /m
  echo 3 >/proc/sys/vm/drop_caches
done
"""


@pytest.mark.parametrize("direct", ["on", "off"])
@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_data_and_a_file_system(boot: Boot, image: Path, aio: str, direct: str) -> None:
    ended = boot(FILL, "-disk", f"{image},aio={aio},direct={direct}", "-stats")
    sums = re.findall(r"^([0-9a-f]{32})  -$", ended.console, re.MULTILINE)
    assert len(sums) == 3
    assert len(set(sums)) == 1
    assert sums[0] == md5(image.read_bytes()[: 2 * MIB])
    assert ended.status == 0
    flushes = re.search(r"flushes (\d+)", ended.messages)
    assert flushes
    assert int(flushes[1]) > 0
    assert "errors 0" in ended.messages
    assert "Traceback" not in ended.messages


def test_a_file_system_is_whole(boot: Boot, image: Path) -> None:
    ended = boot(FILL + FILES, "-drive", f"id=d,file={image}")
    sums = re.findall(r"^([0-9a-f]{32})  -$", ended.console, re.MULTILINE)
    assert len(sums) == 5
    assert len(set(sums)) == 1
    checked = subprocess.run(
        ["/sbin/e2fsck", "-fn", str(image)], capture_output=True, check=False, timeout=60
    )
    assert checked.returncode == 0, checked.stdout


def test_what_the_guest_knows_of_a_disk(boot: Boot, image: Path) -> None:
    script = """
    cd /sys/block/vda
    echo "serial=$(cat serial) size=$(cat size) ro=$(cat ro) segments=$(cat queue/max_segments)"
    echo "queues=$(ls mq | wc -l) cache=$(cat queue/write_cache)"
    echo "physical=$(cat queue/physical_block_size)"
    """
    ended = boot(
        script,
        *("-drive", f"id=d,file={image},if=none", "-smp", "2"),
        *("-device", "virtio-blk-device,drive=d,serial=PV 0001,num-queues=2,queue-size=64"),
    )
    assert f"serial=PV 0001 size={64 * MIB // 512} ro=0 segments=62" in ended.console
    assert "queues=2 cache=write back" in ended.console
    assert "physical=4096" in ended.console
    assert (ended.status, ended.messages) == (0, "")


def test_a_read_only_disk_stays_as_it_is(boot: Boot, image: Path) -> None:
    data = os.urandom(MIB)
    make(image, 64 * MIB, data)
    image.chmod(0o444)
    script = """
    cat /sys/block/vda/ro
    dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync && echo written
    dd if=/dev/vda bs=64k count=16 2>/dev/null | md5sum
    """
    ended = boot(script, "-disk", f"{image},readonly=on")
    lines = ended.console.splitlines()
    assert "1" in lines
    assert "written" not in lines
    assert f"{md5(data)}  -" in lines
    assert image.read_bytes()[:MIB] == data


def test_discarded_sectors_take_no_room(boot: Boot, fast_image: Path) -> None:
    make(fast_image, 64 * MIB, os.urandom(8 * MIB))
    before = fast_image.stat().st_blocks
    script = "blkdiscard -o 0 -l $((4 << 20)) /dev/vda && echo done"
    ended = boot(script, "-disk", f"{fast_image},discard=unmap")
    assert "done" in ended.console.splitlines()
    assert fast_image.stat().st_blocks <= before - 4 * MIB // 512
    assert fast_image.stat().st_size == 64 * MIB
    assert not any(fast_image.read_bytes()[: 4 * MIB])


def test_without_discard_there_is_none(boot: Boot, fast_image: Path) -> None:
    ended = boot("cat /sys/block/vda/queue/discard_max_bytes", "-disk", str(fast_image))
    assert "0" in ended.console.splitlines()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no process that is started here write a file beyond `size`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_a_write_error_is_the_guests(boot: Boot, image: Path, aio: str) -> None:
    script = """
    dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=15000 oflag=direct && echo bad
    dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=1 oflag=direct && echo good
    dmesg | grep 'I/O error'
    """
    with files_up_to(32 * MIB):
        ended = boot(script, "-disk", f"{image},aio={aio}", "-stats")
    lines = ended.console.splitlines()
    assert any("I/O error, dev vda, sector 120000" in line for line in lines)
    assert "bad" not in lines
    assert "good" in lines
    assert ended.status == 0
    assert "errors 1" in ended.messages


def test_a_shrunk_file_is_a_read_error(micro: kernel.Kernel, fast_image: Path) -> None:
    script = """
    dd if=/dev/vda of=/dev/null bs=4k count=1 skip=9000 iflag=direct && echo whole
    echo ready; read -r word
    dd if=/dev/vda of=/dev/null bs=4k count=1 skip=9000 iflag=direct || echo shrunk
    dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct && echo still
    """
    initrd = initramfs.build(micro, script=script)
    with Running(micro.image, "-initrd", str(initrd), "-disk", str(fast_image)) as guest:
        guest.expect("ready\r\n")
        os.truncate(fast_image, 16 * MIB)
        guest.type("go\n")
        assert guest.end() == 0
    assert {"whole", "shrunk", "still"} <= set(guest.console.splitlines())


def test_eight_disks_at_once(boot: Boot, shm: Path) -> None:
    """Each is copied onto itself, front to back and with several requests under way."""
    options, data = [], [os.urandom(MIB) for _ in range(8)]
    images = [make(shm / f"{n}.img", (n + 3) * MIB, data[n]) for n in range(8)]
    for number, image in enumerate(images):
        options += ["-disk", f"{image},serial=n{number},aio={('io_uring', 'threads')[number % 2]}"]
    script = """
    for d in a b c d e f g h; do
      for part in 0 1 2 3; do
        dd if=/dev/vd$d of=/dev/vd$d bs=16k count=16 iflag=direct oflag=direct \\
          skip=$((16 * part)) seek=$((64 + 16 * part)) 2>/dev/null &
      done
    done
    wait
    for d in a b c d e f g h; do
      cd /sys/block/vd$d
      echo vd$d $(cat serial) $(cat size) $(dd if=/dev/vd$d bs=64k count=32 2>/dev/null | md5sum)
    done
    """
    ended = boot(script, *options)
    assert (ended.status, ended.messages) == (0, "")
    lines = ended.console.splitlines()
    for number, image in enumerate(images):
        size = image.stat().st_size
        name = f"vd{'abcdefgh'[number]} n{number} {size // 512}"
        assert f"{name} {md5(data[number] * 2)} -" in lines
        assert image.read_bytes() == (data[number] * 2).ljust(size, b"\0")


def test_a_disk_of_three_tebibytes(boot: Boot, fast_image: Path) -> None:
    """Written over the 2 TiB, where a 32-bit sector ends, and to the very end."""
    os.truncate(fast_image, 3 << 40)
    script = """
    cat /sys/block/vda/size
    dd if=/dev/urandom of=/tmp/a bs=1024 count=64 2>/dev/null
    for seek in $(((2 << 30) - 32)) $(((3 << 30) - 64)); do
      dd if=/tmp/a of=/dev/vda bs=1024 seek=$seek oflag=direct 2>/dev/null
      dd if=/dev/vda bs=1024 skip=$seek count=64 iflag=direct 2>/dev/null | md5sum
    done
    dd if=/tmp/a of=/dev/vda bs=1024 seek=$((3 << 30)) count=1 oflag=direct || echo full
    dd if=/dev/vda bs=1024 count=64 2>/dev/null | md5sum
    """
    ended = boot(script, "-disk", str(fast_image))
    lines = ended.console.splitlines()
    sums = [line.split()[0] for line in lines if line.endswith("  -")]
    assert str(3 << 31) in lines
    assert "full" in lines
    assert fast_image.stat().st_size == 3 << 40
    assert fast_image.stat().st_blocks * 512 < MIB
    with fast_image.open("rb") as file:
        for place in (2 << 40) - 32768, (3 << 40) - 65536:
            file.seek(place)
            assert sums.pop(0) == md5(file.read(65536))
    assert sums == [md5(bytes(65536))]


@pytest.fixture
def loop_device(fast_image: Path) -> Iterator[str]:
    """A block device of the host, backed by the image, which has data at its beginning."""
    make(fast_image, 64 * MIB, os.urandom(8 * MIB))
    control = Path("/dev/loop-control")
    if not control.exists():
        module.load("loop")
    made = subprocess.run(
        ["losetup", "--find", "--show", str(fast_image)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True, timeout=60)


def test_a_block_device_of_the_host(boot: Boot, loop_device: str) -> None:
    ended = boot(FILL, "-disk", loop_device)
    sums = re.findall(r"^([0-9a-f]{32})  -$", ended.console, re.MULTILINE)
    assert len(set(sums)) == 1
    assert len(sums) == 3
    assert sums[0] == md5(Path(loop_device).read_bytes()[: 2 * MIB])


def test_sectors_of_a_block_device_are_discarded(
    boot: Boot, loop_device: str, fast_image: Path
) -> None:
    script = "blkdiscard -o $((1 << 20)) -l $((4 << 20)) /dev/vda && echo done"
    before, data = fast_image.stat().st_blocks, fast_image.read_bytes()
    ended = boot(script, "-disk", f"{loop_device},discard=unmap")
    assert "done" in ended.console.splitlines()
    assert fast_image.stat().st_blocks <= before - 4 * MIB // 512
    assert fast_image.read_bytes() == data[:MIB] + bytes(4 * MIB) + data[5 * MIB :]
