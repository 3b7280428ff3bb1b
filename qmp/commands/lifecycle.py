"""The machine's life: stop, cont, quit, power button, reset. The machine emits their events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import QmpError
from ...vmm.end import WATCHDOGS
from ..host import ENDED, PAUSED, RUNNING
from ..schema import Arguments, Choice, Command, Field, Struct

if TYPE_CHECKING:
    from ..host import Host
    from ..session import Session


def _living(session: Session) -> Host:
    host = session.monitor.host
    if host.state() == ENDED:
        raise QmpError("The machine has ended")
    return host


def _status(session: Session, _: Arguments) -> object:
    host = session.monitor.host
    state = host.state()
    status = "shutdown" if state == ENDED else state
    if state == PAUSED:
        status = host.paused_because() or status
    return {"running": state == RUNNING, "singlestep": False, "status": status}


def _stop(session: Session, _: Arguments) -> object:
    _living(session).stop()
    return {}


def _cont(session: Session, _: Arguments) -> object:
    _living(session).cont()
    return {}


def _quit(session: Session, _: Arguments) -> object:
    session.monitor.host.quit()
    return {}


def _powerdown(session: Session, _: Arguments) -> object:
    _living(session).powerdown()
    return {}


def _watchdog(session: Session, given: Arguments) -> object:
    session.monitor.host.set_watchdog_action(given.action)
    return {}


def _reset(session: Session, _: Arguments) -> object:
    _living(session).reset()
    return {}


COMMANDS = (
    Command(
        "query-status",
        "Returns whether the vCPUs run: `running`, `paused`, or `shutdown` when the machine has "
        "ended and the monitor is about to. With `-action` also `shutdown`, `guest-panicked` and "
        "`watchdog` for what has paused it.",
        _status,
        example=("", '{"running": true, "singlestep": false, "status": "running"}'),
    ),
    Command(
        "stop",
        "Pauses all vCPUs. When the answer comes they stand; STOP comes before it. Nothing happens "
        "when they are paused already.",
        _stop,
        example=("", "{}"),
    ),
    Command(
        "cont",
        "Lets the vCPUs run again; RESUME comes before the answer. Nothing happens when they run.",
        _cont,
        example=("", "{}"),
    ),
    Command(
        "quit",
        "Ends the machine and the monitor; disks are written back first. The answer, then "
        "SHUTDOWN, then the end of the connection.",
        _quit,
        answer_first=True,
        example=("", "{}"),
    ),
    Command(
        "system_powerdown",
        "Presses the power button (ACPI). POWERDOWN follows the answer; SHUTDOWN follows when the "
        "guest has powered off.",
        _powerdown,
        since="v2",
        answer_first=True,
        example=("", "{}"),
    ),
    Command(
        "system_reset",
        "Starts the machine anew, as its reset button would. RESET follows the answer. It is "
        "refused, and the guest runs on, when the host's storage does not complete a disk's "
        "requests within 5 s.",
        _reset,
        since="v2",
        answer_first=True,
        example=("", "{}"),
    ),
    Command(
        "watchdog-set-action",
        "Sets what is done about a guest that does not feed its watchdog, in place of `-action "
        "watchdog=`. WATCHDOG tells when it is.",
        _watchdog,
        Struct(
            Field(
                "action",
                Choice(*WATCHDOGS),
                "`reset` as the guest's own, `shutdown` by the power button, `poweroff`, `pause`, "
                "`inject-nmi`, a line in the log (`debug`), or nothing (`none`)",
            ),
        ),
        since="pyvirt",
        example=('{"action": "pause"}', "{}"),
    ),
)
