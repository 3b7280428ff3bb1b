"""Every kind of kernel file boots, with the processors and the memory that were asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pyvirt.harness.guest.kernel import Kernel

from .conftest import Boot

GIB_4 = 1 << 32


@pytest.fixture(scope="session")
def images(
    cloud: Kernel, micro: Kernel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    assert cloud.vmlinux is not None
    assert micro.vmlinux is not None
    raw = tmp_path_factory.mktemp("raw") / "vmlinux.bin"
    subprocess.run(["objcopy", "-O", "binary", str(micro.vmlinux), str(raw)], check=True)
    return {
        "cloud bzImage": cloud.image,
        "cloud vmlinux": cloud.vmlinux,
        "micro bzImage": micro.image,
        "micro vmlinux": micro.vmlinux,
        "micro vmlinux.bin": raw,
    }


@pytest.mark.parametrize(
    "name",
    ["cloud bzImage", "cloud vmlinux", "micro bzImage", "micro vmlinux", "micro vmlinux.bin"],
)
def test_kernel_file_boots(
    boot: Boot, images: dict[str, Path], cloud: Kernel, micro: Kernel, name: str
) -> None:
    ended = boot("uname -r", image=images[name])
    release = (cloud if name.startswith("cloud") else micro).release
    assert release in ended.console.splitlines()
    assert "init: script ended with status 0" in ended.console
    assert (ended.status, ended.messages) == (0, "")


@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_all_processors_come_up(boot: Boot, vcpus: int) -> None:
    script = "echo online: $(nproc) cores: $(grep -c ^processor /proc/cpuinfo)"
    ended = boot(script, "-smp", str(vcpus))
    assert f"online: {vcpus} cores: {vcpus}" in ended.console
    assert ended.status == 0


def test_memory_in_huge_pages(boot: Boot) -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    before = (pool / "nr_hugepages").read_text()
    (pool / "nr_hugepages").write_text("64")
    try:
        memory = "memory-backend-memfd,id=m,size=128M,hugetlb=on,prealloc=on"
        ended = boot("free -m", "-object", memory, "-machine", "memory-backend=m")
        assert (ended.status, ended.messages) == (0, "")
        assert int((pool / "free_hugepages").read_text()) == 64
    finally:
        (pool / "nr_hugepages").write_text(before)


def test_processors_are_grouped_as_asked(boot: Boot) -> None:
    """Eight of twelve: of the second socket there is one core and a thread."""
    script = """
    cd /sys/devices/system/cpu
    for cpu in 0 1 2 3 4 5 6 7; do
        (cd cpu$cpu/topology; echo "cpu $cpu: $(cat physical_package_id thread_siblings_list \\
            core_siblings_list | tr '\\n' ' ')")
    done
    grep -E '^(siblings|cpu cores|initial apicid)' /proc/cpuinfo | tr -d '\\t' | tail -n 3
    """
    ended = boot(script, "-smp", "8,maxcpus=12,sockets=2,cores=3,threads=2")
    lines = [line for line in ended.console.splitlines() if line.startswith("cpu ")]
    first = [f"cpu {n}: 0 {n & 6}-{n | 1} 0-5 " for n in range(6)]
    assert lines[:8] == [*first, "cpu 6: 1 6-7 6-7 ", "cpu 7: 1 6-7 6-7 "]
    assert "initial apicid: 9" in ended.console
    assert (ended.status, ended.messages) == (0, "")


@pytest.mark.parametrize("discovery", ["acpi", "cmdline"])
def test_processors_and_serial_port_are_found_either_way(boot: Boot, discovery: str) -> None:
    script = (
        "nproc; ls -d /sys/firmware/acpi; grep ttyS0 /proc/interrupts; cat /proc/tty/driver/serial"
    )
    ended = boot(script, "-smp", "2", "-machine", f"microvm,discovery={discovery}")
    lines = ended.console.splitlines()
    assert "2" in lines
    assert ("/sys/firmware/acpi" in lines) == (discovery == "acpi")
    assert any("IO-APIC" in line and "ttyS0" in line for line in lines)
    assert any("16550A" in line for line in lines)
    assert ended.status == 0


def test_memory_above_4_gib_is_seen(boot: Boot) -> None:
    ended = boot("grep 'System RAM' /proc/iomem; grep MemTotal /proc/meminfo", "-m", "5G")
    ranges = [
        tuple(int(end, 16) for end in line.split(" : ")[0].split("-"))
        for line in ended.console.splitlines()
        if line.endswith("System RAM")
    ]
    above = sum(end + 1 - start for start, end in ranges if start >= GIB_4)
    assert above == 2 << 30
    total = next(line for line in ended.console.splitlines() if line.startswith("MemTotal"))
    assert int(total.split()[1]) > 4.8 * (1 << 20)


def test_256_mib_by_default(boot: Boot) -> None:
    ended = boot("grep MemTotal /proc/meminfo")
    total = next(line for line in ended.console.splitlines() if line.startswith("MemTotal"))
    assert 220 * 1024 < int(total.split()[1]) <= 256 * 1024


def test_the_clock_needs_no_calibration(boot: Boot) -> None:
    ended = boot(
        "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; "
        "dmesg | grep -i 'calib\\|WARNING:\\|BUG:'",
        "-smp",
        "2",
    )
    assert "kvm-clock" in ended.console.splitlines()
    assert "Calibrating delay loop (skipped)" in ended.console
    for trouble in ("tsc: Fast TSC calibration", "WARNING:", "BUG:", "APIC calibration not"):
        assert trouble not in ended.console
