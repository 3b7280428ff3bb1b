"""The state of a snapshot: fields as JSON, behind a line with a checksum that fits.

Whatever they are, each part of a machine takes them, or says in a line what is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from pyvirt.devices.plug import PlugPort
from pyvirt.devices.power import EventDevice
from pyvirt.devices.testdev import SlowMemory
from pyvirt.errors import StateError
from pyvirt.vmm.snapshot import chips, clock, overlays, processor, shape, state_file

from .input import check_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvirt.state import Fields


def read_vcpus(fields: Fields) -> None:
    for one in fields.items("vcpus", 254):
        processor.check(processor.read(one), processor.read(one))


READERS: tuple[Callable[[Fields], object], ...] = (
    lambda fields: shape.read(fields.section("machine")),
    lambda fields: shape.vacancies(fields.items("devices", 64)),
    lambda fields: chips.State(fields.section("chips")),
    lambda fields: clock.State(fields.section("clock")),
    read_vcpus,
    overlays.read,
    lambda fields: PlugPort(lambda _: None, lambda: None, most=64).restore(fields.section("plug")),
    lambda fields: EventDevice(-1).restore(fields.section("events")),
    lambda fields: SlowMemory(4).restore(fields.section("register")),
    lambda fields: fields.done(),
)


def fuzz(data: bytes) -> None:
    head = b"pyvirt-state 3 %d" % len(data)
    checksum = hashlib.sha256(head + b"\n" + data).hexdigest().encode()
    try:
        fields = state_file.decode(b"%s %s\n%s" % (head, checksum, data))
    except StateError as error:
        check_line(error)
        return
    for read in READERS:
        with contextlib.suppress(StateError):
            read(fields)
