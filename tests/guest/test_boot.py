"""Every kind of kernel file boots, with the processors and the memory that were asked for.

Tests that look at the same guest share its boot.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from pyvirt.harness.guest.kernel import Kernel

from .conftest import Boot, Ended

GIB_4 = 1 << 32
BY_WORDS = ("-smp", "2", "-machine", "microvm,discovery=cmdline")
GROUPS = (
    *("-smp", "8,maxcpus=12,sockets=2,cores=3,threads=2"),
    *("-object", "memory-backend-memfd,id=m,size=128M,hugetlb=on,prealloc=on"),
    *("-machine", "microvm,discovery=acpi,memory-backend=m"),
)
HUGE_PAGES = 64  # of 2 MiB, as many as those have
EXITS_MOST, TO_PYTHON_MOST = 700, 8
LARGE = ("-m", "3200M")  # of which 3 GiB are below 4 GiB
# All that any test here wants to know.
SCRIPT = """
uname -r
echo "online: $(nproc) cores: $(grep -c ^processor /proc/cpuinfo)"
for cpu in /sys/devices/system/cpu/cpu[0-9]; do
    (cd $cpu/topology; echo "cpu ${cpu##*cpu}: $(cat physical_package_id thread_siblings_list \\
        core_siblings_list | tr '\\n' ' ')")
done
grep '^initial apicid' /proc/cpuinfo | tr -d '\\t' | tail -n 1
grep MemTotal /proc/meminfo
grep 'System RAM' /proc/iomem
ls -d /sys/firmware/acpi
grep ttyS0 /proc/interrupts
cat /proc/tty/driver/serial /sys/devices/system/clocksource/clocksource0/current_clocksource
dmesg | grep -i 'calib\\|WARNING:\\|BUG:'
true
"""


@pytest.fixture(scope="session")
def images(
    cloud: Kernel, micro: Kernel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    assert cloud.vmlinux is not None
    assert micro.vmlinux is not None
    raw = tmp_path_factory.mktemp("raw") / "vmlinux.bin"
    subprocess.run(["objcopy", "-O", "binary", str(micro.vmlinux), str(raw)], check=True)
    return {
        "cloud vmlinux": cloud.vmlinux,
        "micro bzImage": micro.image,
        "micro vmlinux": micro.vmlinux,
        "micro vmlinux.bin": raw,
    }


class Boots(Protocol):
    """Boots a kernel file with options, once for all tests that ask for the same."""

    def __call__(self, file: str, *options: str) -> Ended: ...


@pytest.fixture(scope="module")
def pool() -> Iterator[Path]:
    """The host's huge pages, of which there are some for a guest."""
    folder = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    before = (folder / "nr_hugepages").read_text()
    (folder / "nr_hugepages").write_text(str(HUGE_PAGES))
    yield folder
    (folder / "nr_hugepages").write_text(before)


@pytest.fixture(scope="module")
def booted(boot: Boot, images: dict[str, Path], pool: Path) -> Boots:
    @functools.cache
    def run(file: str, *options: str) -> Ended:
        return boot(SCRIPT, *options, image=images[file])

    return run


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("cloud vmlinux", ()),
        ("micro bzImage", BY_WORDS),
        ("micro vmlinux", LARGE),
        ("micro vmlinux.bin", ()),
    ],
)
def test_kernel_file_boots(
    booted: Boots, cloud: Kernel, micro: Kernel, file: str, options: tuple[str, ...]
) -> None:
    """A stock kernel's bzImage does so in test_rootfs.py."""
    ended = booted(file, *options)
    release = (cloud if file.startswith("cloud") else micro).release
    assert release in ended.console.splitlines()
    assert "init: script ended with status 0" in ended.console
    assert (ended.status, ended.messages) == (0, "")


def test_a_boot_takes_no_more_exits_than_it_did(boot: Boot, micro: Kernel) -> None:
    """The console's bytes and the search for PCI; docs/performance.md has them one by one."""
    ended = boot("true", "-stats", image=micro.vmlinux)
    found = re.search(r"vCPU 0: exits (\d+) .*, to Python (\d+)", ended.messages)
    assert found is not None, ended.messages
    exits, to_python = map(int, found.groups())
    assert exits <= EXITS_MOST
    assert to_python <= TO_PYTHON_MOST


@pytest.mark.parametrize(
    ("vcpus", "file", "options"),
    [
        (1, "micro vmlinux.bin", ()),
        (2, "micro bzImage", BY_WORDS),
        (8, "micro bzImage", GROUPS),
    ],
)
def test_all_processors_come_up(
    booted: Boots, vcpus: int, file: str, options: tuple[str, ...]
) -> None:
    ended = booted(file, *options)
    assert f"online: {vcpus} cores: {vcpus}" in ended.console
    assert ended.status == 0


def test_memory_in_huge_pages(booted: Boots, pool: Path) -> None:
    ended = booted("micro bzImage", *GROUPS)
    assert (ended.status, ended.messages) == (0, "")
    assert 80 * 1024 < total(ended) <= 128 * 1024
    assert int((pool / "free_hugepages").read_text()) == HUGE_PAGES


def test_processors_are_grouped_as_asked(booted: Boots) -> None:
    """Eight of twelve: of the second socket there is one core and a thread."""
    ended = booted("micro bzImage", *GROUPS)
    lines = [line for line in ended.console.splitlines() if line.startswith("cpu ")]
    first = [f"cpu {n}: 0 {n & 6}-{n | 1} 0-5 " for n in range(6)]
    assert lines == [*first, "cpu 6: 1 6-7 6-7 ", "cpu 7: 1 6-7 6-7 "]
    assert "initial apicid: 9" in ended.console
    assert (ended.status, ended.messages) == (0, "")


@pytest.mark.parametrize(("discovery", "options"), [("acpi", GROUPS), ("cmdline", BY_WORDS)])
def test_the_serial_port_is_found_either_way(
    booted: Boots, discovery: str, options: tuple[str, ...]
) -> None:
    ended = booted("micro bzImage", *options)
    lines = ended.console.splitlines()
    assert ("/sys/firmware/acpi" in lines) == (discovery == "acpi")
    assert any("IO-APIC" in line and "ttyS0" in line for line in lines)
    assert any("16550A" in line for line in lines)
    assert ended.status == 0


def total(ended: Ended) -> int:
    """Return the guest's memory as it counts it, in KiB."""
    found = next(line for line in ended.console.splitlines() if line.startswith("MemTotal"))
    return int(found.split()[1])


def test_memory_above_4_gib_is_seen(booted: Boots) -> None:
    ended = booted("micro vmlinux", *LARGE)
    ranges = [
        tuple(int(end, 16) for end in line.split(" : ")[0].split("-"))
        for line in ended.console.splitlines()
        if line.endswith("System RAM")
    ]
    above = sum(end + 1 - start for start, end in ranges if start >= GIB_4)
    assert above == 128 << 20
    assert total(ended) > 3000 << 10


def test_256_mib_by_default(booted: Boots) -> None:
    assert 220 * 1024 < total(booted("micro vmlinux.bin")) <= 256 * 1024


def test_the_clock_needs_no_calibration(booted: Boots) -> None:
    ended = booted("micro bzImage", *GROUPS)
    assert "kvm-clock" in ended.console.splitlines()
    assert "Calibrating delay loop (skipped)" in ended.console
    for trouble in ("tsc: Fast TSC calibration", "WARNING:", "BUG:", "APIC calibration not"):
        assert trouble not in ended.console
