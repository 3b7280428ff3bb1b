"""Disks and NICs that come and go by QMP again and again, beside others under load that stay.

The test of the same name in tests/kvm, where a cycle costs little, goes on for longer.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..unit.namespace import ip, network_namespace
from ..unit.usage import usage
from .conftest import make
from .live import SCRIPT
from .network import TOOLS, Guest, interface, running, tools_disk
from .test_qmp import Operator
from .test_qmp_net import make_tap

MIB = 1 << 20
CYCLES = 40  # of disks, and as many of NICs
WARM_UP = 20  # cycles, after which all is allocated that is kept
LOOK = 20  # the guest is asked after each so many
# Two huge pages, which the host's kernel makes of small ones as it sees fit; the test of the same
# name in tests/kvm looks more closely.
GROWTH_KIB = 4096
DONE = '{"return":{}}'
DISK = '{"id":"disk","driver":"virtio-blk-mmio","addr":"0x2"}'
NIC = '{"id":"nic","driver":"virtio-net-mmio","addr":"0x1"}'
# On what stays. fio reads back what it wrote and ends at the first difference; iperf3 ends with its
# connection. Both leave an emulated machine some of its time.
FIO = (
    "fio --name=load --filename=/dev/vdb --direct=1 --ioengine=psync --rw=randwrite --bs=4k "
    "--verify=crc32c --verify_backlog=32 --verify_fatal=1 --time_based --runtime=3600 "
    "--rate_iops=50"
)
IPERF = "iperf3 -c 10.0.0.1 -t 3600 -b 4M"
LOAD = f"""
chroot /m nice -n 19 {FIO} >/tmp/fio 2>&1 & fio=$!
chroot /m nice -n 19 {IPERF} >/tmp/iperf 2>&1 & iperf=$!
"""
LOADED = (
    "[ $(awk '{print $5}' /sys/block/vdb/stat) -gt 10 ] && "
    "[ $(cat /sys/class/net/eth0/statistics/tx_bytes) -gt 100000 ]"
)
# And these use what comes and goes, as far as it is there.
USERS = """
(while :; do dd if=/dev/vdc of=/dev/vdc bs=4k count=8 2>/dev/null; sleep 0.1; done) &
(while :; do ping -c 1 -W 1 10.0.1.1 >/dev/null 2>&1; sleep 0.1; done) &
"""


class Asked:
    """A guest that does what it is told on its console."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._numbers = itertools.count()
        guest.wait_for("^live-guest-ready$")

    def run(self, command: str) -> str:
        """Run a line of shell that must end with 0; return its output."""
        number = next(self._numbers)
        self._guest.say(f"echo begin {number}; {command}; echo end {number} $?")
        found = self._guest.wait_for(rf"(?s)^begin {number}\n(.*?)^end {number} (\d+)$")
        assert found[2] == "0", command
        return found[1]

    def wait_for(self, path: str, value: str) -> None:
        """What a plug causes in the guest is on its way when the request is answered."""
        self.run(f"for try in $(seq 200); do [ $(cat {path}) = {value} ] && break; sleep 0.1; done")
        assert self.run(f"cat {path}").strip() == value


class Cycles:
    """Plugs and unplugs, at moments that differ."""

    def __init__(self, operator: Operator, guest: Asked, image: Path) -> None:
        self._operator = operator
        self._guest = guest
        self._moments = random.Random(5)
        self._disk = f'{{"node-name":"disk","file":{{"driver":"file","filename":"{image}"}}}}'

    def _do(self, command: str, arguments: str) -> None:
        request = f'{{"execute":"{command}","arguments":{arguments}}}'
        assert self._operator.says(request) == DONE, request

    def _unplug(self, name: str) -> None:
        request = f'{{"execute":"device_del","arguments":{{"id":"{name}"}}}}'
        assert f'"DEVICE_DELETED","data":{{"device":"{name}"' in self._operator.says(request)
        assert self._operator.line() == DONE

    def disk(self, *, looks: bool) -> None:
        self._do("blockdev-add", self._disk)
        self._do("device_add", DISK)
        time.sleep(self._moments.uniform(0, 0.005))
        if looks:
            self._guest.wait_for("/sys/block/vdc/size", str(8 * MIB // 512))
            self._guest.run("[ $(dd if=/dev/vdc bs=1M count=2 2>/dev/null | wc -c) = 2097152 ]")
        self._unplug("disk")
        if looks:
            self._guest.wait_for("/sys/block/vdc/size", "0")

    def nic(self, *, looks: bool) -> None:
        self._do("netdev_add", '{"id":"nic","ifname":"tap1"}')
        self._do("device_add", NIC)
        time.sleep(self._moments.uniform(0, 0.005))
        if looks:
            self._guest.wait_for("/sys/class/net/eth1/carrier", "1")
            self._guest.run("until ping -c 1 -W 1 10.0.1.1 >/dev/null; do :; done")
        self._unplug("nic")
        if looks:
            self._guest.wait_for("/sys/class/net/eth1/carrier", "0")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        ip("link set lo up")
        for number in range(2):
            make_tap(number)
        server = subprocess.Popen(
            ["iperf3", "-s", "-1", "-B", "10.0.0.1"],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": "/dev/shm"},
        )
        try:
            yield
        finally:
            server.kill()
            server.wait()


def check_load(said: dict[str, str], seconds: float) -> None:
    """Neither stopped before it was told to, and both got on; how fast is the machine's affair."""
    assert "terminating on signal 2" in said["fio"]
    assert re.search(r"err= *0:", said["fio"]), said["fio"]
    requests = re.search(r"issued rwts: total=(\d+),(\d+),", said["fio"])
    assert requests, said["fio"]
    assert min(map(int, requests.groups())) > 0, said["fio"]
    ran = max(map(float, re.findall(r"-(\d+\.\d+) +sec", said["iperf"])))
    assert "the client has terminated" in said["iperf"], said["iperf"]
    assert ran > 0.8 * seconds, said["iperf"]


def test_cycles_under_load_leave_nothing(shm: Path) -> None:
    own = make(shm / "own", 8 * MIB)
    other, path = make(shm / "other", 8 * MIB), shm / "qmp.sock"
    options = ["-machine", "microvm,mem-share=on", "-m", "256", tools_disk()]
    options += ["-disk", str(own), "-net", "tap0"]
    options += ["-qmp", f"unix:{path},server,nowait,throttle=off"]
    with running(TOOLS + SCRIPT, *options) as process:
        guest, pid = Asked(process), process.process.pid
        for number in range(2):
            setup = interface(f"eth{number}", f"10.0.{number}.2/24")
            guest.run(setup.strip().replace("\n", "; "))
        guest.run("until ping -c 1 -W 1 10.0.0.1 >/dev/null; do :; done")
        for line in LOAD.strip().split("\n"):
            process.say(line)
        guest.run(f"until {LOADED}; do sleep 1; done")  # they have what others leave
        for line in USERS.strip().split("\n"):
            process.say(line)
        begin = time.monotonic()
        operator = Operator(str(path))
        cycles = Cycles(operator, guest, other)
        for cycle in range(1, CYCLES + 1):
            cycles.disk(looks=cycle % LOOK == 0)
            cycles.nic(looks=cycle % LOOK == 0)
            if cycle == WARM_UP:
                before = usage(pid)
        after, seconds = usage(pid), time.monotonic() - begin
        operator.close()
        guest.run("kill -INT $fio $iperf; wait $fio; wait $iperf; :")
        said = {load: guest.run(f"cat /tmp/{load}") for load in ("fio", "iperf")}
        assert guest.run("dmesg | grep 'I/O error, dev vd[ab]' || :") == ""
        process.say("exit")
        ended = process.end()
    assert (ended.status, ended.messages) == (0, "")
    assert after.descriptors == before.descriptors
    assert after.threads == before.threads
    assert after.memory_kib - before.memory_kib < GROWTH_KIB
    check_load(said, seconds)
