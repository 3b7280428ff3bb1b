"""A clock that Linux reads and has alarms of, and watchdogs that it stops to feed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pyvirt.devices.rtc import RtcConfig
from pyvirt.harness.guest import kernel
from pyvirt.vmm.end import Actions
from pyvirt.vmm.execution import PAUSED

from .live import SECONDS, Live, live

# Fed every second until its process stands.
FEED = "watchdog -T 2 -t 1 -F /dev/watchdog & sleep 1; kill -STOP $!"
CARD_RESET = 0x20  # WDIOF_CARDRESET


def wait_for(what: Callable[[], object]) -> None:
    patience = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < patience, f"not within {SECONDS:.0f} s"
        time.sleep(0.01)


def told(guest: Live) -> list[str]:
    return [name for name, _ in guest.events]


def test_clock_and_acpi_watchdog(cloud: kernel.Kernel, tmp_path: Path) -> None:
    """The watchdog is there without a driver named: it resets the guest, and is told of then."""
    with live(
        cloud,
        tmp_path,
        modules=("wdat_wdt",),
        watchdog="acpi-watchdog",
        rtc=RtcConfig(),
        actions=Actions(reboot="reset"),
    ) as guest:
        assert guest.run("cat /sys/class/rtc/rtc0/name").startswith("rtc_cmos")
        before = time.time()
        shown = int(guest.run("cat /sys/class/rtc/rtc0/since_epoch"))
        assert before - 2 < shown < time.time() + 1
        guest.run("date -u -s '1999-12-31 23:55:00' && hwclock -u -w -f /dev/rtc0")
        text = guest.run("hwclock -u -f /dev/rtc0")
        assert "Dec 31 23:5" in text
        assert "1999" in text
        count = "awk '/rtc0/ {print $2}' /proc/interrupts"
        assert guest.run(count) == "0"
        guest.run("echo +2 >/sys/class/rtc/rtc0/wakealarm")
        guest.run("while [ $(" + count + ") = 0 ]; do :; done")
        assert guest.run("cat /sys/class/rtc/rtc0/wakealarm") == ""

        guest.run(FEED)
        wait_for(lambda: "RESET" in told(guest))
        guest.ready()
        assert told(guest) == ["WATCHDOG", "RESET"]
        assert int(guest.run("cat /sys/class/watchdog/watchdog0/bootstatus")) == CARD_RESET
        assert int(guest.run("cat /sys/class/rtc/rtc0/since_epoch")) < 1_000_000_000

        guest.machine.reaction.watchdog = "pause"
        guest.begin(FEED)
        wait_for(lambda: "STOP" in told(guest))
        assert (guest.machine.state, guest.machine.reaction.because) == (PAUSED, "watchdog")


def test_ib700(tmp_path: Path) -> None:
    with live(
        kernel.find("generic"),
        tmp_path,
        modules=("ib700wdt",),
        watchdog="ib700",
        actions=Actions(watchdog="poweroff"),
    ) as guest:
        guest.begin(FEED)
        wait_for(lambda: guest.machine.end)
        assert guest.machine.end is not None
        assert guest.machine.end.reason == "watchdog"
        assert told(guest)[0] == "WATCHDOG"
