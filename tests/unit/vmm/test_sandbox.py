"""What vCPUs have done by others: answers and exceptions come back, and none waits for another."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pyvirt.vmm import layout
from pyvirt.vmm.bus import MMIO, PIO, Bus
from pyvirt.vmm.slots import _is_light

from .test_bus import Probe, access

# In a process of its own, as helpers stay to its end.
PROGRAM = """
import _thread, os, time
from pyvirt.vmm import sandbox
from pyvirt.vmm.sandbox import Helpers

helpers = Helpers()
helpers.start()
seen = []
helpers.perform(lambda: seen.append(_thread.get_ident()))
assert seen[0] != _thread.get_ident()
try:
    helpers.perform(lambda: 1 // 0)
    raise SystemExit("no exception")
except ZeroDivisionError:
    pass

# One asker, one job after the other: there is one at work and one that waits, however they are run.
# Locks whose next holder goes on before who has released them.
class Slow:
    def __init__(self, lock):
        self.lock, self.acquire = lock, lock.acquire

    def release(self):
        self.lock.release()
        time.sleep(0.02)

def ask_slowly(job, what):
    as_ever(job, what)
    job.done = Slow(job.done)

as_ever, sandbox._Job.__init__ = sandbox._Job.__init__, ask_slowly
for _ in range(5):
    helpers.perform(int)
sandbox._Job.__init__ = as_ever
print(len(os.listdir("/proc/self/task")))

# As many wait for one another as there are.
locks = [_thread.allocate_lock() for _ in range(9)]
for lock in locks:
    lock.acquire()
done = []

def ask(place):
    helpers.perform(lambda: (locks[place].acquire(), done.append(place)))

for place in range(8):
    _thread.start_new_thread(ask, (place,))
helpers.perform(lambda: done.append("other"))
assert done == ["other"], done
for place in reversed(range(8)):
    locks[place].release()
while len(done) < 9:
    helpers.perform(lambda: None)
assert sorted(done[1:]) == list(range(8)), done
print(len(os.listdir("/proc/self/task")) <= 1 + 8 + 10)
"""


def test_jobs_are_done_elsewhere_and_wait_for_no_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (b"3\nTrue\n", b"")


def test_only_what_is_light_is_answered_by_a_vcpu_in_a_sandbox() -> None:
    bus, device, other = Bus(), Probe(5), Probe(6)
    bus.add(MMIO, 0x1000, 0x100, device, lambda offset: offset < 0x70)
    bus.add(PIO, 0x600, 4, other)
    handed_over = []

    def perform(what: object) -> None:
        handed_over.append(what)
        what()  # type: ignore[operator]

    bus.perform = perform
    assert access(bus, MMIO, 0x1070, 4) == 5
    access(bus, MMIO, 0x1030, 4, 1, write=True)
    assert handed_over == []
    access(bus, MMIO, 0x1070, 4, 2, write=True)
    assert len(handed_over) == 1
    assert access(bus, PIO, 0x601) == 6
    assert len(handed_over) == 2
    assert device.calls == [(0x70, 4), (0x30, 4, 1), (0x70, 4, 2)]


@pytest.mark.parametrize("slot", [0, 3])
def test_a_driver_s_status_and_configuration_are_not_light(slot: int) -> None:
    base = slot * layout.VIRTIO_MMIO_STEP
    heavy = {offset for offset in range(0, 0x110, 4) if not _is_light(base + offset)}
    assert heavy == {0x70, 0x100, 0x104, 0x108, 0x10C}
