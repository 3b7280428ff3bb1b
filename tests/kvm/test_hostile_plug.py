"""The hostile guest on devices that come and go while it is at them."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pyvirt.qmp.client import CommandError
from pyvirt.vmm import layout

from ..effort import tries
from ..unit.namespace import ip, network_namespace
from .support import MMIO
from .test_hostile import guest
from .test_qmp_run import Monitored
from .test_run import wait_for

pytestmark = [pytest.mark.any_kvm, pytest.mark.long]
__all__ = ["guest"]  # a fixture
CYCLES = tries(5)
DISKS = 6  # slots, those of NICs behind them
PAGE = 4096
RULES = "identity,reset-rounds,kicks-for-nothing,live-queue-grows,head-out-of-range"
ENDLESS = f"hostile.endless hostile.rounds=10 hostile.only={RULES}"


class Attacked:
    """A machine whose guest attacks for ever, and the report that it writes meanwhile."""

    def __init__(self, kernel: Path, folder: Path, words: str, *options: str) -> None:
        self._report = folder / "report"
        self.folder = folder
        serial = ("-serial", f"file,path={self._report}")
        self.monitor = Monitored(
            kernel, *serial, "-append", f"{ENDLESS} {words}", *options, throttle=False
        )

    def ask(self, command: str, **arguments: Any) -> Any:
        return self.monitor.client.execute(command, arguments)

    def count(self, text: str) -> int:
        return self._report.read_text(encoding="ascii").count(text)

    def wait_for_another(self, text: str) -> None:
        """Wait until the guest has said it once more than now."""
        before = self.count(text)
        wait_for(lambda: self.count(text) > before, f"once more: {text}")

    def add_disk(self) -> None:
        image = self.folder / "image"
        image.write_bytes(bytes(1 << 20))
        file = {"driver": "file", "filename": str(image)}
        self.ask("blockdev-add", **{"node-name": "disk", "file": file})

    def __enter__(self) -> Attacked:
        return self

    def __exit__(self, *failure: object) -> None:
        self.monitor.__exit__(*failure)


def window(slot: int) -> str:
    return f"virtio_mmio.device=4K@{MMIO + slot * PAGE:#x}:5"


def test_disks_and_nics_go(guest: Path, tmp_path: Path) -> None:
    """At any moment: which rule is being played then is left to chance."""
    moments = random.Random(7)
    found = ("block0 identity # served", "net0 identity # used")
    with network_namespace():
        ip("tuntap add tap0 mode tap")
        with Attacked(guest, tmp_path, f"{window(0)} {window(DISKS)}") as attacked:
            for _ in range(CYCLES):
                attacked.add_disk()
                attacked.ask("netdev_add", id="nic", ifname="tap0")
                attacked.ask("device_add", id="disk", driver="virtio-blk-mmio", addr="0x0")
                attacked.ask("device_add", id="nic", driver="virtio-net-mmio", addr="0x0")
                for what in found:
                    attacked.wait_for_another(what)
                time.sleep(moments.uniform(0, 0.02))
                for name in ("disk", "nic"):
                    attacked.ask("device_del", id=name)
                attacked.wait_for_another("block0 identity # does not serve")
            assert attacked.ask("query-status")["running"]


def test_rubbish_where_the_guest_answers_to_what_comes(guest: Path, tmp_path: Path) -> None:
    """The registers by which slots come on demand take all sizes, and answers to nothing asked.

    Now and then the answer is right, and the guest has a device, which it attacks as any.
    """
    ports = f"hostile.ports={layout.PLUG:#x}+{layout.PLUG_SIZE}"
    with Attacked(guest, tmp_path, ports, "-machine", "slots=demand") as attacked:
        attacked.add_disk()

        def is_taken() -> bool:
            with suppress(CommandError):
                attacked.ask("device_add", id="disk", driver="virtio-blk-mmio")
                return True
            return False

        wait_for(is_taken, "the right answer")
        attacked.wait_for_another("block0 identity # served")
        with suppress(CommandError):
            attacked.ask("device_del", id="disk")
        assert attacked.ask("query-status")["running"]
