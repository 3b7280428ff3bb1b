"""What moves the packets of a NIC in a slot when another process does (vhost_user/plugged_nic.py).

Imported only where there is one.
"""

from __future__ import annotations

from ...native import ffi, lib
from .served import LentQueues

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .device import Activation


class LentPair(LentQueues):
    """The first two queues' service; the control queue's is the slot's."""

    __slots__ = ()
    lent: Any

    def lend(self, handle: Any, activation: Activation, *, up: bool) -> None:
        """Give the queues to the back end, and whether there is a link.

        `handle` is the struct pv_net, which knows what offloads its driver wants. BackendError, and
        the queues can be served by another.
        """
        state = ffi.new("struct pv_net_state *")
        lib.pv_net_save(handle, state)
        self.lent.prepare(offloads=state.mode.offloads, up=up)
        self.activate(activation)

    def set_link(self, *, up: bool) -> None:
        """Let packets through, or none; BackendError."""
        self.lent.set_link(up=up)

    def news(self) -> str:
        """Return what has become of the back end."""
        return str(self.lent.news())

    def stats(self, commands: int) -> dict[str, int]:
        """Return what can be known, with the commands on the control queue."""
        return {**self.lent.stats(), "commands": commands}
