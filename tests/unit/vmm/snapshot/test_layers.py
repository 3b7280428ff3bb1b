"""Memory in layers: each page is the newest one's that has it, whatever runs they make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.errors import BackendError, StateError
from pyvirt.state import Fields
from pyvirt.vmm.memory import MIB, GuestMemory
from pyvirt.vmm.snapshot import state_file
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.layers import LAYERS_MAX, Stack, open_layers, pages_bytes
from pyvirt.vmm.snapshot.memory_file import MemoryFile, Writer, open_memory

SIZE = 130 * MIB
PAGE = 4096
PAGES = SIZE // PAGE
SHAPE = {
    "memory": SIZE,
    "vcpus": 1,
    "sockets": 1,
    "dies": 1,
    "cores": 1,
    "threads": 1,
    "pit": False,
    "hotplug": False,
    "acpi": False,
}


def identity(number: int) -> bytes:
    return bytes([number]) * 16


def save(memory: GuestMemory, folder: Path, number: int, parent: Path | None = None) -> None:
    """Write a snapshot's folder; of a machine there is only its shape."""
    own = bytearray(pages_bytes(SIZE)) if parent else None
    writer = Writer(memory, identity(number), own=own)

    def state() -> bytes:
        values = {"snapshot": identity(number).hex(), "machine": SHAPE}
        if own is not None:
            values["parent"] = {"snapshot": identity(number - 1).hex(), "pages": own.hex()}
        return state_file.encode(values)

    Folder(str(folder), str(parent) if parent else "").write(writer.write, state)


def opened(folder: Path, number: int) -> MemoryFile | Stack:
    fields = state_file.read(str(folder / "state"))
    return open_layers(str(folder), fields, SIZE, identity(number))


writes = st.lists(
    st.tuples(st.integers(0, PAGES - 1), st.integers(1, 600), st.integers(0, 3)), max_size=12
)


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(st.lists(writes, min_size=2, max_size=4))
def test_each_is_the_memory_that_was(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[int, int, int]]]
) -> None:
    above = tmp_path_factory.mktemp("layers")
    memory = GuestMemory(SIZE)
    wanted: dict[int, int] = {}
    for number, changes in enumerate(layers):
        for first, count, value in changes:
            for page in range(first, min(first + count, PAGES)):
                start = (page - PAGES) * PAGE + SIZE
                with memory._view[start : start + PAGE] as view:
                    view[:] = bytes([value]) * PAGE
                wanted[page] = value
        save(memory, above / str(number), number, above / str(number - 1) if number else None)
        memory.close()
        content = opened(above / str(number), number)
        memory = GuestMemory(SIZE, content=content)
        content.close()
        for page, value in wanted.items():
            assert memory._view[page * PAGE] == memory._view[page * PAGE + PAGE - 1] == value
    # All at once, and not mapped.
    whole = GuestMemory(SIZE)
    content = opened(above / str(len(layers) - 1), len(layers) - 1)
    content.read(whole)
    content.close()
    assert whole._view == memory._view
    whole.close()
    memory.close()


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Return the newest of more than there may be; each is a link to the same memory."""
    memory = GuestMemory(SIZE)
    save(memory, tmp_path / "0", 0)
    memory.close()
    size = pages_bytes(SIZE)
    for number in range(1, LAYERS_MAX + 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        parent = {"snapshot": identity(number - 1).hex(), "pages": bytes(size).hex()}
        values = {"snapshot": identity(number).hex(), "machine": SHAPE, "parent": parent}
        (folder / "state").write_bytes(state_file.encode(values))
        with open(folder / "memory", "wb") as file:
            file.truncate(SIZE)
            file.seek(SIZE)
            file.write(b"pyvirt-memory %s\n" % identity(number).hex().encode())
        (folder / "parent").symlink_to(f"../{number - 1}")
    return tmp_path


def test_there_is_a_limit(chain: Path) -> None:
    before = os.listdir("/proc/self/fd")
    opened(chain / str(LAYERS_MAX), LAYERS_MAX).close()
    with pytest.raises(StateError, match=rf"more than {LAYERS_MAX} snapshots.*flatten$"):
        opened(chain / str(LAYERS_MAX + 1), LAYERS_MAX + 1)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize(
    ("parent", "words"),
    [
        (None, "parent"),
        ({}, "parent.snapshot: is missing"),
        ({"snapshot": "00"}, "parent.snapshot: has 1 bytes, not 16"),
        ({"snapshot": "00" * 16, "pages": "00"}, "parent.pages: has 1 bytes, not 4160"),
    ],
)
def test_what_says_nothing_of_a_parent(chain: Path, parent: object, words: str) -> None:
    fields = Fields({"parent": parent})
    if parent is None:
        open_layers(str(chain / "1"), fields, SIZE, identity(1)).close()
        return
    with pytest.raises(StateError, match=words):
        open_layers(str(chain / "1"), fields, SIZE, identity(1))


def test_files_that_became_shorter(chain: Path) -> None:
    base, layer = (
        open_memory(str(chain / str(number) / "memory"), SIZE, identity(number))
        for number in (0, 1)
    )
    stack = Stack(base, [(layer, b"\1" + bytes(pages_bytes(SIZE) - 1))])
    os.truncate(chain / "1/memory", 0)
    memory = GuestMemory(SIZE)
    with pytest.raises(BackendError, match=r"1/memory: Input/output error; write the snapshot"):
        stack.read(memory)
    memory.close()
    stack.close()
