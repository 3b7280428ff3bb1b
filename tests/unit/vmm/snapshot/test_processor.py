"""Whom a guest's processor is refused: by vendor, and by the name of what is missing."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.errors import StateError
from pyvirt.state import Fields
from pyvirt.vmm.cpuid import Entry
from pyvirt.vmm.snapshot import processor

SSE2, SMEP, AVX2 = 1 << 26, 1 << 7, 1 << 5
WORDS = st.integers(0, (1 << 32) - 1)


def cpu(vendor: str = "GenuineIntel", *, x1_edx: int = SSE2, x7_ebx: int = SMEP) -> list[Entry]:
    name = vendor.encode()
    ebx, edx, ecx = (int.from_bytes(name[at : at + 4], "little") for at in (0, 4, 8))
    return [
        Entry(0, eax=7, ebx=ebx, ecx=ecx, edx=edx),
        Entry(1, eax=0x1234, ebx=0x5678, edx=x1_edx),
        Entry(7, ebx=x7_ebx),
    ]


def refusal(saved: list[Entry], here: list[Entry]) -> str:
    with pytest.raises(StateError) as info:
        processor.check(saved, here)
    assert "\n" not in str(info.value)
    return str(info.value)


def test_the_same_or_a_better_one_will_do() -> None:
    processor.check(cpu(), cpu())
    processor.check(cpu(), cpu(x7_ebx=SMEP | AVX2))


def test_what_only_identifies_may_differ() -> None:
    here = cpu()
    here[1].eax, here[1].ebx = 1, 2
    processor.check(cpu(), here)


def test_another_vendor_is_named() -> None:
    message = refusal(cpu(), cpu("AuthenticAMD"))
    assert "is GenuineIntel, and this one AuthenticAMD" in message
    assert "is Genuine?ntel" in refusal(cpu("Genuine\nntel"), cpu())
    assert "is of no vendor" in refusal([], cpu())


def test_what_is_missing_is_named() -> None:
    assert " has avx2, which this one lacks" in refusal(cpu(x7_ebx=SMEP | AVX2), cpu())
    assert " has sse2, " in refusal(cpu(), cpu(x1_edx=0))
    assert " has smep, " in refusal(cpu(), cpu()[:2])
    assert "bit 10 of CPUID 0x1.0 edx" in refusal(cpu(x1_edx=1 << 10), cpu())


@given(st.lists(st.builds(Entry, st.integers(0, 7), st.integers(0, 2), WORDS, WORDS, WORDS, WORDS)))
def test_no_processor_does_more_than_be_refused(saved: list[Entry]) -> None:
    with contextlib.suppress(StateError):
        processor.check(saved, cpu())


def test_it_is_read_as_it_is_saved() -> None:
    rows = [{name: getattr(entry, name) for name in Entry.__slots__} for entry in cpu()]
    assert [repr(entry) for entry in processor.read(Fields({"cpuid": rows}))] == [
        repr(entry) for entry in cpu()
    ]
    rows[1]["edx"] = 1 << 32
    with pytest.raises(StateError, match=r"cpuid\.1\.edx"):
        processor.read(Fields({"cpuid": rows}))
