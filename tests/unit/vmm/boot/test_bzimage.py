"""bzImage: what its header asks for is done, and an unfit header is refused in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.vmm.boot import bzimage
from pyvirt.vmm.boot.kernel import LINUX64, Kernel, KernelFile
from pyvirt.vmm.memory import GuestMemory

from ...refusal import attempt, refusal
from .images import MIB, PAYLOAD, BzImage, stored

GOOD = BzImage()


def load(data: bytes, memory: GuestMemory) -> Kernel:
    with stored(data) as path, KernelFile("-kernel", path) as file:
        assert bzimage.recognises(file)
        return bzimage.load(file, memory)


def test_payload_lies_at_the_preferred_address(memory: GuestMemory) -> None:
    kernel = load(GOOD.build(), memory)
    assert kernel.protocol == LINUX64
    assert kernel.entry == 16 * MIB + 0x200
    assert kernel.end == 16 * MIB + GOOD.init_size
    assert memory.read(16 * MIB, len(PAYLOAD)) == PAYLOAD
    assert memory.read(16 * MIB + len(PAYLOAD), 64) == bytes(64)


@pytest.mark.parametrize("sects", [0, 1, 4, 27, 255])
def test_payload_is_found_behind_the_setup_sectors(sects: int, memory: GuestMemory) -> None:
    load(replace(GOOD, setup_sects=sects).build(), memory)
    assert memory.read(16 * MIB, len(PAYLOAD)) == PAYLOAD


@pytest.mark.parametrize("jump", [0x62, 0x6A, 0xFF])
def test_header_is_cut_where_its_jump_says(jump: int, memory: GuestMemory) -> None:
    data = replace(GOOD, jump=jump).build()
    assert load(data, memory).header == data[0x1F1 : 0x202 + jump]


def test_limits_come_from_the_header(memory: GuestMemory) -> None:
    kernel = load(replace(GOOD, cmdline_max=1234, initrd_max=0x37FF_FFFF).build(), memory)
    assert (kernel.cmdline_max, kernel.initrd_max) == (1234, 0x37FF_FFFF)


def test_bytes_behind_the_payload_are_not_loaded(memory: GuestMemory) -> None:
    load(GOOD.build() + b"signature", memory)
    assert memory.read(16 * MIB + len(PAYLOAD), 16) == bytes(16)


@pytest.mark.parametrize(
    ("alignment", "address"), [(0x20_0000, 0x20_0000), (0x1000, MIB), (0x100_0000, 0x100_0000)]
)
def test_relocatable_kernel_goes_lower_where_memory_ends(
    alignment: int, address: int, memory: GuestMemory
) -> None:
    image = replace(GOOD, preferred=124 * MIB, alignment=alignment)
    assert load(image.build(), memory).entry == address + 0x200
    assert memory.read(address, len(PAYLOAD)) == PAYLOAD


@pytest.mark.parametrize("change", [{"relocatable": 0}, {"alignment": 0}, {"alignment": 0x30_0000}])
def test_kernel_that_cannot_move_needs_the_memory(
    change: dict[str, Any], memory: GuestMemory
) -> None:
    image = replace(GOOD, preferred=124 * MIB, **change)
    message = refusal(lambda: load(image.build(), memory))
    assert message.endswith("needs memory up to 132 MiB; raise -m")
    larger = GuestMemory(132 * MIB)
    assert load(image.build(), larger).entry == 124 * MIB + 0x200
    larger.close()


def test_preferred_address_is_not_below_one_mib(memory: GuestMemory) -> None:
    image = replace(GOOD, preferred=MIB - 1)
    assert load(image.build(), memory).entry == 2 * MIB + 0x200
    message = refusal(lambda: load(replace(image, relocatable=0).build(), memory))
    assert message.endswith("header says address 0xfffff: damaged; copy it again")


def test_kernel_that_fits_nowhere(memory: GuestMemory) -> None:
    image = replace(GOOD, init_size=126 * MIB + 1)
    message = refusal(lambda: load(image.build(), memory))
    assert message.endswith("needs memory up to 143 MiB; raise -m")
    assert load(replace(GOOD, init_size=126 * MIB).build(), memory).end == 128 * MIB


def test_kernel_fits_exactly(memory: GuestMemory) -> None:
    image = replace(GOOD, init_size=112 * MIB, relocatable=0)
    assert load(image.build(), memory).end == 128 * MIB
    image = replace(image, init_size=112 * MIB + 1)
    assert "needs memory up to 129 MiB" in refusal(lambda: load(image.build(), memory))


def test_address_without_memory_anywhere_is_no_reason_to_raise_m(memory: GuestMemory) -> None:
    image = replace(GOOD, preferred=1 << 63, relocatable=0)
    message = refusal(lambda: load(image.build(), memory))
    assert "raise -m" not in message
    assert "where there is none" in message


@pytest.mark.parametrize(
    ("version", "name"), [(0x020B, "2.11"), (0x0200, "2.00"), (0x0000, "0.00"), (0x01FF, "1.255")]
)
def test_old_protocol(version: int, name: str, memory: GuestMemory) -> None:
    message = refusal(lambda: load(replace(GOOD, version=version).build(), memory))
    assert f"boot protocol {name}, 2.12 is the oldest" in message
    assert message.endswith("use Linux 3.8 or later")


def test_oldest_protocol_accepted(memory: GuestMemory) -> None:
    assert load(replace(GOOD, version=0x020C).build(), memory).entry == 16 * MIB + 0x200


@pytest.mark.parametrize("flags", [0, 0b1110, 0xFFFE])
def test_32_bit_kernel(flags: int, memory: GuestMemory) -> None:
    message = refusal(lambda: load(replace(GOOD, xloadflags=flags).build(), memory))
    assert message.endswith("a 32-bit kernel; build it with CONFIG_64BIT")


@pytest.mark.parametrize("size", [0x206, 0x207, 0x236, 0x267])
def test_truncated_in_the_header(size: int, memory: GuestMemory) -> None:
    message = refusal(lambda: load(GOOD.build()[:size], memory))
    assert f"truncated: {size} bytes where its header says 616; copy it again" in message


@pytest.mark.parametrize("size", [0x268, 0x7FF, 0x800, 0x801, 0x800 + len(PAYLOAD) - 1])
def test_truncated_in_the_payload(size: int, memory: GuestMemory) -> None:
    data = GOOD.build()
    message = refusal(lambda: load(data[:size], memory))
    assert f"truncated: {size} bytes where its header says {len(data)}; copy it again" in message


@pytest.mark.parametrize("size", [0, 1, 0x1FE, 0x200, 0x202, 0x205])
def test_file_too_short_to_tell_is_not_recognised(size: int) -> None:
    with stored(GOOD.build()[:size]) as path, KernelFile("-kernel", path) as file:
        assert not bzimage.recognises(file)


@pytest.mark.parametrize("change", [{"boot_flag": 0xAA54}, {"magic": b"HdrX"}])
def test_either_magic_number_is_needed(change: dict[str, Any]) -> None:
    with (
        stored(replace(GOOD, **change).build()) as path,
        KernelFile("-kernel", path) as file,
    ):
        assert not bzimage.recognises(file)


@pytest.mark.parametrize("change", [{"init_size": len(PAYLOAD) - 1}, {"syssize": 0}])
def test_sizes_that_contradict_each_other(change: dict[str, Any], memory: GuestMemory) -> None:
    message = refusal(lambda: load(replace(GOOD, **change).build(), memory))
    assert message.endswith("damaged; copy it again")


headers = st.builds(
    BzImage,
    payload=st.integers(0, 300).map(lambda units: PAYLOAD[: 16 * units]),
    setup_sects=st.integers(0, 255),
    syssize=st.none() | st.integers(0, 2**32 - 1),
    jump=st.integers(0, 255),
    version=st.just(0x020C) | st.integers(0, 2**16 - 1),
    initrd_max=st.integers(0, 2**32 - 1),
    alignment=st.sampled_from([0, 0x1000, 0x20_0000]) | st.integers(0, 2**32 - 1),
    relocatable=st.integers(0, 255),
    xloadflags=st.just(1) | st.integers(0, 2**16 - 1),
    cmdline_max=st.integers(0, 2**32 - 1),
    preferred=st.integers(0, 256).map(lambda n: n * MIB) | st.integers(0, 2**64 - 1),
    init_size=st.integers(0, 128 * MIB) | st.integers(0, 2**32 - 1),
)


@given(headers, st.integers(0, 64))
def test_any_header_is_loaded_whole_or_refused(image: BzImage, cut: int) -> None:
    data = image.build()
    data = data[: max(len(data) - cut, 0x206)]
    memory = GuestMemory(128 * MIB)
    kernel = attempt(lambda: load(data, memory))
    if kernel is not None:
        start = kernel.entry - 0x200
        assert start >= MIB
        assert kernel.end == start + image.init_size <= 128 * MIB
        assert memory.read(start, 16) == image.payload[:16]
    memory.close()
