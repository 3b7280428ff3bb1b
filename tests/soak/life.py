"""The life of one VM in a soak: begun in one of three ways, used, and ended in one of four.

All is drawn by the VM's number. One that is killed at some moment, while it starts or saves itself
as well, may break off any request; whatever else goes wrong is a finding.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol

from pyvirt.errors import PyvirtError
from pyvirt.harness.vm.fork_server import Process, Template
from pyvirt.qmp.client import Client, CommandError

from ..unit.fork_server import PYVIRT
from .host import Host

PATIENCE = 120.0  # of a busy machine
MESSAGES = 2000  # bytes that are told of those of a monitor
MIB = 1 << 20
NIC_SLOTS, DISK_SLOTS = 2, 6
WORDS = ("-accel", "kvm", "-m", "128", "-serial", "null")
# What takes a moment each, and has the device at work.
RULES = (
    *("identity", "reset-in-flight", "reset-rounds", "kicks-for-nothing", "head-out-of-range"),
    *("table-loop", "block-write-and-read", "entropy-much", "balloon-twice", "net-short-header"),
)
ATTACK = f"hostile.rounds=10 hostile.only={','.join(RULES)}"
FRESH, RESTORED, FORKED = "fresh", "restored", "forked"
QUIT, TERM, KILL, GUEST = "quit", "SIGTERM", "SIGKILL", "guest"


class Monitor(Protocol):
    """A process that runs a VM."""

    def signal(self, number: int) -> None:
        """Send a signal; nothing if it has ended."""

    def ended(self) -> bool: ...

    def wait(self) -> int:
        """Return its status, -N after signal N."""

    def client(self) -> Client:
        """Connect to its monitor; PyvirtError."""

    def said(self) -> str:
        """Return the end of its messages."""

    def close(self) -> None: ...


class Command:
    """`pyvirt run` or `pyvirt restore`, in a folder of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._path = folder / "qmp"
        self._messages = (folder / "messages").open("w+b")
        monitor = ("-qmp", f"unix:{self._path},server,nowait,throttle=off")
        self._process = subprocess.Popen(
            [PYVIRT, *words, *WORDS, *monitor],
            stdin=subprocess.DEVNULL,
            stdout=self._messages,
            stderr=self._messages,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def client(self) -> Client:
        until = time.monotonic() + PATIENCE
        while not self._path.exists():
            if self.ended() or time.monotonic() > until:
                raise PyvirtError(f"does not start: {self.said()}")
            time.sleep(0.01)
        return Client(str(self._path), lambda _: None)

    def said(self) -> str:
        self._messages.seek(0)
        return self._messages.read().decode(errors="replace")[-MESSAGES:]

    def close(self) -> None:
        if not self.ended():
            self._process.kill()
        self._process.wait()
        self._messages.close()


class Fork:
    """A monitor of a fork server's, or a fork of its template."""

    def __init__(self, server: str, *words: str, template: Template | None = None) -> None:
        words = ("-accel", "kvm", "-serial", "none", "-qmp", "fd:3,throttle=off", *words)
        streams = {"qmp": (3,), "messages": (2,)}
        self._process = Process(server, words, streams, template=template)

    def signal(self, number: int) -> None:
        while self._process.pid is None and not self._process.is_gone:
            self._process.take()
        if self._process.pid is not None and not self.ended():
            os.kill(self._process.pid, number)

    def ended(self) -> bool:
        return self._process.is_gone or self._process.wait(0)

    def wait(self) -> int:
        if not self._process.wait(PATIENCE) or self._process.status is None:
            raise PyvirtError(f"a fork does not end: {self._process.error}")
        return self._process.status

    def client(self) -> Client:
        stream = self._process.streams["qmp"].dup()
        stream.settimeout(PATIENCE)
        return Client(stream, lambda _: None)

    def said(self) -> str:
        stream = self._process.streams["messages"]
        stream.setblocking(False)
        with suppress(BlockingIOError):
            return stream.recv(MESSAGES).decode(errors="replace")
        return ""

    def close(self) -> None:
        self._process.close()


class Life:
    """One VM, for one thread."""

    def __init__(self, host: Host, number: int) -> None:
        """`host` is what it has of the host."""
        self._host = host
        self._chance = random.Random(number)
        self._folder = host.folder / f"vm{number}"
        self._end = self._chance.choices((QUIT, TERM, KILL, GUEST), (3, 2, 4, 1))[0]
        self._is_killed = False
        self._plugged: dict[str, int] = {}  # with their slots
        self._words: list[str] = []
        self._count = 0
        self._tap = ""

    def live(self) -> None:
        """From start to end; PyvirtError, AssertionError and others say what is wrong."""
        self._folder.mkdir()
        self._tap = self._host.tap()
        try:
            begun, monitor = self._begin()
            with closing(monitor):
                try:
                    self._use(monitor)
                except (AssertionError, PyvirtError, subprocess.TimeoutExpired) as error:
                    raise PyvirtError(f"{begun}: {error}: {monitor.said()}") from error
            self._host.count(f"{begun}, {self._end}")
        finally:
            self._host.give_back(self._tap)
            shutil.rmtree(self._folder)

    # The start

    def _begin(self) -> tuple[str, Monitor]:
        begun = self._chance.choices((FRESH, RESTORED, FORKED), (6, 2, 2))[0]
        if begun == FORKED and self._host.template is not None:
            # Its guest is one that counts for ever.
            self._end = TERM if self._end == GUEST else self._end
            return begun, Fork(self._host.server, template=self._host.template)
        saved = self._host.snapshot() if begun == RESTORED else None
        if saved is None:
            self._words = self._devices()
            guest = ["-kernel", str(self._host.hostile), "-append", self._append()]
            return FRESH, Command(self._folder, "run", *guest, *self._words)
        folder, self._words = saved
        folder = folder.rename(self._folder / "incoming")
        self._end = TERM if self._end == GUEST else self._end
        return begun, Command(self._folder, "restore", str(folder), *self._words)

    def _append(self) -> str:
        # It begins anew when it is reset.
        return "hostile.only=identity" if self._end == GUEST else f"hostile.endless {ATTACK}"

    def _devices(self) -> list[str]:
        words = ["-disk", f"{self._host.image},overlay=memory"]
        maybe = (
            ["-object", "rng-random,id=r", "-device", "virtio-rng-device,rng=r"],
            ["-device", "virtio-balloon-device"],
            ["-machine", "mem-share=on"],
            [
                *("-chardev", "null,id=c", "-device", "virtio-serial-device"),
                *("-device", "virtconsole,chardev=c"),
            ],
        )
        for some in maybe:
            words += some if self._chance.random() < 0.5 else []
        return words

    # What is done with it

    def _use(self, monitor: Monitor) -> None:
        killer = threading.Timer(self._chance.uniform(0, 2), lambda: self._kill(monitor))
        if self._end == KILL:
            killer.start()
        try:
            self._work(monitor)
        except PyvirtError:
            if not self._is_expected(monitor):
                raise
        finally:
            killer.cancel()
            if killer.ident is not None:
                killer.join()
        if self._end == KILL and not self._is_killed:
            self._kill(monitor)
        status = monitor.wait()
        wanted = {KILL: (-signal.SIGKILL,), GUEST: (0, 1)}.get(self._end, (0,))
        assert status in wanted, f"status {status} after {self._end}"

    def _kill(self, monitor: Monitor) -> None:
        self._is_killed = True
        monitor.signal(signal.SIGKILL)

    def _is_expected(self, monitor: Monitor) -> bool:
        """Tell whether a request may have failed: there is nobody to carry it out any more."""
        if self._is_killed:
            return True
        return self._end == GUEST and monitor.wait() in {0, 1}

    def _work(self, monitor: Monitor) -> None:
        client = monitor.client()
        try:
            steps = (self._disk, self._nic, self._pause, self._look, self._reset, self._save)
            for step in self._chance.choices(steps, (4, 3, 2, 2, 1, 1), k=6):
                step(client.execute)
            if self._end == QUIT:
                client.execute("quit")
        finally:
            client.close()
        if self._end == TERM:
            monitor.signal(signal.SIGTERM)

    def _slot(self, kind: str, slots: int) -> int:
        taken = [slot for name, slot in self._plugged.items() if name.startswith(kind)]
        return self._chance.choice([slot for slot in range(slots) if slot not in taken] or [-1])

    def _disk(self, do: Callable[..., Any]) -> None:
        slot = self._slot("disk", DISK_SLOTS - 1)
        if slot < 0:
            return
        self._count += 1
        name = f"disk{self._count}"
        image = self._folder / name
        image.write_bytes(bytes(MIB))
        file = {"driver": "file", "filename": str(image)}
        do("blockdev-add", {"node-name": name, "file": file})
        # The first slot is that of the disk it has from the start.
        do("device_add", {"id": name, "driver": "virtio-blk-mmio", "addr": hex(slot + 1)})
        self._plugged[name] = slot
        self._perhaps_unplug(do, name)

    def _nic(self, do: Callable[..., Any]) -> None:
        if not self._tap or any(name.startswith("nic") for name in self._plugged):
            return
        slot = self._slot("nic", NIC_SLOTS)
        self._count += 1
        name = f"nic{self._count}"
        do("netdev_add", {"id": name, "ifname": self._tap})
        do("device_add", {"id": name, "driver": "virtio-net-mmio", "addr": hex(slot)})
        self._plugged[name] = slot
        self._perhaps_unplug(do, name)

    def _perhaps_unplug(self, do: Callable[..., Any], name: str) -> None:
        if self._chance.random() < 0.7:
            self._unplug(do, name)

    def _unplug(self, do: Callable[..., Any], name: str) -> None:
        do("device_del", {"id": name})
        del self._plugged[name]

    def _pause(self, do: Callable[..., Any]) -> None:
        do("stop")
        do("query-status")
        do("cont")

    def _look(self, do: Callable[..., Any]) -> None:
        for command in ("query-status", "query-block", "query-blockstats", "x-query-stats"):
            do(command)

    def _reset(self, do: Callable[..., Any]) -> None:
        try:
            do("system_reset")
        except CommandError as error:
            # Forks and what is restored have none here.
            if "there is no kernel to begin anew with" not in str(error):
                raise

    def _save(self, do: Callable[..., Any]) -> None:
        if not self._words:
            return
        for name in list(self._plugged):
            self._unplug(do, name)
        folder = self._folder / f"saved{self._count}"
        self._count += 1
        do("migrate", {"uri": f"file:{folder}"})
        until = time.monotonic() + PATIENCE
        while (found := do("query-migrate"))["status"] == "active":
            assert time.monotonic() < until, "a snapshot does not come to its end"
            time.sleep(0.01)
        assert found["status"] == "completed", found
        self._host.keep(folder, self._words)
        do("cont")
