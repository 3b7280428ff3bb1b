"""CPUID of every vCPU: ids that differ, widths that cover the count, features left alone."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyvirt.vmm import cpuid, layout
from pyvirt.vmm.topology import Topology

Row = tuple[int, int, int, int, int, int, int]
Key = tuple[int, int]

# What KVM supports on a Xeon (Sapphire Rapids), the empty leaves left out.
INTEL: list[Row] = [
    (0x0, 0, 0, 0x1F, 0x756E6547, 0x6C65746E, 0x49656E69),
    (0x1, 0, 0, 0x000A0671, 0x01020800, 0x8120A004, 0x0FABFBFF),
    (0x2, 0, 0, 0x00FEFF01, 0x000000F0, 0, 0),
    (0x4, 0, 1, 0x04000121, 0x02C0003F, 0x0000003F, 0),
    (0x4, 1, 1, 0x04000122, 0x03C0003F, 0x0000003F, 0),
    (0x4, 2, 1, 0x04000143, 0x03C0003F, 0x000007FF, 0),
    (0x4, 3, 1, 0x04004163, 0x03C0003F, 0x00077FFF, 0),
    (0x4, 4, 1, 0, 0, 0, 0),
    (0x6, 0, 0, 0, 0, 0, 0),
    (0x7, 0, 1, 0x2, 0x01802852, 0x1A010104, 0x20010000),
    (0x7, 1, 1, 0x1C00, 0, 0, 0x4000),
    (0xA, 0, 0, 0x08300802, 0, 0, 0x8603),
    (0xB, 0, 1, 0, 0, 0, 1),
    (0xD, 0, 1, 0xE7, 0xA80, 0xA80, 0),
    (0x15, 0, 0, 0, 0, 0, 0),
    (0x16, 0, 0, 0, 0, 0, 0),
    (0x1F, 0, 1, 0, 0, 0, 1),
    (0x80000000, 0, 0, 0x80000008, 0, 0, 0),
    (0x80000001, 0, 0, 0, 0, 0x101, 0x20100800),
    (0x80000002, 0, 0, 0x65746E49, 0x2952286C, 0x6F655820, 0x2952286E),
    (0x80000008, 0, 0, 0x3930, 0, 0, 0),
    (0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
    (0x40000001, 0, 0, 0x01007EFB, 0, 0, 0),
]
# The same of an EPYC (Milan).
AMD: list[Row] = [
    (0x0, 0, 0, 0x10, 0x68747541, 0x444D4163, 0x69746E65),
    (0x1, 0, 0, 0x00A00F11, 0x05100800, 0xFED83203, 0x178BFBFF),
    (0x6, 0, 0, 0x4, 0, 0, 0),
    (0x7, 0, 1, 0, 0x219C97A9, 0x00400684, 0),
    (0xB, 0, 1, 0, 0, 0, 5),
    (0x80000000, 0, 0, 0x80000026, 0x68747541, 0x444D4163, 0x69746E65),
    (0x80000001, 0, 0, 0x00A00F11, 0x40000000, 0x00400BF1, 0x2FD3FBFF),
    (0x80000002, 0, 0, 0x20444D41, 0x43595045, 0x31333720, 0x20203350),
    (0x80000008, 0, 0, 0x3030, 0x011CD205, 0x0F, 0),
    (0x8000001D, 0, 1, 0x4121, 0x01C0003F, 0x3F, 0),
    (0x8000001D, 1, 1, 0x4122, 0x01C0003F, 0x3F, 0),
    (0x8000001D, 2, 1, 0x4143, 0x01C0003F, 0x3FF, 2),
    (0x8000001D, 3, 1, 0x3C163, 0x03C0003F, 0x7FFF, 1),
    (0x8000001D, 4, 1, 0, 0, 0, 0),
    (0x8000001E, 0, 0, 0, 0, 0, 0),
    (0x80000021, 0, 0, 0x4D, 0, 0, 0),
    (0x80000026, 0, 1, 1, 2, 0x100, 5),
    (0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
    (0x40000001, 0, 0, 0x01007EFB, 0, 0, 0),
]
HOSTS = {"intel": INTEL, "amd": AMD}
# Leaves that for_vcpu has a say in; any other must reach the guest as KVM gave it.
TOUCHED = {
    0x1, 0x4, 0x6, 0xA, 0xB, 0x15, 0x16, 0x1F, 0x40000000, 0x40000010,
    0x80000001, 0x80000008, 0x8000001D, 0x8000001E, 0x80000026,
}  # fmt: skip

counts = st.integers(1, layout.MAX_VCPUS)
frequencies = st.integers(500_000, 6_000_000)
words = st.integers(0, 2**32 - 1)


def entries(rows: list[Row]) -> list[cpuid.Entry]:
    return [cpuid.Entry(*row) for row in rows]


def row(entry: cpuid.Entry) -> Row:
    return (
        entry.function,
        entry.index,
        entry.flags,
        entry.eax,
        entry.ebx,
        entry.ecx,
        entry.edx,
    )


def guest(
    host: str, vcpu: int, vcpus: int, tsc_khz: int = 2_600_000, *, deadline: bool = True
) -> dict[Key, cpuid.Entry]:
    """Return one vCPU's entries by function and index, none twice."""
    return table_of(host, vcpu, Topology(vcpus), tsc_khz, deadline=deadline)


def table_of(
    host: str, vcpu: int, topology: Topology, tsc_khz: int = 2_600_000, *, deadline: bool = True
) -> dict[Key, cpuid.Entry]:
    """Return the same of any topology."""
    made = cpuid.for_vcpu(
        entries(HOSTS[host]), vcpu=vcpu, topology=topology, tsc_khz=tsc_khz, deadline=deadline
    )
    table = {(entry.function, entry.index): entry for entry in made}
    assert len(table) == len(made)
    return table


def cache_sharing(entry: cpuid.Entry) -> int:
    return (entry.eax >> 14 & 0xFFF) + 1


@pytest.mark.parametrize("host", HOSTS)
@given(vcpus=counts)
@example(1)
@example(3)
@example(128)
@example(254)
def test_ids_are_unique_and_agree(host: str, vcpus: int) -> None:
    seen = set()
    for vcpu in range(vcpus):
        table = guest(host, vcpu, vcpus)
        x2apic = table[0xB, 0].edx
        seen.add(x2apic)
        assert x2apic == vcpu
        ids = {table[key].edx for key in table if key[0] in {0xB, 0x1F}}
        assert ids == {x2apic}
        assert table[1, 0].ebx >> 24 == x2apic
        if host == "amd":
            assert table[0x8000001E, 0].eax == x2apic
            assert table[0x8000001E, 0].ebx == x2apic, "a core each, one thread"
    assert len(seen) == vcpus


@pytest.mark.parametrize(("host", "leaf"), [("intel", 0xB), ("intel", 0x1F), ("amd", 0xB)])
@given(vcpus=counts)
@example(1)
@example(2)
@example(3)
@example(64)
@example(65)
@example(254)
def test_levels_are_one_thread_a_core_and_one_socket(host: str, leaf: int, vcpus: int) -> None:
    last = guest(host, vcpus - 1, vcpus)
    thread, core, end = (last[leaf, index] for index in range(3))
    assert (leaf, 3) not in last
    assert {thread.flags, core.flags, end.flags} == {1}
    assert [level.ecx >> 8 for level in (thread, core, end)] == [1, 2, 0]
    assert [level.ecx & 0xFF for level in (thread, core, end)] == [0, 1, 2]
    assert (thread.eax, thread.ebx) == (0, 1)
    assert core.ebx == vcpus
    assert core.edx >> core.eax == 0, "the last id is in the same socket as the first"
    assert core.eax == 0 or 1 << (core.eax - 1) < vcpus, "and the width is no wider than need be"
    assert (end.eax, end.ebx) == (0, 0)


SHAPE = {"sockets": 2, "dies": 2, "cores": 3, "threads": 2}


def test_levels_with_dies_on_intel() -> None:
    """Threads have one bit of an id, cores two, dies one."""
    table = table_of("intel", 23, Topology(24, **SHAPE))
    assert [row(table[0x1F, i])[3:] for i in range(4)] == [
        (1, 2, 1 << 8 | 0, 29), (3, 6, 2 << 8 | 1, 29), (4, 12, 5 << 8 | 2, 29), (0, 0, 3, 29),
    ]  # fmt: skip
    assert [row(table[0xB, i])[3:] for i in range(3)] == [
        (1, 2, 1 << 8 | 0, 29), (4, 12, 2 << 8 | 1, 29), (0, 0, 2, 29),
    ]  # fmt: skip
    assert [cache_sharing(table[4, i]) for i in range(4)] == [2, 2, 2, 8]
    assert (table[4, 0].eax >> 26) + 1 == 8, "ids of cores in a socket"
    assert table[1, 0].ebx >> 16 == 29 << 8 | 12


def test_levels_with_dies_on_amd() -> None:
    table = table_of("amd", 23, Topology(24, **SHAPE))
    core = table[0x8000001E, 0]
    assert row(core)[3:] == (29, 5 | 1 << 8, 3 | 1 << 8, 0)
    assert table[0x80000001, 0].ecx == 0x00400BF1 | 1 << 1 | 1 << 22
    assert [cache_sharing(table[0x8000001D, i]) for i in range(4)] == [2, 2, 2, 6]
    assert table[0x80000008, 0].ecx == 4 << 12 | 11


@pytest.mark.parametrize("host", HOSTS)
@given(vcpus=counts, deadline=st.booleans())
def test_leaf_1(host: str, vcpus: int, deadline: bool) -> None:
    entry = guest(host, 0, vcpus, deadline=deadline)[1, 0]
    given_row = next(r for r in HOSTS[host] if r[0] == 1)
    assert entry.eax == given_row[3]
    assert entry.ebx & 0xFFFF == given_row[4] & 0xFFFF
    assert entry.ebx >> 16 & 0xFF == vcpus
    assert bool(entry.edx & 1 << 28) == (vcpus > 1)
    assert bool(entry.ecx & 1 << 24) == deadline
    assert entry.ecx & 1 << 31
    ours = 1 << 31 | 1 << 24 | 1 << 15 | 1 << 2
    assert entry.ecx & ~ours == given_row[5] & ~ours
    assert entry.edx & ~(1 << 28 | 1 << 21) == given_row[6] & ~(1 << 28 | 1 << 21)


@given(vcpus=counts)
@example(1)
@example(64)
@example(65)
@example(254)
def test_intel_caches(vcpus: int) -> None:
    table = guest("intel", 0, vcpus)
    for index in range(3):
        assert cache_sharing(table[4, index]) == 1
    shared = cache_sharing(table[4, 3])
    assert vcpus <= shared < max(2 * vcpus, 2)
    assert shared & (shared - 1) == 0
    for index, row_ in enumerate(r for r in INTEL if r[0] == 4):
        entry = table[4, index]
        assert entry.eax & 0x3FFF == row_[3] & 0x3FFF
        assert (entry.ebx, entry.ecx, entry.edx) == row_[4:]
        if index < 4:
            assert (entry.eax >> 26) + 1 == min(shared, 64)
    assert table[4, 4].eax == 0, "the end of the list stays the end"


@given(vcpus=counts)
def test_amd_caches(vcpus: int) -> None:
    table = guest("amd", 0, vcpus)
    assert [cache_sharing(table[0x8000001D, index]) for index in range(4)] == [1, 1, 1, vcpus]
    assert table[0x8000001D, 3].eax >> 26 == 0
    assert table[0x8000001D, 4].eax == 0


@given(vcpus=counts)
def test_amd_core_count_and_legacy_bit(vcpus: int) -> None:
    table = guest("amd", 0, vcpus)
    size = table[0x80000008, 0]
    assert (size.ecx & 0xFF) + 1 == vcpus
    assert 1 << (size.ecx >> 12 & 0xF) >= vcpus
    assert (size.eax, size.ebx) == (0x3030, 0x011CD205)
    assert bool(table[0x80000001, 0].ecx & 2) == (vcpus > 1)
    assert table[0x80000001, 0].ecx & ~2 == 0x00400BF1 & ~2
    assert row(table[0x80000026, 0])[3:] == (0, 0, 0, 0), "leaf 0xb is the one to go by"


def test_intel_has_none_of_amds_topology() -> None:
    table = guest("intel", 1, 8)
    assert table[0x80000008, 0].ecx == 0
    assert table[0x80000001, 0].ecx == 0x101


@pytest.mark.parametrize("host", HOSTS)
def test_other_leaves_and_the_input_stay_as_they_are(host: str) -> None:
    supported = entries(HOSTS[host])
    made = cpuid.for_vcpu(supported, vcpu=2, topology=Topology(5), tsc_khz=2_600_000, deadline=True)
    assert [row(entry) for entry in supported] == HOSTS[host]
    kept = [row(entry) for entry in made if entry.function not in TOUCHED]
    assert kept == [r for r in HOSTS[host] if r[0] not in TOUCHED]
    assert any(r[0] == 0x80000002 for r in kept), "the brand string"


def test_no_performance_monitoring_on_intel() -> None:
    table = guest("intel", 0, 1)
    assert row(table[0xA, 0])[3:] == (0, 0, 0, 0)
    assert table[1, 0].ecx & (1 << 15 | 1 << 2) == 0
    assert table[1, 0].edx & 1 << 21 == 0


@pytest.mark.parametrize("host", HOSTS)
def test_apic_timer_always_runs(host: str) -> None:
    assert guest(host, 0, 1)[6, 0].eax & 1 << 2


@pytest.mark.parametrize("host", HOSTS)
@given(tsc_khz=frequencies)
def test_kvm_timing_leaf(host: str, tsc_khz: int) -> None:
    table = guest(host, 0, 1, tsc_khz)
    assert table[0x40000000, 0].eax == 0x40000010
    assert row(table[0x40000000, 0])[4:] == (0x4B4D564B, 0x564B4D56, 0x4D)
    assert table[0x40000001, 0].eax == 0x01007EFB
    assert row(table[0x40000010, 0]) == (0x40000010, 0, 0, tsc_khz, 1_000_000, 0, 0)


def test_unknown_frequency_is_not_told() -> None:
    table = guest("intel", 0, 1, 0)
    assert (0x40000010, 0) not in table
    assert table[0x40000000, 0].eax == 0x40000001
    assert row(table[0x15, 0])[3:] == row(table[0x16, 0])[3:] == (0, 0, 0, 0)


def test_given_timing_leaf_is_replaced() -> None:
    supported = [*entries(INTEL), cpuid.Entry(0x40000010, eax=1, ebx=2)]
    made = cpuid.for_vcpu(supported, vcpu=0, topology=Topology(1), tsc_khz=3_000_000, deadline=True)
    timing = [entry for entry in made if entry.function == 0x40000010]
    assert [(entry.eax, entry.ebx) for entry in timing] == [(3_000_000, 1_000_000)]


@given(frequencies)
@example(2_499_998)
@example(2_500_100)
def test_tsc_ratio_is_what_linux_can_compute(tsc_khz: int) -> None:
    numerator, denominator = cpuid.tsc_ratio(tsc_khz)
    if numerator == 0:
        assert denominator == 0
        return
    assert 1_000_000 * numerator < 1 << 32
    error = abs(numerator * 10**9 - tsc_khz * 1000 * denominator)
    assert error * 10**6 <= tsc_khz * 1000 * denominator or error < 1000 * denominator


@pytest.mark.parametrize(
    ("tsc_khz", "ratio"),
    [
        (1_000_000, (1, 1)),
        (2_000_000, (2, 1)),
        (2_400_000, (12, 5)),
        (2_593_000, (2593, 1000)),
        (4_294_000, (2147, 500)),
        (2_499_998, (5, 2)),
        (2_500_100, (0, 0)),
        (0, (0, 0)),
    ],
)
def test_tsc_ratio(tsc_khz: int, ratio: tuple[int, int]) -> None:
    assert cpuid.tsc_ratio(tsc_khz) == ratio


def test_frequency_leaves_on_intel_only() -> None:
    table = guest("intel", 0, 1, 2_593_000)
    assert row(table[0x15, 0])[3:] == (1000, 2593, 10**9, 0)
    assert row(table[0x16, 0])[3:] == (2593, 2593, 0, 0)
    supported = [*entries(AMD), cpuid.Entry(0x15)]
    made = cpuid.for_vcpu(supported, vcpu=0, topology=Topology(1), tsc_khz=2_593_000, deadline=True)
    assert [row(e)[3:] for e in made if e.function == 0x15] == [(0, 0, 0, 0)]


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 4, 6, 7, 0xA, 0xB, 0x15, 0x16, 0x1F, 0x40000000, *range(
                0x80000000, 0x80000027)]),
            st.integers(0, 3), st.integers(0, 1), words, words, words, words,
        ),
        unique_by=lambda r: r[:2],
        max_size=40,
    ),
    vcpus=counts,
    data=st.data(),
)  # fmt: skip
def test_any_host_gives_entries_that_fit(rows: list[Row], vcpus: int, data: st.DataObject) -> None:
    vcpu = data.draw(st.integers(0, vcpus - 1))
    made = cpuid.for_vcpu(
        entries(rows),
        vcpu=vcpu,
        topology=Topology(vcpus),
        tsc_khz=data.draw(frequencies),
        deadline=True,
    )
    keys = [(entry.function, entry.index) for entry in made]
    assert len(set(keys)) == len(keys)
    for entry in made:
        assert all(0 <= value < 1 << 32 for value in row(entry))
        if entry.function in {0xB, 0x1F}:
            assert entry.edx == vcpu


@pytest.mark.parametrize(("vcpu", "vcpus"), [(1, 1), (-1, 1), (0, 0), (254, 254)])
def test_vcpu_outside_the_count(vcpu: int, vcpus: int) -> None:
    with pytest.raises(ValueError, match=f"vCPU {vcpu} of {vcpus}"):
        cpuid.for_vcpu([], vcpu=vcpu, topology=Topology(vcpus), tsc_khz=0, deadline=True)


def test_entry_shows_itself() -> None:
    text = repr(cpuid.Entry(0xB, 1, 1, 2, 3, 4, 5))
    assert text == "<CPUID 0xb.1 0x00000002 0x00000003 0x00000004 0x00000005>"
