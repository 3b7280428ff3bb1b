"""Disks under Linux's own driver: data, errors, limits, and what a killed monitor leaves."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyvirt.harness.guest import initramfs, kernel

from .conftest import PYVIRT, SECONDS, Boot

MIB = 1 << 20
SHM = Path("/dev/shm")  # a tmpfs: fast, and it can punch holes


def make(path: Path, size: int, data: bytes = b"") -> Path:
    path.write_bytes(data)
    os.truncate(path, size)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make(tmp_path / "disk.img", 64 * MIB)


@pytest.fixture
def fast_image() -> Iterator[Path]:
    path = make(SHM / f"pyvirt-test-{os.getpid()}.img", 64 * MIB)
    yield path
    path.unlink()


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


def test_a_shrunk_file_is_a_read_error(fast_image: Path) -> None:
    script = """
    dd if=/dev/vda of=/dev/null bs=4k count=1 skip=9000 iflag=direct && echo whole
    echo ready; read -r word
    dd if=/dev/vda of=/dev/null bs=4k count=1 skip=9000 iflag=direct || echo shrunk
    dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct && echo still
    """
    lines = []
    with spawn(script, "-disk", str(fast_image)) as process:
        assert process.stdin
        assert process.stdout
        for line in process.stdout:
            lines.append(line.decode(errors="replace").strip())
            if lines[-1] == "ready":
                os.truncate(fast_image, 16 * MIB)
                process.stdin.write(b"go\n")
                process.stdin.flush()
    assert process.returncode == 0
    assert {"whole", "shrunk", "still"} <= set(lines)


def spawn(script: str, *options: str) -> subprocess.Popen[bytes]:
    """Start a guest whose console is read while it runs."""
    micro = kernel.find("micro")
    initrd = initramfs.build(micro, script=script)
    command = [str(PYVIRT), "run", "-accel", "kvm", "-kernel", str(micro.image)]
    command += ["-initrd", str(initrd), *options, "-append", "console=ttyS0 quiet panic=-1"]
    return subprocess.Popen(
        ["timeout", "-k", "5", str(SECONDS), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


WRITER = """
i=0
while :; do
  i=$((i + 1))
  printf 'block %06d' $i | dd of=/dev/vda bs=4k seek=$i conv=sync,fsync 2>/dev/null
  echo "ack $i"
done
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_no_acknowledged_write_is_lost(fast_image: Path, aio: str, number: signal.Signals) -> None:
    acknowledged = 0
    with spawn(WRITER, "-disk", f"{fast_image},aio={aio}") as process:
        assert process.stdout
        for line in process.stdout:
            found = re.match(rb"ack (\d+)\r?$", line)
            if not found:
                continue
            acknowledged = int(found[1])
            if acknowledged == 20:
                # The monitor is the one child of `timeout`.
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                os.kill(int(children), number)
    assert process.returncode == (0 if number == signal.SIGTERM else -number)
    assert acknowledged >= 20
    data = fast_image.read_bytes()
    for i in range(1, acknowledged + 1):
        assert data[i * 4096 : (i + 1) * 4096] == f"block {i:06}".encode().ljust(4096, b"\0")


def test_eight_disks_at_once(boot: Boot, tmp_path: Path) -> None:
    options = []
    for number in range(8):
        data = bytes([number]) * 4096
        path = make(tmp_path / f"{number}.img", (number + 1) * MIB, data)
        options += ["-disk", f"{path},serial=n{number}"]
    script = """
    for d in a b c d e f g h; do
      dd if=/dev/vd$d of=/dev/vd$d bs=4k count=1 seek=1 conv=fsync 2>/dev/null &
    done
    wait
    for d in a b c d e f g h; do cd /sys/block/vd$d; echo vd$d $(cat serial) $(cat size); done
    """
    ended = boot(script, *options)
    lines = ended.console.splitlines()
    for number in range(8):
        assert f"vd{'abcdefgh'[number]} n{number} {(number + 1) * 2048}" in lines
        expected = bytes([number]) * 8192
        assert (tmp_path / f"{number}.img").read_bytes()[:8192] == expected


def test_a_disk_of_three_tebibytes(boot: Boot, fast_image: Path) -> None:
    os.truncate(fast_image, 3 << 40)
    script = """
    cat /sys/block/vda/size
    echo end of disk | dd of=/dev/vda bs=512 seek=$(((3 << 31) - 1)) conv=sync,fsync && echo done
    """
    ended = boot(script, "-disk", str(fast_image))
    assert str(3 << 31) in ended.console.splitlines()
    assert "done" in ended.console.splitlines()
    with fast_image.open("rb") as file:
        file.seek((3 << 40) - 512)
        assert file.read() == b"end of disk\n".ljust(512, b"\0")


def test_a_throttled_disk_keeps_its_rate(boot: Boot, fast_image: Path) -> None:
    """300 requests at 30 a second, less the three that the bucket holds at first.

    Four readers, so that one is always waiting: a token that nobody wants is lost.
    """
    script = """
    read -r before rest </proc/uptime
    for reader in 1 2 3 4; do
      dd if=/dev/vda of=/dev/null bs=4k count=75 iflag=direct 2>/dev/null &
    done
    wait
    read -r after rest </proc/uptime
    echo "from $before to $after"
    """
    ended = boot(script, "-disk", f"{fast_image},throttling.iops-total=30")
    found = re.search(r"from ([\d.]+) to ([\d.]+)", ended.console)
    assert found
    assert float(found[2]) - float(found[1]) == pytest.approx(9.9, rel=0.05)


@pytest.fixture
def loop_device(image: Path) -> Iterator[str]:
    """A block device of the host, backed by the image."""
    control = Path("/dev/loop-control")
    if not control.exists():
        generic = kernel.find("generic")
        assert generic.modules
        module = generic.modules / "kernel/drivers/block/loop.ko"
        subprocess.run(["insmod", str(module)], check=True, timeout=60)
    made = subprocess.run(
        ["losetup", "--find", "--show", str(image)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True, timeout=60)


def test_a_block_device_of_the_host(boot: Boot, image: Path, loop_device: str) -> None:
    ended = boot(FILL, "-disk", loop_device)
    sums = re.findall(r"^([0-9a-f]{32})  -$", ended.console, re.MULTILINE)
    assert len(set(sums)) == 1
    assert len(sums) == 3
    assert sums[0] == md5(Path(loop_device).read_bytes()[: 2 * MIB])
