"""What fio finds in a guest: whole data by every way, size and depth, and the rate asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from pyvirt.devices.disk import Disk

from .conftest import Boot, Ended, make

MIB = 1 << 20
SIZES = (512, 4096, MIB // 4)
DEPTHS = (1, 16)
# A job has this many requests, but not more bytes.
REQUESTS, BYTES = 32, MIB
RATE = 200  # requests a second of the throttled disk
RATED = "[rate]\nfilename=/dev/vdf\nrw=randrw\nbs=4k\niodepth=4\ntime_based\nruntime=5\nstonewall\n"
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


def parsed(ended: Ended) -> dict[str, Result]:
    """Return the results of a guest's jobs by their names."""
    lines = ended.console.splitlines()
    assert "fio ended with status 0" in lines, ended.console
    assert ended.status == 0
    assert ended.messages.count("errors 0,") == len(WAYS) + 2
    results = {}
    for line in lines:
        if line.startswith("job;"):
            _, name, error, *numbers = line.split(";")
            assert error == "0"
            results[name] = Result(*map(int, numbers))
    return results


@dataclass(frozen=True)
class Done:
    """What was asked of fio, beside the job on the throttled disk, and the results by name."""

    jobs: list[Job]
    results: dict[str, Result]


@pytest.fixture(scope="module")
def done(boot: Boot, measure: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One guest that has a root with fio, a disk for each way, and one with a limit."""
    folder = tmp_path_factory.mktemp("fio")
    options, least = ["-disk", f"{measure},readonly=on"], {}
    for name, (aio, direct) in zip(("vdb", "vdc", "vdd", "vde"), WAYS, strict=True):
        image = make(folder / f"{name}.img", 64 * MIB)
        options += ["-disk", f"{image},aio={aio},direct={direct}"]
        least[name] = logical_block(image, direct)
    limited = make(folder / "vdf.img", 16 * MIB)
    options += ["-disk", f"{limited},throttling.iops-total={RATE}"]
    jobs, sections = [], []
    for size in SIZES:
        for depth in DEPTHS:
            # All the disks at once, then the next depth or size.
            at_once = [Job(disk, size, depth) for disk in least if size >= least[disk]]
            jobs += at_once
            first, *others = [job.section for job in at_once]
            sections += [first, "stonewall\n", *others]
    script = SCRIPT.format(jobs="".join(sections) + RATED)
    return Done(jobs, parsed(boot(script, *options, "-m", "512", "-stats")))


def test_what_is_written_is_read(done: Done) -> None:
    assert len(done.results) == len(done.jobs) + 1
    assert len(done.jobs) >= 2 * len(DEPTHS) * len(WAYS)
    for job in done.jobs:
        found = done.results[job.name]
        assert found.read_kib == found.written_kib == job.bytes // 1024


def test_a_throttled_disk_keeps_below_its_rate(done: Done) -> None:
    found = done.results["rate"]
    # How far below is the machine's affair.
    assert 0 < found.read_iops + found.write_iops < 1.05 * RATE
    assert 0 < (found.read_kib + found.written_kib) // 4 < 1.05 * 5 * RATE
