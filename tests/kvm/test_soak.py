"""A short soak: VMs of every kind come and go, and leave nothing; `make soak` has a long one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from ..effort import tries
from ..hostile import report
from ..soak.held import Family
from ..soak.host import Host
from ..soak.run import Soak
from ..unit.namespace import ip, network_namespace

pytestmark = [pytest.mark.any_kvm, pytest.mark.long]
VMS, AT_ONCE = tries(20), 5
CYCLES, FORKS = 20, 15


def test_nothing_is_left_of_vms_that_came_and_went(tmp_path: Path) -> None:
    kernel = report.build(tmp_path)
    taps = [f"tap{number}" for number in range(AT_ONCE + 1)]
    with network_namespace(), tempfile.TemporaryDirectory(prefix="soak-") as folder:
        for tap in taps:
            ip(f"tuntap add {tap} mode tap")
        host = Host(Path(folder), kernel, taps)
        soak = Soak(
            Family(Path(folder)), host, vms=VMS, at_once=AT_ONCE, cycles=CYCLES, forks=FORKS
        )
        soak.run()
    assert soak.findings() == []
    assert sum(host.ends.values()) == VMS
    assert all(len(resident.seen) > 1 for resident in soak.residents.values())
