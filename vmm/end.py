"""How a guest's run ends, and what is done when the guest resets, switches off or panics."""

from __future__ import annotations

import _thread

from ..errors import PyvirtError, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from .log import Log

    class Life(Protocol):
        """What a Reaction asks of its machine; all of it by any thread."""

        def finish(self, end: End) -> None:
            """End it."""

        def hold(self) -> bool:
            """Have the vCPUs stand before their next instruction; False: it has ended."""

        def reset(self, *, by_guest: bool) -> None:
            """Start it anew."""

        def pause(self) -> None:
            """Pause it."""

        def power_button(self) -> None:
            """Press it."""

        def inject_nmi(self) -> None:
            """Interrupt every vCPU."""

        def tell(self, event: str, **data: Any) -> None:
            """Tell the listeners."""


class End:
    """Why a machine ended, and the exit status that goes with it."""

    __slots__ = ("reason", "status")

    def __init__(self, reason: str, status: int = 0) -> None:
        """`reason` is one of the words below, as logs and tools show it."""
        self.reason = reason
        self.status = status


GUEST_SHUTDOWN = "guest-shutdown"  # ACPI S5, or as with Bochs
GUEST_RESET = "guest-reset"  # ACPI reset register, i8042
WATCHDOG = "watchdog"  # of the guest's, where that ends the run
GUEST_PANIC = "guest-panic"  # of its kernel, where that ends the run
DEBUG_EXIT = "debug-exit"
TRIPLE_FAULT = "triple-fault"
CRASH = "crash"  # an exit that cannot be handled, or a fault of the monitor's
HOST = "host"  # asked for from outside

REBOOTS = ("shutdown", "reset")
SHUTDOWNS = ("poweroff", "pause")
PANICS = ("none", "pause", "shutdown", "exit-failure")
WATCHDOGS = ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi")


class Actions:
    """What is done about a guest that resets, switches off, panics or hangs, as of `-action`."""

    __slots__ = ("panic", "reboot", "shutdown", "watchdog")

    def __init__(
        self,
        *,
        reboot: str = REBOOTS[0],
        shutdown: str = SHUTDOWNS[0],
        panic: str = PANICS[0],
        watchdog: str = WATCHDOGS[0],
    ) -> None:
        """Each is one of the words above; "none" leaves a panic to the guest itself.

        A watchdog's "reset" is one of the guest's, about which `reboot` says more; its "shutdown"
        presses the power button.
        """
        self.reboot = reboot
        self.shutdown = shutdown
        self.panic = panic
        self.watchdog = watchdog


class Reaction:
    """Carries out a machine's actions. Called by vCPUs, which cannot pause or reset it themselves.

    So those are done on a thread of their own, one at a time, and the vCPUs stand until then.
    """

    __slots__ = (
        "_actions",
        "_life",
        "_lock",
        "_log",
        "_log_some",
        "because",
        "is_busy",
        "watchdog",
    )

    def __init__(self, actions: Actions, life: Life, log: Log) -> None:
        # It is paused: "shutdown", "guest-panicked", "watchdog", "" for another reason.
        self.because = ""
        self.watchdog = actions.watchdog  # which may be set anew; any thread
        self._actions = actions
        self._life = life
        self._log = log
        self._log_some = log.limited()
        self._lock = _thread.allocate_lock()
        self.is_busy = False  # the guest has asked for something that is not over

    def on_reset(self) -> None:
        """Reset the machine, as the guest asks for, or end it."""
        if self._actions.reboot == "reset":
            self._ask(self._reset)
        else:
            self._life.finish(End(GUEST_RESET))

    def on_triple_fault(self) -> bool:
        """Say whether that is taken for a reset, as a real machine does."""
        is_reset = self._actions.reboot == "reset"
        if is_reset:
            self._ask(self._reset)
        return is_reset

    def on_shutdown(self) -> None:
        """Switch the machine off, as the guest asks for."""
        if self._actions.shutdown == "pause":
            self._ask(self._shut_down)
        else:
            self._life.finish(End(GUEST_SHUTDOWN))

    def on_panic(self, goes_on: bool) -> None:
        """Act on the panic of the guest's kernel; `goes_on`: another of its own takes over."""
        action = self._actions.panic
        if goes_on:
            self._life.tell("GUEST_CRASHLOADED", action="run")
        elif action == "none":
            self._life.tell("GUEST_PANICKED", action="run")
        elif action == "pause":
            self._ask(self._panic)
        else:
            self._life.tell("GUEST_PANICKED", action="poweroff")
            self._life.finish(End(GUEST_PANIC, int(action == "exit-failure")))

    def on_watchdog(self) -> None:
        """Act on a guest that has not fed its watchdog; on a thread of that."""
        action = self.watchdog
        if action != "none":
            self._log_some(f"the guest's watchdog has fired: {action}")
        self._life.tell("WATCHDOG", action=action)
        if action == "reset":
            self.on_reset()
        elif action == "poweroff":
            self._life.finish(End(WATCHDOG))
        elif action == "pause":
            self._ask(self._bark)
        elif action == "shutdown":
            self._carry_out(self._life.power_button)
        elif action == "inject-nmi":
            self._carry_out(self._life.inject_nmi)

    def done(self) -> None:
        """Forget what was asked: the machine starts anew, or runs on."""
        self.because = ""
        self.is_busy = False

    def _ask(self, what: Callable[[], None]) -> None:
        with self._lock:
            # Another vCPU was first.
            if self.is_busy or not self._life.hold():
                return
            self.is_busy = True
        _thread.start_new_thread(self._carry_out, (what,))

    def _carry_out(self, what: Callable[[], None]) -> None:
        try:
            what()
        except PyvirtError as error:
            self._fail(str(error))
        except BaseException as error:  # noqa: BLE001  (a fault of ours ends this guest, in one line)
            self._fail(f"{unexpected(error)}; please report")

    def _fail(self, why: str) -> None:
        """End a machine that would stand for ever; nothing happens when it has ended meanwhile."""
        if self._life.hold():
            self._log.error(f"what the guest asked for cannot be done: {why}")
            self._life.finish(End(CRASH, 1))

    def _reset(self) -> None:
        self._life.reset(by_guest=True)

    def _shut_down(self) -> None:
        self.because = "shutdown"
        self._life.tell("SHUTDOWN", guest=True, reason=GUEST_SHUTDOWN)
        self._life.pause()

    def _bark(self) -> None:
        self.because = "watchdog"
        self._life.pause()

    def _panic(self) -> None:
        self.because = "guest-panicked"
        self._life.tell("GUEST_PANICKED", action="pause")
        self._life.pause()
