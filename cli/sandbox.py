"""What contains a machine that `pyvirt run` runs: the lists of native/sandbox/table.py."""

from __future__ import annotations

from ..errors import ConfigError
from ..native import check, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..vmm.machine import Machine

_MODES = {"off": lib.PV_SANDBOX_OFF, "on": lib.PV_SANDBOX_ON, "log": lib.PV_SANDBOX_LOG}
# Shared objects of the standard library, which cannot be loaded any more in it, and which monitors
# have a use for: requests, devices and chardevs that are plugged.
_LOADED = ("_json", "resource", "termios")


def arm(mode: str) -> None:
    """Have threads that are started from now on take their lists; ConfigError.

    After the report on crashes is there, which tells of a call that is on none.
    """
    result = lib.pv_sandbox_arm(_MODES[mode])
    if result < 0:
        raise ConfigError(
            f"-sandbox {mode}: this host's kernel has no seccomp filters; give -sandbox off, or "
            "have it built with CONFIG_SECCOMP_FILTER"
        )


def enter(machine: Machine, *, is_monitored: bool) -> None:
    """Let the calling thread, and those that it starts, do no more than a running machine needs.

    All that needs more is set up; no vCPU's thread is there yet. PyvirtError.
    """
    from ..vmm.helpers import Helpers

    for name in _LOADED if is_monitored else ():
        __import__(name)
    check(lib.pv_sandbox_enter(lib.PV_SANDBOX_CONTROL), "-sandbox")
    machine.delegate(Helpers().perform)
