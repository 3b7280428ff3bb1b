"""The monitors that guests are run under, pyvirt first; one file each."""

from __future__ import annotations

from ..part import Turn
from .cloud_hypervisor import CloudHypervisor
from .firecracker import Firecracker
from .kvmtool import Kvmtool
from .peer import AbsentError, Peer
from .pyvirt import Pyvirt
from .qemu import Qemu
from .stratovirt import Stratovirt

PYVIRT, QEMU = "pyvirt", "QEMU microvm"
ALL: tuple[Peer, ...] = (
    Pyvirt(),
    Qemu(),
    Kvmtool(),
    Firecracker(),
    Stratovirt(),
    CloudHypervisor(),
)


def present(turn: Turn) -> list[Peer]:
    """Return whom a round has; who was named and is not there is said in its `absent`."""
    found = []
    for peer in ALL:
        try:
            if peer.program():
                found.append(peer)
        except AbsentError as error:
            turn.absent[peer.name] = str(error)
    return found
