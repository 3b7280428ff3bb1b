"""Whether this processor can stand in for the one that a guest has seen, by CPUID."""

from __future__ import annotations

from ...errors import StateError
from ..cpu_model import FEATURES
from ..cpuid import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...state import Fields

_ENTRIES_MAX = 256
_U32_MAX = (1 << 32) - 1
_REGISTERS = ("eax", "ebx", "ecx", "edx")
# Leaves of features, each with the registers that hold one in each bit.
_FEATURE_LEAVES = {
    (0x1, 0): ("ecx", "edx"),
    (0x7, 0): ("ebx", "ecx", "edx"),
    (0x7, 1): ("eax", "ebx", "ecx", "edx"),
    (0x7, 2): ("edx",),
    (0xD, 0): ("eax", "edx"),
    (0xD, 1): ("eax",),
    (0x4000_0001, 0): ("eax",),
    (0x8000_0001, 0): ("ecx", "edx"),
    (0x8000_0008, 0): ("ebx",),
    (0x8000_000A, 0): ("edx",),
    (0x8000_0021, 0): ("eax",),
}
_NAMES = {place: name for name, place in FEATURES.items()}


def read(fields: Fields) -> list[Entry]:
    """Return the CPUID of a saved vCPU; StateError."""
    found = []
    for one in fields.items("cpuid", _ENTRIES_MAX):
        names = ("function", "index", "flags", *_REGISTERS)
        found.append(Entry(*(one.integer(name, 0, _U32_MAX) for name in names)))
    return found


def check(saved: Sequence[Entry], here: Sequence[Entry]) -> None:
    """Refuse a processor of another vendor, or that lacks what the guest may use; StateError."""
    theirs, ours = _vendor(saved), _vendor(here)
    if theirs != ours:
        raise StateError(
            f"state: the guest's processor is {theirs}, and this one {ours}; restore it on a host "
            "of the same vendor"
        )
    by_leaf = {(entry.function, entry.index): entry for entry in here}
    for entry in saved:
        leaf = (entry.function, entry.index)
        for register in _FEATURE_LEAVES.get(leaf, ()):
            there = getattr(by_leaf[leaf], register) if leaf in by_leaf else 0
            lacking = getattr(entry, register) & ~there
            if lacking:
                raise StateError(
                    f"state: the guest's processor has {_feature(leaf, register, lacking)}, which "
                    "this one lacks, or -cpu takes away; restore it on a host that has it"
                )


def _feature(leaf: tuple[int, int], register: str, bits: int) -> str:
    """Return the name of the lowest of the bits."""
    bit = (bits & -bits).bit_length() - 1
    place = f"bit {bit} of CPUID {leaf[0]:#x}.{leaf[1]} {register}"
    return _NAMES.get((*leaf, register, bit), place)


def _vendor(entries: Sequence[Entry]) -> str:
    for entry in entries:
        if entry.function == 0:
            words = (entry.ebx, entry.edx, entry.ecx)
            name = b"".join(word.to_bytes(4, "little") for word in words)
            return "".join(chr(c) if 32 <= c < 127 else "?" for c in name)
    return "of no vendor"
