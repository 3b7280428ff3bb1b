"""Looking guest-physical addresses up in C: never outside a region, whatever the numbers."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.native import ffi, lib

REGIONS_MAX = 16
FILES_MAX = 130
TOP = 1 << 64


@pytest.fixture
def memory() -> Any:
    """Return an empty struct pv_memory."""
    out = ffi.new("struct pv_memory **")
    assert lib.pv_memory_new(out) == 0
    return ffi.gc(out[0], lib.pv_memory_free)


def host(address: int) -> Any:
    """Return a pointer that is only ever compared."""
    return ffi.cast("void *", address)


def at(memory: Any, address: int, length: int) -> int:
    """Return the host address, 0 for none."""
    return int(ffi.cast("uintptr_t", lib.pv_memory_at(memory, address, length)))


@pytest.mark.parametrize(
    ("address", "size", "mapped"),
    [(0, 0, 1), (TOP - 1, 2, 1), (0x1000, TOP - 1, 1), (TOP - 0x1000, 0x1001, 1), (0, 1, 0)],
)
def test_refuses_what_is_no_region(memory: Any, address: int, size: int, mapped: int) -> None:
    assert lib.pv_memory_add(memory, address, size, host(mapped)) == -errno.EINVAL


@pytest.mark.parametrize(
    ("address", "size"), [(0x1000, 0x1000), (0xFFF, 2), (0x1FFF, 1), (0x1800, 1), (0, TOP - 1)]
)
def test_refuses_overlap(memory: Any, address: int, size: int) -> None:
    assert lib.pv_memory_add(memory, 0x1000, 0x1000, host(1 << 32)) == 0
    assert lib.pv_memory_add(memory, address, size, host(1 << 33)) == -errno.EINVAL
    assert lib.pv_memory_add(memory, 0x2000, 1, host(1 << 33)) == 0
    assert lib.pv_memory_add(memory, 0, 0x1000, host(1 << 34)) == 0


def test_takes_16_regions(memory: Any) -> None:
    for index in range(REGIONS_MAX):
        assert lib.pv_memory_add(memory, index << 12, 0x1000, host((index + 1) << 20)) == 0
    assert lib.pv_memory_add(memory, TOP - 1, 1, host(1)) == -errno.ENOSPC
    assert at(memory, 0xFFFF, 1) == (16 << 20) + 0xFFF


def test_the_last_bytes_of_the_address_space(memory: Any) -> None:
    assert lib.pv_memory_add(memory, TOP - 0x1000, 0x1000, host(1 << 32)) == 0
    assert at(memory, TOP - 1, 1) == (1 << 32) + 0xFFF
    assert at(memory, TOP - 1, 2) == 0
    assert at(memory, TOP - 0x1000, 0x1000) == 1 << 32
    assert at(memory, 0, 1) == 0


def test_nothing_is_nowhere(memory: Any) -> None:
    assert lib.pv_memory_add(memory, 0, 0x1000, host(1 << 32)) == 0
    assert at(memory, 0, 0) == 0


def test_regions_can_be_listed(memory: Any) -> None:
    given = [(0x1000, 0x1000, 1 << 32), (TOP - 0x1000, 0x1000, 1 << 33)]
    for address, size, mapped in given:
        assert lib.pv_memory_add(memory, address, size, host(mapped)) == 0
    words, where = ffi.new("uint64_t[2]"), ffi.new("void **")
    listed: list[tuple[int, int, int]] = []
    while lib.pv_memory_region(memory, len(listed), words, words + 1, where) == 0:
        listed.append((words[0], words[1], int(ffi.cast("uintptr_t", where[0]))))
    assert listed == given
    assert lib.pv_memory_region(memory, 2, words, words + 1, where) == -errno.ENOENT


def share(memory: Any, address: int, size: int, offset: int = 0, fd: int = 3) -> int:
    return int(lib.pv_memory_share(memory, ffi.new("struct pv_memory_file *",
               {"address": address, "size": size, "offset": offset, "fd": fd})))  # fmt: skip


def test_what_is_shared_lies_in_one_region(memory: Any) -> None:
    assert lib.pv_memory_add(memory, 0x1000, 0x1000, host(1 << 32)) == 0
    assert lib.pv_memory_add(memory, 0x2000, 0x1000, host(1 << 33)) == 0
    wrong = [(0xFFF, 1), (0x1FFF, 2), (0x3000, 1), (0x1000, 0), (0x2000, 0x1001), (TOP - 1, 2)]
    for address, size in wrong:
        assert share(memory, address, size) == -errno.EINVAL
    assert share(memory, 0x1000, 0x1000, 7, 5) == share(memory, 0x2800, 0x800, 9, 6) == 0
    found = ffi.new("struct pv_memory_file *")
    listed: list[tuple[int, ...]] = []
    while lib.pv_memory_file(memory, len(listed), found) == 0:
        listed.append((found.address, found.size, found.offset, found.fd))
    assert listed == [(0x1000, 0x1000, 7, 5), (0x2800, 0x800, 9, 6)]
    assert lib.pv_memory_file(memory, 2, found) == -errno.ENOENT


def test_takes_130_shared_pieces(memory: Any) -> None:
    assert lib.pv_memory_add(memory, 0, 0x1000, host(1 << 32)) == 0
    assert {share(memory, 0, 0x1000) for _ in range(FILES_MAX)} == {0}
    assert share(memory, 0, 0x1000) == -errno.ENOSPC


NUMBERS = st.one_of(
    st.integers(0, TOP - 1),
    st.builds(
        lambda base, offset: (base + offset) % TOP,
        st.sampled_from([0, 0x3000, 0x5000, 1 << 32, (1 << 32) + 0x2000, TOP - 0x1000]),
        st.integers(-3, 3),
    ),
)


@given(NUMBERS, NUMBERS)
def test_agrees_with_whole_numbers(address: int, length: int) -> None:
    out = ffi.new("struct pv_memory **")
    assert lib.pv_memory_new(out) == 0
    memory = ffi.gc(out[0], lib.pv_memory_free)
    regions = {0x3000: 0x2000, 1 << 32: 0x2000, TOP - 0x1000: 0x1000}
    expected = 0
    for index, (start, size) in enumerate(regions.items()):
        base = (index + 1) << 40
        assert lib.pv_memory_add(memory, start, size, host(base)) == 0
        if length and start <= address and address + length <= start + size:
            expected = base + address - start
    assert at(memory, address, length) == expected
