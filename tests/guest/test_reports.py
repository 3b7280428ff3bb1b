"""What real kernels say when they warn, oops, panic and hang, and where they are then."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from pyvirt.harness.guest import initramfs
from pyvirt.harness.judge import evidence
from pyvirt.harness.judge.classifier import QUIET_EMULATED_S
from pyvirt.harness.judge.symbols import Symbols, for_kernel
from pyvirt.harness.judge.verdict import Verdict
from pyvirt.harness.vm.console import Console
from pyvirt.qmp.client import Client

from .conftest import SECONDS, command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyvirt.harness.guest.kernel import Kernel

CRASH = "mount -t debugfs none /sys/kernel/debug; echo {} >/sys/kernel/debug/provoke-crash/DIRECT"
APPEND = "console=ttyS0 panic=-1 nokaslr loglevel=5"  # warnings, and what is worse


class Guest:
    """A guest whose console is classified as it comes."""

    def __init__(self, kernel: Kernel, folder: Path, script: str, append: str = "") -> None:
        self.console = Console(folder / "console", QUIET_EMULATED_S)
        self.socket = str(folder / "qmp")
        initrd = initramfs.build(kernel, script=script)
        options = ["-initrd", str(initrd), "-qmp", f"unix:{self.socket},server,nowait,throttle=off"]
        run = command(kernel.image, *options, append=f"{APPEND} {append}")
        self.process = subprocess.Popen(
            ["timeout", "-k", "5", str(SECONDS), *run],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def read(self, *, until_report: bool = False) -> None:
        """Feed the console to the guest's end, or to the first report."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not (until_report and self.console.splats):
                if selector.select(self.console.poll()):
                    data = os.read(self.process.stdout.fileno(), 65536)
                    if not data:
                        self.console.close()
                        return
                    self.console.feed(data)

    def close(self) -> None:
        self.process.terminate()
        with self.process:
            self.console.close()


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    started: list[Guest] = []
    yield started
    for guest in started:
        guest.close()


@pytest.fixture(scope="session")
def symbols(micro: Kernel) -> Symbols:
    def fetch() -> str:
        raise AssertionError("its vmlinux is there")

    return for_kernel(micro, fetch)


SURVIVED = (
    ("WARNING", Verdict.WARNED, "WARNING: at drivers/misc/lkdtm/bugs.c:"),
    ("BUG", Verdict.OOPSED, "kernel BUG at drivers/misc/lkdtm/bugs.c:"),
    ("EXCEPTION", Verdict.OOPSED, "BUG: kernel NULL pointer dereference in lkdtm_EXCEPTION"),
)


def test_what_a_kernel_says_and_survives(micro: Kernel, shm: Path, guests: list[Guest]) -> None:
    """Each is a report; all else on the console is none."""
    crashes = [f"({CRASH.format(what)}); echo survived {what}" for what, _, _ in SURVIVED]
    script = "\n".join(["echo BUG: mine >/dev/console; dmesg -n 8", *crashes])
    guest = Guest(micro, shm, script)
    guests.append(guest)
    guest.read()
    text = guest.console.text()
    assert len(guest.console.splats) == len(SURVIVED), text
    for splat, (what, kind, title) in zip(guest.console.splats, SURVIVED, strict=True):
        assert (splat.kind, splat.title[: len(title)]) == (kind, title), text
        assert f"survived {what}" in text
        if "lkdtm" in title:
            assert any("vfs_write+0x" in line for line in splat.lines)


@pytest.mark.parametrize(
    ("script", "append", "title"),
    [
        (CRASH.format("EXCEPTION"), "oops=panic",
         "Kernel panic - not syncing: Fatal exception (BUG: kernel NULL pointer dereference in "),
        (CRASH.format("WARNING"), "panic_on_warn=1",
         "Kernel panic - not syncing: kernel: panic_on_warn set"),
        (CRASH.format("PANIC"), "", "Kernel panic - not syncing: dumptest"),
        ("echo c >/proc/sysrq-trigger", "", "Kernel panic - not syncing: sysrq triggered crash"),
        ("exit", "init=/none rdinit=/none root=/dev/none",
         "Kernel panic - not syncing: VFS: Unable to mount root fs on "),
    ],
)  # fmt: skip
def test_what_a_kernel_says_at_its_end(
    micro: Kernel, shm: Path, guests: list[Guest], script: str, append: str, title: str
) -> None:
    guest = Guest(micro, shm, f"echo BUG: mine; ({script}); echo survived", append)
    guests.append(guest)
    started = time.monotonic()
    guest.read()
    assert time.monotonic() - started < SECONDS
    (splat,) = guest.console.splats
    found = (splat.kind, splat.title[: len(title)])
    assert found == (Verdict.PANICKED, title), guest.console.text()
    assert "survived" not in guest.console.text()


def test_where_a_hung_guest_is(
    micro: Kernel, symbols: Symbols, shm: Path, guests: list[Guest]
) -> None:
    script = "echo 1 >/proc/sys/kernel/watchdog_thresh;" + CRASH.format("SOFTLOCKUP")
    guest = Guest(micro, shm, script)
    guests.append(guest)
    guest.read(until_report=True)
    (splat,) = guest.console.splats
    assert splat.kind == Verdict.HUNG
    assert splat.title.startswith("BUG: soft lockup - CPU stuck!")
    client = Client(guest.socket, lambda _: None)
    try:
        text = evidence.vcpus(client, symbols)
        client.execute("quit")
    finally:
        client.close()
    # Perhaps in an interrupt's handler; below that it spins.
    assert re.search(r"^(rip \w+ |  )lkdtm_SOFTLOCKUP\+0x", text, re.MULTILINE), text
    assert "  ? vfs_write+0x" in text, text
