"""A soak: VMs that come and go, beside a monitor and a fork server that stay; all of it is watched.

What is to be flat is compared between the first and the last third of the run, and what is to be
gone at its end is looked for.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from pyvirt.cli import registry
from pyvirt.harness.vm.fork_server import ForkServer, Template

from ..unit.usage import Usage, usage
from .held import Family, Held
from .host import Host
from .life import ATTACK, PATIENCE, Command, Fork, Life

LOOK_S = 0.2
LOOKS = 30  # at each of those that stay
# What such a one may come to hold more: pages that it has touched now and then.
GROWTH_KIB = 512
MEASURES = ("memory_kib", "descriptors", "threads", "processes", "files")
# No two VMs are the same, and so no two moments; what leaks adds up over all of them.
GROWTH = 1.15
# The first slots of disks and of NICs.
FIRST_SLOTS = "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0006000:11"
CYCLES, FORKS = "a monitor's plugs", "a fork server's forks"


class Sample(NamedTuple):
    """All processes `seconds` after the start, with so many VMs begun and not ended, and ended."""

    seconds: float
    running: int
    ended: int
    held: Held


def thirds(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the first and the last."""
    length = max(1, len(values) // 3)
    return values[:length], values[-length:]


def _is_same(one: Usage, other: Usage) -> bool:
    return (one.descriptors, one.threads) == (other.descriptors, other.threads)


class Resident:
    """A process that stays, and what it held after how many cycles."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.seen: list[tuple[int, Usage]] = []

    def is_as_before(self, pid: int) -> bool:
        """Tell whether it has the threads and descriptors that it had at one of the looks."""
        now = usage(pid)
        return any(_is_same(now, then) for _, then in self.seen)

    def findings(self) -> Iterator[str]:
        """Say what it holds more than at first."""
        first, last = thirds([one for _, one in self.seen])
        # The very first look may have come while something was about to end.
        if not any(_is_same(last[-1], then) for then in first):
            for what, before, after in zip(Usage._fields[:2], first[-1], last[-1], strict=False):
                if before != after:
                    yield f"{self.what}: {what} {before} became {after}"
        before, after = (
            statistics.median(one.memory_kib for one in third) for third in (first, last)
        )
        if after > before + GROWTH_KIB:
            yield f"{self.what}: {before:.0f} KiB became {after:.0f}"


class Soak:
    """One run."""

    def __init__(
        self, family: Family, host: Host, *, vms: int, at_once: int, cycles: int, forks: int
    ) -> None:
        """`cycles` of a disk and a NIC for the monitor that stays, `forks` of the template."""
        self.samples: list[Sample] = []
        self.residents = {what: Resident(what) for what in (CYCLES, FORKS)}
        self.at_once = at_once
        self.faults: list[str] = []
        self._family = family
        self._host = host
        self._vms = vms
        self._jobs: tuple[tuple[Callable[[int], None], int], ...] = (
            (self._cycle, cycles),
            (self._fork, forks),
        )
        self._running = self._ended = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        """Have all of them live; `faults` says then what went wrong, and what stayed behind."""
        over = threading.Event()
        with self._family.joined(), ExitStack() as stack:
            stack.callback(self._look_for_the_rest)
            stack.callback(self._host.close)
            server = stack.enter_context(closing(ForkServer()))
            self._host.server, self._host.template = server.path, self._template(server, stack)
            watch = threading.Thread(target=self._watch, args=(over,))
            watch.start()
            try:
                with (
                    ThreadPoolExecutor(self.at_once) as lives,
                    ThreadPoolExecutor(len(self._jobs)) as others,
                ):
                    for job, count in self._jobs:
                        others.submit(self._guarded, job.__name__, job, count)
                    for number in range(self._vms):
                        lives.submit(self._live, number)
            finally:
                over.set()
                watch.join()

    def _guarded(self, name: str, act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001  (what is wrong with one is told at the end)
            self.faults.append(f"{name}: {type(error).__name__}: {error}")

    def _live(self, number: int) -> None:
        with self._lock:
            self._running += 1
        self._guarded(f"VM {number}", Life(self._host, number).live)
        with self._lock:
            self._running -= 1
            self._ended += 1

    def _watch(self, over: threading.Event) -> None:
        start = time.monotonic()
        while not over.wait(LOOK_S):
            seconds = time.monotonic() - start
            self.samples.append(Sample(seconds, self._running, self._ended, self._family.held()))

    def _template(self, server: ForkServer, stack: ExitStack) -> Template:
        """Return what a guest has become that attacks its empty slots."""
        template = stack.enter_context(closing(Template(server.path)))
        with closing(Fork(server.path, *self._attack())) as first:
            client = first.client()
            with closing(client):
                client.execute("migrate", {"uri": template.uri})
                template.wait(PATIENCE)
        return template

    def _attack(self, windows: str = "") -> tuple[str, ...]:
        words = ("-append", f"{windows} hostile.endless {ATTACK}")
        return ("-kernel", str(self._host.hostile), *words)

    # Those that stay

    def _cycle(self, cycles: int) -> None:
        """Plug and unplug while the guest attacks the very device."""
        folder = self._host.folder / "stays"
        folder.mkdir()
        image, tap = folder / "disk", self._host.tap()
        image.write_bytes(bytes(1 << 20))
        resident = self.residents[CYCLES]
        with closing(
            Command(folder, "run", "-machine", "mem-share=on", *self._attack(FIRST_SLOTS))
        ) as one:
            client = one.client()
            with closing(client):
                for cycle in range(cycles):
                    _plug_and_unplug(client.execute, str(image), tap)
                    if (cycle + 1) % max(1, cycles // LOOKS) == 0:
                        # All its devices are at their start then.
                        for command in ("stop", "system_reset"):
                            client.execute(command)
                        resident.seen.append((cycle + 1, usage(one.pid)))
                        client.execute("cont")
                client.execute("quit")
            assert one.wait() == 0
        self._host.give_back(tap)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    def _fork(self, forks: int) -> None:
        resident = self.residents[FORKS]
        with ExitStack() as stack:
            server = stack.enter_context(closing(ForkServer()))
            template = self._template(server, stack)
            pid = server._process.pid
            for number in range(forks):
                with closing(Fork(server.path, template=template)) as fork:
                    client = fork.client()
                    with closing(client):
                        client.execute("query-status")
                        if number % 2:
                            client.execute("quit")
                    if number % 2 == 0:
                        fork.signal(9)
                    fork.wait()
                if (number + 1) % max(1, forks // LOOKS) == 0:
                    self._settle(resident, pid)
                    resident.seen.append((number + 1, usage(pid)))

    @staticmethod
    def _settle(resident: Resident, pid: int) -> None:
        """Wait until the next fork is prepared, as one was when it was looked at before."""
        until = time.monotonic() + PATIENCE / 4
        while resident.seen and not resident.is_as_before(pid) and time.monotonic() < until:
            time.sleep(0.02)

    # The end

    def _look_for_the_rest(self) -> None:
        until = time.monotonic() + PATIENCE / 4
        while (left := list(self._left())) and time.monotonic() < until:
            time.sleep(0.02)
        self.faults += left

    def _left(self) -> Iterator[str]:
        """Yield what is left of the VMs now; what `pyvirt ps` tidies is none of it."""
        yield from (f"process {pid} is left" for pid in self._family.pids())
        yield from (f"pyvirt ps lists {entry.pid}" for entry in registry.running())
        yield from (f"{name} is left" for name in self._family.files() if name != "pyvirt")

    def flat(self) -> dict[str, tuple[float, float]]:
        """Return the medians of the first and the last third, while all VMs were at work.

        Those that were begun together are left out, which are all of one age.
        """
        busy = [
            sample.held for sample in self.samples if sample.running == self.at_once <= sample.ended
        ]
        if not busy:
            return {}
        return {
            measure: (
                statistics.median(getattr(one, measure) for one in thirds(busy)[0]),
                statistics.median(getattr(one, measure) for one in thirds(busy)[1]),
            )
            for measure in MEASURES
        }

    def findings(self) -> list[str]:
        """Return what went wrong, what stayed behind, and what grew in those that stay."""
        return self.faults + [
            finding for one in self.residents.values() for finding in one.findings()
        ]

    def growth(self) -> list[str]:
        """Return what all together hold more of at the end than at the start, of a long run."""
        return [
            f"{measure}: {before:.0f} became {after:.0f}"
            for measure, (before, after) in self.flat().items()
            if after > before * GROWTH
        ]


def _plug_and_unplug(do: Callable[..., Any], image: str, tap: str) -> None:
    file = {"driver": "file", "filename": image}
    do("blockdev-add", {"node-name": "disk", "file": file})
    do("device_add", {"id": "disk", "driver": "virtio-blk-mmio", "addr": "0x0"})
    if tap:
        do("netdev_add", {"id": "nic", "ifname": tap})
        do("device_add", {"id": "nic", "driver": "virtio-net-mmio", "addr": "0x0"})
    do("device_del", {"id": "disk"})
    if tap:
        do("device_del", {"id": "nic"})
