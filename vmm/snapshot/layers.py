"""Snapshots that go on from others: a layer has the pages that were written to since, no more.

A layer's state has a section `parent`: the number of the snapshot that the machine was restored
from, and a bit for each page of memory that is the layer's own (the first page's is the lowest of
the first byte). Its folder has a link of that name to the folder of that snapshot, which may be a
layer too. In its file of memory, pages that are not its own are holes, and so are those of zeroes
that are.
"""

from __future__ import annotations

import os

from ...errors import BackendError, ConfigError, PyvirtError, StateError
from ...native import ffi, lib
from . import folder, shape, state_file
from .memory_file import open_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...state import Fields
    from ..machine import Machine
    from ..memory import GuestMemory
    from .memory_file import MemoryFile

IDENTITY_BYTES = 16
LAYERS_MAX = 32  # each has a file that is open until all are mapped
# Pieces that the layers' pages are mapped in, at most, of the 65530 that a process may have
# (vm.max_map_count); shorter runs of pages are read.
_MAPS_MAX = 4096
_PAGE, _HUGE_PAGE = 4096, 2 << 20


class Origin:
    """The snapshot that a machine's memory is a private mapping of."""

    __slots__ = ("identity", "path")

    def __init__(self, path: str, identity: bytes) -> None:
        self.path = path  # absolute
        self.identity = identity

    def save(self, own: bytearray) -> dict[str, object]:
        """Return the section `parent` of the state of one that goes on from it."""
        return {"snapshot": self.identity.hex(), "pages": own.hex()}

    def check(self) -> None:
        """Refuse to name it as a parent where it is no more; BackendError."""
        try:
            fields = state_file.read(os.path.join(self.path, folder.STATE))
            is_there = fields.data("snapshot", IDENTITY_BYTES) == self.identity
        except StateError:
            is_there = False
        if not is_there:
            raise BackendError(
                f"snapshot: the machine was restored from {self.path}, and that is there no more; "
                "write all of it, without incremental"
            )


def origin(machine: Machine) -> Origin:
    """Return what an incremental snapshot of a machine goes on from; PyvirtError."""
    assert machine.memory is not None
    found: Origin | None = getattr(machine.config.content, "origin", None)
    if found is None or not machine.memory.mapped:
        raise PyvirtError(
            "snapshot: incremental is what has changed since the snapshot that a machine was "
            "restored from, with mapped=on, and this one has no memory of any; write all of it, "
            "without incremental"
        )
    found.check()
    return found


def pages_bytes(size: int) -> int:
    """Return how many bytes have a bit for each page of `size` bytes of memory."""
    return size // _PAGE // 8


class Stack:
    """The memory of a layer and of all that it goes on from; owns their files until `close`."""

    __slots__ = ("_base", "_layers")

    def __init__(self, base: MemoryFile, layers: Sequence[tuple[MemoryFile, bytes]]) -> None:
        """`layers` are files, each with its own pages, from the oldest on."""
        self._base = base
        # Of each only what no newer one has.
        self._layers: list[tuple[MemoryFile, bytes]] = []
        above = 0
        for file, pages in reversed(layers):
            own = int.from_bytes(pages, "little")
            self._layers.insert(0, (file, (own & ~above).to_bytes(len(pages), "little")))
            above |= own

    def map(self, at: int) -> list[tuple[int, int]]:
        """Map it at an address of this process, over memory that is all zeroes; ConfigError.

        Return the parts that are not zeroes still, as MemoryFile does.
        """
        parts = list(self._base.map(at))
        maps = _MAPS_MAX // (len(self._layers) or 1)
        for file, pages in self._layers:
            result = self._put(file, pages, at, maps)
            if result < 0:
                raise ConfigError(
                    f"{file.name}: cannot be mapped: {os.strerror(-result)}; give mapped=off"
                )
            parts += _extents(pages)
        return _merged(parts)

    def read(self, memory: GuestMemory) -> None:
        """Read it into memory that is all zeroes; BackendError."""
        self._base.read(memory)
        for file, pages in self._layers:
            result = self._put(file, pages, memory.base, 0)
            if result < 0:
                raise BackendError(f"{file.name}: {os.strerror(-result)}; write the snapshot again")

    @staticmethod
    def _put(file: MemoryFile, pages: bytes, at: int, maps: int) -> int:
        size = len(pages) * 8 * _PAGE
        return int(lib.pv_memory_put(ffi.cast("void *", at), size, file.fd, pages, maps))

    def close(self) -> None:
        """Close the files; a mapping stays."""
        self._base.close()
        for file, _ in self._layers:
            file.close()


def _extents(pages: bytes) -> list[tuple[int, int]]:
    """Return the huge pages of which some pages' bits are set."""
    step, size = _HUGE_PAGE // _PAGE // 8, len(pages) * 8 * _PAGE
    none = bytes(step)
    return [
        (at * 8 * _PAGE, min(at * 8 * _PAGE + _HUGE_PAGE, size))
        for at in range(0, len(pages), step)
        if not none.startswith(pages[at : at + step])
    ]


def _merged(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(parts):
        if found and start <= found[-1][1]:
            before = found.pop()
            found.append((before[0], max(before[1], end)))
        else:
            found.append((start, end))
    return found


def open_layers(path: str, fields: Fields, size: int, identity: bytes) -> MemoryFile | Stack:
    """Open the memory that goes with the state of a folder, `size` bytes; StateError."""
    opened: list[MemoryFile] = []
    layers: list[tuple[MemoryFile, bytes]] = []
    try:
        while True:
            file = open_memory(os.path.join(path, folder.MEMORY), size, identity)
            opened.append(file)
            parent = fields.optional("parent") if fields.has("parent") else None
            if parent is None:
                break
            identity = parent.data("snapshot", IDENTITY_BYTES)
            layers.insert(0, (file, parent.data("pages", pages_bytes(size))))
            if len(layers) > LAYERS_MAX:
                raise StateError(
                    f"{path}: more than {LAYERS_MAX} snapshots, each of which goes on from the "
                    "next; make one of some: pyvirt snapshot flatten"
                )
            path = os.path.join(path, folder.PARENT)
            fields = _read_parent(path, size, identity)
        return Stack(file, layers) if layers else file
    except BaseException:
        for file in opened:
            file.close()
        raise


def _read_parent(path: str, size: int, identity: bytes) -> Fields:
    """Return the state of a snapshot that another one goes on from; StateError."""
    mend = f"let {path} be a link to the snapshot that it goes on from: ln -sfn DIR {path}"
    try:
        fields = state_file.read(os.path.join(path, folder.STATE))
        found = fields.data("snapshot", IDENTITY_BYTES)
        there = shape.read(fields.section("machine")).memory
    except StateError as error:
        raise StateError(f"{path}: {_reason(str(error), path)}; {mend}") from None
    if found != identity or there != size:
        raise StateError(f"{path}: is another snapshot; {mend}")
    return fields


def _reason(text: str, path: str) -> str:
    """Return what is wrong with a state, less its name and the mend of a folder of its own."""
    for name in (os.path.join(path, folder.STATE), path):
        text = text.removeprefix(f"{name}: ")
    return text.partition("; ")[0]
