"""Nodes under Linux: each has the vCPUs, the memory and the distances that were asked for."""

from __future__ import annotations

from itertools import permutations

import pytest
from pyvirt.harness.guest.kernel import Kernel

from .conftest import Boot, Ended

SCRIPT = """
cd /sys/devices/system/node
echo "online $(cat online)"
for node in node?; do
    echo "$node cpus $(cat $node/cpulist) distance $(cat $node/distance)"
    echo "$node memory $(sed -n 's/.*MemTotal: *//p' $node/meminfo)"
done
grep -c . /sys/firmware/acpi/tables/SRAT /sys/firmware/acpi/tables/SLIT
"""
# Each way, for the one between the first two is not the other.
DISTANCES = {**dict.fromkeys(permutations(range(4), 2), 20), (0, 1): 21, (1, 0): 33}
MIB = 1 << 10  # in /proc's KiB


@pytest.fixture(scope="module")
def ended(boot: Boot, cloud: Kernel) -> Ended:
    """A guest with two whole nodes, one that has no memory, and one that has no vCPU."""
    return boot(
        SCRIPT,
        *("-smp", "3"),
        *("-object", "memory-backend-ram,id=a,size=192M"),
        *("-object", "memory-backend-memfd,id=b,size=128M"),
        *("-object", "memory-backend-ram,id=c,size=64M"),
        *("-numa", "node,cpus=0,memdev=a", "-numa", "node,cpus=1,memdev=b"),
        *("-numa", "node,cpus=2", "-numa", "node,memdev=c"),
        *(f"-numa=dist,src={src},dst={dst},val={val}" for (src, dst), val in DISTANCES.items()),
        image=cloud.image,
    )


def test_nodes_are_what_was_asked_for(ended: Ended) -> None:
    lines = ended.console.splitlines()
    assert "online 0-3" in lines
    assert "node0 cpus 0 distance 10 21 20 20" in lines
    assert "node1 cpus 1 distance 33 10 20 20" in lines
    sizes = {
        line.split()[0]: int(line.split()[2])
        for line in lines
        if line.startswith("node") and " memory " in line
    }
    # The kernel has a part that no node counts.
    assert 128 * MIB < sizes["node0"] <= 192 * MIB
    assert 64 * MIB < sizes["node1"] <= 128 * MIB
    assert (ended.status, ended.messages) == (0, "")


def test_nodes_without_vcpus_or_memory(ended: Ended) -> None:
    lines = ended.console.splitlines()
    assert "node2 cpus 2 distance 20 20 10 20" in lines
    assert "node2 memory 0 kB" in lines
    assert "node3 cpus  distance 20 20 20 10" in lines
