"""How a VM ended, and the errors that say so.

VerdictError               a GuestError; carries `verdict` and `evidence`
+-- GuestPanickedError     panicked
+-- GuestOopsedError       oopsed
+-- GuestHungError         hung
+-- TripleFaultError       triple-fault
+-- BootFailedError        boot-failed
+-- MonitorDiedError       monitor-died
|   +-- LabLostError       the nested lab, or the fork server, is gone with all its VMs
+-- GuestTimeoutError      timeout: a verb took too long in a guest that is alive
+-- GuestEndedError        failed: the guest powered off or rebooted by itself
+-- CommandFailedError     failed: a command's status is not what the verb wants
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ...errors import GuestError
from ..judge.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..judge.splat import Splat


class End(NamedTuple):
    """Why a VM is of no use any more: the first cause. PASSED: it ended as guests do.

    `expected` says that a verb asked for it, `lost` that the server of its monitor is gone,
    `refused` that the monitor does not take the options that it was given.
    """

    verdict: Verdict
    reason: str
    splat: Splat | None = None
    expected: bool = False
    lost: bool = False
    refused: bool = False


class VerdictError(GuestError):
    """A verb cannot do what it should, for the VM has ended or the guest does not comply."""

    verdict = Verdict.FAILED

    def __init__(self, text: str, collect: Callable[[], Mapping[str, str]] = dict) -> None:
        """`collect` returns the evidence: texts by the titles of their sections."""
        self._collect = collect
        super().__init__(text)

    @cached_property
    def evidence(self) -> Mapping[str, str]:
        """Return what is known of the VM, collected when it is first asked for."""
        return self._collect()


class GuestPanickedError(VerdictError):
    """The guest's kernel gave up."""

    verdict = Verdict.PANICKED


class GuestOopsedError(VerdictError):
    """The guest's kernel killed what it was running."""

    verdict = Verdict.OOPSED


class GuestHungError(VerdictError):
    """The guest makes no progress."""

    verdict = Verdict.HUNG


class TripleFaultError(VerdictError):
    """The guest's processor shut down."""

    verdict = Verdict.TRIPLE_FAULT


class BootFailedError(VerdictError):
    """The guest never came to where its agent answers."""

    verdict = Verdict.BOOT_FAILED


class MonitorDiedError(VerdictError):
    """The monitor ended, and not because of the guest."""

    verdict = Verdict.MONITOR_DIED


class LabLostError(MonitorDiedError):
    """Where the VMs ran is gone; the next VM gets a new one."""


class GuestTimeoutError(VerdictError):
    """A verb took too long."""

    verdict = Verdict.TIMEOUT


class GuestEndedError(VerdictError):
    """The guest ended by itself, in good order, when it was still needed."""


class CommandFailedError(VerdictError):
    """A command in the guest ended otherwise than the verb wants."""


_ERRORS: dict[Verdict, type[VerdictError]] = {
    error.verdict: error
    for error in (
        GuestPanickedError,
        GuestOopsedError,
        GuestHungError,
        TripleFaultError,
        BootFailedError,
        MonitorDiedError,
        GuestTimeoutError,
    )
}


def error_of(end: End, collect: Callable[[], Mapping[str, str]]) -> VerdictError:
    """Return the error for a verb on a VM that has ended so."""
    kind = LabLostError if end.lost else _ERRORS.get(end.verdict, GuestEndedError)
    return kind(end.reason, collect)
