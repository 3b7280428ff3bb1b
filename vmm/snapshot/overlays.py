"""What disks' overlays have, in a snapshot: the state's section of them, and a folder's files.

The section `layers` of a state has an entry for each disk whose guest has written to its overlay:
the slot, and in how many layers that is. Those of a folder are one each, the file `overlay-SLOT`,
which ends with the snapshot's number (native/block/overlay.h).
"""

from __future__ import annotations

import os

from ... import files
from ...devices import overlay
from ...errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...state import Fields

_SLOTS_MAX = 256


def name(slot: int) -> str:
    """Return that of the file in a folder."""
    return f"overlay-{slot}"


def read(fields: Fields, most: int = overlay.LAYERS_MAX) -> dict[int, int]:
    """Return how many layers a state tells of, by slots; StateError. A disk has `most` at most."""
    found: dict[int, int] = {}
    for one in fields.items("layers", _SLOTS_MAX) if fields.has("layers") else ():
        slot = one.integer("slot", 0, _SLOTS_MAX - 1)
        count = one.integer("count", 1, most)
        if slot in found:
            raise one.wrong("slot", f"{slot} comes twice")
        found[slot] = count
    return found


def sort(fields: Fields, layers: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return descriptors of layers, which are in the state's order, by slots; StateError.

    Whether they are layers is seen when a disk has them.
    """
    found, at = dict[int, tuple[int, ...]](), 0
    for slot, count in read(fields).items():
        found[slot] = tuple(layers[at : at + count])
        at += count
    if at != len(layers):
        raise StateError(f"state: tells of {at} layers of disks, and {len(layers)} came with it")
    return found


def open_files(path: str, fields: Fields, identity: bytes) -> dict[int, tuple[int, ...]]:
    """Open the layers of a folder to be read, by slots; StateError. They are the caller's."""
    found: dict[int, tuple[int, ...]] = {}
    try:
        for slot in read(fields, 1):
            found[slot] = (_open(os.path.join(path, name(slot)), identity),)
    except BaseException:
        for layers in found.values():
            os.close(layers[0])
        raise
    return found


def _open(path: str, identity: bytes) -> int:
    try:
        fd = files.open_regular(path, os.O_RDONLY)
    except OSError as error:
        raise StateError(
            f"{path}: {error.strerror}; keep the files of a snapshot together"
        ) from None
    try:
        end = os.fstat(fd).st_size
        mark = os.pread(fd, overlay.MARK_BYTES, max(0, end - overlay.MARK_BYTES))
    except OSError as error:
        os.close(fd)
        raise StateError(f"{path}: {error.strerror}; write the snapshot again") from None
    if mark != identity:
        os.close(fd)
        raise StateError(
            f"{path}: is of another snapshot than the state, or was cut off; keep them together"
        )
    return fd
