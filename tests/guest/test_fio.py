"""What fio finds in a guest: whole data by every way, size and depth, and the rate asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from pyvirt.devices.disk import Disk

from .conftest import Boot, make

MIB = 1 << 20
SIZES = (512, 4096, 65536, MIB)
DEPTHS = (1, 4, 32)
# A job has this many requests, but not more bytes.
REQUESTS, BYTES = 32, 4 * MIB
WAYS = [(aio, direct) for aio in ("io_uring", "threads") for direct in ("on", "off")]

# On the first disk is a root with fio in it. Of fio's terse lines there remain a job's name and
# error, and the KiB and requests a second, first those that it read, then those that it wrote.
SCRIPT = """
mount -o ro,noload /dev/vda /mnt
for place in dev proc sys; do mount -o bind /$place /mnt/$place; done
mount -t tmpfs tmpfs /mnt/tmp
cat >/mnt/tmp/jobs <<'END'
[global]
ioengine=libaio
direct=1
thread
{jobs}
END
chroot /mnt fio --output=/tmp/lines --output-format=terse --terse-version=3 /tmp/jobs
echo "fio ended with status $?"
cut -s -d ';' -f 3,5,6,8,47,49 /mnt/tmp/lines | sed 's/^/job;/'
"""


class Result(NamedTuple):
    """What a job did; it had no error."""

    read_kib: int
    read_iops: int
    written_kib: int
    write_iops: int


Fio = Callable[..., dict[str, Result]]


@pytest.fixture
def fio(boot: Boot, measure: Path) -> Fio:
    """Run jobs in a guest that has the disks `options`, from /dev/vdb on; the results by name."""

    def run(jobs: str, *options: str) -> dict[str, Result]:
        root = f"{measure},readonly=on"
        ended = boot(SCRIPT.format(jobs=jobs), "-disk", root, *options, "-m", "512", "-stats")
        lines = ended.console.splitlines()
        assert "fio ended with status 0" in lines, ended.console
        assert ended.status == 0
        assert "errors 0" in ended.messages
        results = {}
        for line in lines:
            if line.startswith("job;"):
                _, name, error, *numbers = line.split(";")
                assert error == "0"
                results[name] = Result(*map(int, numbers))
        return results

    return run


class Job(NamedTuple):
    """Writes `size` bytes at a time to random places, `depth` at once, then reads them."""

    disk: str
    size: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.disk}-{self.size}-{self.depth}"

    @property
    def bytes(self) -> int:
        return self.size * max(self.depth, min(REQUESTS, BYTES // self.size))

    @property
    def section(self) -> str:
        return (
            f"[{self.name}]\nfilename=/dev/{self.disk}\nbs={self.size}\niodepth={self.depth}\n"
            f"size={self.bytes}\nrw=randwrite\nverify=crc32c\nverify_fatal=1\n"
        )


def logical_block(image: Path, direct: str) -> int:
    disk = Disk(str(image), direct=direct == "on")
    disk.close()
    return max(512, disk.offset_align)


def test_what_is_written_is_read(fio: Fio, tmp_path: Path) -> None:
    options, least = [], {}
    for name, (aio, direct) in zip(("vdb", "vdc", "vdd", "vde"), WAYS, strict=True):
        image = make(tmp_path / f"{name}.img", 64 * MIB)
        options += ["-disk", f"{image},aio={aio},direct={direct}"]
        least[name] = logical_block(image, direct)
    jobs, sections = [], []
    for size in SIZES:
        for depth in DEPTHS:
            # All the disks at once, then the next depth or size.
            at_once = [Job(disk, size, depth) for disk in least if size >= least[disk]]
            jobs += at_once
            first, *others = [job.section for job in at_once]
            sections += [first, "stonewall\n", *others]
    results = fio("".join(sections), *options)
    assert len(results) == len(jobs) >= 3 * len(DEPTHS) * len(WAYS)
    for job in jobs:
        done = results[job.name]
        assert done.read_kib == done.written_kib == job.bytes // 1024


def test_a_throttled_disk_keeps_below_its_rate(fio: Fio, shm: Path) -> None:
    image = make(shm / "disk.img", 16 * MIB)
    job = "[rate]\nfilename=/dev/vdb\nrw=randrw\nbs=4k\niodepth=4\ntime_based\nruntime=5\n"
    rate = 200
    done = fio(job, "-disk", f"{image},throttling.iops-total={rate}")["rate"]
    # How far below is the machine's affair.
    assert 0 < done.read_iops + done.write_iops < 1.05 * rate
    assert 0 < (done.read_kib + done.written_kib) // 4 < 1.05 * 5 * rate
