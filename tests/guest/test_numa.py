"""Nodes under Linux: each has the vCPUs, the memory and the distances that were asked for."""

from __future__ import annotations

from pyvirt.harness.guest.kernel import Kernel

from .conftest import Boot

SCRIPT = """
cd /sys/devices/system/node
echo "online $(cat online)"
for node in node?; do
    echo "$node cpus $(cat $node/cpulist) distance $(cat $node/distance)"
    echo "$node memory $(sed -n 's/.*MemTotal: *//p' $node/meminfo)"
done
grep -c . /sys/firmware/acpi/tables/SRAT /sys/firmware/acpi/tables/SLIT
"""
MIB = 1 << 10  # in /proc's KiB


def test_nodes_are_what_was_asked_for(boot: Boot, cloud: Kernel) -> None:
    ended = boot(
        SCRIPT,
        *("-smp", "2"),
        *("-object", "memory-backend-ram,id=a,size=192M"),
        *("-object", "memory-backend-memfd,id=b,size=128M"),
        *("-numa", "node,cpus=0,memdev=a", "-numa", "node,cpus=1,memdev=b"),
        *("-numa", "dist,src=0,dst=1,val=21", "-numa", "dist,src=1,dst=0,val=33"),
        image=cloud.image,
    )
    lines = ended.console.splitlines()
    assert "online 0-1" in lines
    assert "node0 cpus 0 distance 10 21" in lines
    assert "node1 cpus 1 distance 33 10" in lines
    sizes = {
        line.split()[0]: int(line.split()[2])
        for line in lines
        if line.startswith("node") and " memory " in line
    }
    # The kernel has a part that no node counts.
    assert 128 * MIB < sizes["node0"] <= 192 * MIB
    assert 64 * MIB < sizes["node1"] <= 128 * MIB
    assert (ended.status, ended.messages) == (0, "")


def test_nodes_without_vcpus_or_memory(boot: Boot, cloud: Kernel) -> None:
    ended = boot(
        SCRIPT,
        *("-smp", "2", "-object", "memory-backend-ram,id=a,size=256M"),
        *("-object", "memory-backend-ram,id=c,size=64M"),
        *("-numa", "node,cpus=0,memdev=a", "-numa", "node,cpus=1", "-numa", "node,memdev=c"),
        image=cloud.image,
    )
    lines = ended.console.splitlines()
    assert "online 0-2" in lines
    for number, vcpus in enumerate(("0", "1", "")):
        assert f"node{number} cpus {vcpus} distance" in "\n".join(lines)
    assert "node1 memory 0 kB" in lines
    assert ended.status == 0
