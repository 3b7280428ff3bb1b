"""What a guest's reset, power-off and panic lead to, as `-action` says."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pyvirt.errors import BackendError, PyvirtError
from pyvirt.vmm.end import Actions
from pyvirt.vmm.execution import ENDED, PAUSED

from .conftest import Make
from .support import MAILBOX, PATIENCE, Guest

OUT_8 = 4  # of script.S, which ends with status 0 where its memory is empty: after a reset
HALT = 15
SLEEP_CONTROL, RESET, I8042, PANIC = (0x600, 0x34), (0x602, 1), (0x64, 0xFE), (0x608, 1)


class Told:
    """The events of a machine, in their order."""

    def __init__(self, guest: Guest) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._more = threading.Condition()
        guest.listeners.append(self._take)

    def _take(self, name: str, data: dict[str, Any]) -> None:
        with self._more:
            self.events.append((name, data))
            self._more.notify_all()

    def wait_for(self, name: str, count: int = 1) -> None:
        with self._more:
            assert self._more.wait_for(
                lambda: [event for event, _ in self.events].count(name) >= count, PATIENCE
            ), f"{name}: not within {PATIENCE:.0f} s: {self.events}"


def writing(make: Make, actions: Actions, *writes: tuple[int, int]) -> tuple[Guest, Told]:
    """Start a guest that writes ports."""
    guest = make("script", actions=actions)
    words = [word for port, value in writes for word in (OUT_8, port, value, 0)]
    guest.write_words(MAILBOX, *words, 0)
    told = Told(guest)
    guest.start()
    return guest, told


@pytest.mark.parametrize("write", [RESET, pytest.param(I8042, marks=pytest.mark.any_kvm)])
def test_a_reset_begins_anew(make: Make, write: tuple[int, int]) -> None:
    guest, told = writing(make, Actions(reboot="reset"), write)
    end = guest.wait()
    assert (end.reason, end.status) == ("debug-exit", 0)
    assert told.events[0] == ("RESET", {"guest": True})
    assert [name for name, _ in told.events] == ["RESET", "SHUTDOWN"]
    assert guest.log_text() == ""


def test_a_triple_fault_is_a_reset_as_well(make: Make) -> None:
    """Again and again, which the log does not tell each time."""
    guest = make("triple_fault", actions=Actions(reboot="reset"))
    told = Told(guest)
    guest.start()
    told.wait_for("RESET", 15)
    assert guest.end is None
    guest.close()
    lines = guest.log_text().splitlines()
    assert lines[0].endswith("the guest triple-faulted, and is reset")
    assert len(lines) <= 12


@pytest.mark.any_kvm
def test_of_a_reset_that_fails_the_machine_ends(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drain(_: object) -> None:
        raise BackendError("the storage hangs")

    monkeypatch.setattr("pyvirt.vmm.slots.Slots.drain", drain)
    guest, _ = writing(make, Actions(reboot="reset"), RESET)
    end = guest.wait()
    assert (end.reason, end.status) == ("crash", 1)
    assert "what the guest asked for cannot be done: the storage hangs" in guest.log_text()


def test_the_end_comes_with_a_reset(make: Make) -> None:
    for _ in range(20):
        guest = make("triple_fault", actions=Actions(reboot="reset"))
        told = Told(guest)
        guest.start()
        told.wait_for("RESET")
        guest.close()
        assert guest.end is not None
        assert guest.end.reason == "host"


@pytest.mark.any_kvm
def test_a_guest_that_is_off_stands_until_its_reset(make: Make) -> None:
    guest, told = writing(make, Actions(shutdown="pause"), SLEEP_CONTROL)
    told.wait_for("STOP")
    assert told.events == [("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}), ("STOP", {})]
    assert (guest.state, guest.reaction.because) == (PAUSED, "shutdown")
    with pytest.raises(PyvirtError, match="has switched itself off; reset the machine first"):
        guest.resume()
    guest.reset()
    assert (guest.state, guest.reaction.because) == (PAUSED, "")
    guest.resume()
    assert guest.wait().reason == "debug-exit"


@pytest.mark.any_kvm
def test_a_panic_pauses(make: Make) -> None:
    guest, told = writing(make, Actions(panic="pause"), PANIC)
    told.wait_for("STOP")
    assert told.events == [("GUEST_PANICKED", {"action": "pause"}), ("STOP", {})]
    assert (guest.state, guest.reaction.because) == (PAUSED, "guest-panicked")
    guest.resume()
    assert guest.wait().reason == "debug-exit"


# Of an ib700: no time at all, and half a minute, which is up to its machine's end.
BARK, FEED = (0x443, 15), (0x443, 0)


def watched(make: Make, actions: Actions, *writes: tuple[int, int]) -> tuple[Guest, Told]:
    """Start a guest that writes its watchdog's ports, and runs on."""
    guest = make("script", actions=actions, watchdog="ib700")
    words = [word for port, value in writes for word in (OUT_8, port, value, 0)]
    guest.write_words(MAILBOX, *words, HALT, 0, 0, 0)
    told = Told(guest)
    guest.start()
    return guest, told


@pytest.mark.any_kvm
def test_a_watchdog_resets(make: Make) -> None:
    guest, told = watched(make, Actions(reboot="reset"), FEED, BARK)
    assert guest.wait().reason == "debug-exit"
    assert [name for name, _ in told.events] == ["WATCHDOG", "RESET", "SHUTDOWN"]
    assert told.events[:2] == [("WATCHDOG", {"action": "reset"}), ("RESET", {"guest": True})]
    assert guest.log_text() == "pyvirt: the guest's watchdog has fired: reset\n"


@pytest.mark.any_kvm
def test_a_watchdogs_reset_is_what_the_guests_own_is(make: Make) -> None:
    guest, _ = watched(make, Actions(), BARK)
    end = guest.wait()
    assert (end.reason, end.status) == ("guest-reset", 0)


@pytest.mark.any_kvm
def test_a_watchdog_pauses(make: Make) -> None:
    guest, told = watched(make, Actions(watchdog="pause"), BARK)
    told.wait_for("STOP")
    assert told.events == [("WATCHDOG", {"action": "pause"}), ("STOP", {})]
    assert (guest.state, guest.reaction.because) == (PAUSED, "watchdog")
    guest.resume()
    assert guest.state == "running"


@pytest.mark.any_kvm
def test_a_watchdog_switches_off(make: Make) -> None:
    guest, told = watched(make, Actions(watchdog="poweroff"), BARK)
    end = guest.wait()
    assert (end.reason, end.status) == ("watchdog", 0)
    assert told.events[0] == ("WATCHDOG", {"action": "poweroff"})


@pytest.mark.any_kvm
@pytest.mark.parametrize(("action", "event"), [("shutdown", "POWERDOWN"), ("none", "WATCHDOG")])
def test_a_watchdog_asks(make: Make, action: str, event: str) -> None:
    guest, told = watched(make, Actions(watchdog=action), BARK)
    told.wait_for(event)
    assert guest.state == "running"
    assert (guest.log_text() == "") == (action == "none")


def test_a_watchdog_injects_an_nmi(make: Make) -> None:
    """A guest without an interrupt table triple-faults."""
    guest, told = watched(make, Actions(watchdog="inject-nmi"), BARK)
    assert guest.wait().reason in {"triple-fault", "crash"}  # the latter where KVM is emulated
    assert told.events[0] == ("WATCHDOG", {"action": "inject-nmi"})


@pytest.mark.any_kvm
def test_a_watchdog_stands_while_the_machine_does(make: Make) -> None:
    guest, told = watched(make, Actions(watchdog="none"), FEED)
    assert guest._timed is not None
    assert guest._timed.watchdog is not None
    timer = guest._timed.watchdog.timer
    while timer.left() is None:
        threading.Event().wait(0.01)
    guest.pause()
    left = timer.left()
    assert left is not None
    assert 0 < left < 30 * 10**9
    assert timer.left() == left
    guest.resume()
    while timer.left() == left:
        threading.Event().wait(0.01)
    guest.reset()
    assert timer.left() is None
    assert "WATCHDOG" not in [name for name, _ in told.events]


@pytest.mark.any_kvm
def test_a_machine_without_a_watchdog_has_no_port_of_one(make: Make) -> None:
    guest, _ = writing(make, Actions(watchdog="poweroff"), BARK)
    assert guest.wait().reason == "debug-exit"


@pytest.mark.any_kvm
@pytest.mark.parametrize(("action", "status"), [("shutdown", 0), ("exit-failure", 1)])
def test_a_panic_ends_the_run(make: Make, action: str, status: int) -> None:
    guest, told = writing(make, Actions(panic=action), PANIC, RESET)
    end = guest.wait()
    assert (end.reason, end.status) == ("guest-panic", status)
    assert told.events[0] == ("GUEST_PANICKED", {"action": "poweroff"})
    assert guest.state == ENDED


@pytest.mark.any_kvm
def test_a_crash_kernel_is_left_alone(make: Make) -> None:
    guest, told = writing(make, Actions(panic="exit-failure"), (0x608, 2))
    assert guest.wait().reason == "debug-exit"
    assert told.events[0] == ("GUEST_CRASHLOADED", {"action": "run"})
