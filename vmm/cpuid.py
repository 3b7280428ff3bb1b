"""What each vCPU answers to CPUID: the features that KVM supports, with this machine's topology.

KVM_GET_SUPPORTED_CPUID gives the host's processor less what KVM cannot do. Left to user space
are APIC ids and topology, the TSC deadline timer, and frequencies. Sources:
Documentation/virt/kvm/api.rst, sections 4.46 and 9.1; Intel SDM volume 2A, CPUID; AMD APM volume 3,
appendix E.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .topology import Topology

INDEX_SIGNIFICANT = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX

# Bits of leaf 1.
_X1_ECX_DTES64 = 1 << 2
_X1_ECX_PDCM = 1 << 15
_X1_ECX_TSC_DEADLINE = 1 << 24
_X1_ECX_HYPERVISOR = 1 << 31
_X1_EDX_DS = 1 << 21
_X1_EDX_HTT = 1 << 28
_X6_EAX_ARAT = 1 << 2
_X80000001_ECX_CMP_LEGACY = 1 << 1
_X80000001_ECX_TOPOEXT = 1 << 22

_SMT_LEVEL, _CORE_LEVEL, _DIE_LEVEL = 1, 2, 5
_SHARED_FROM_LEVEL = 3  # each core has its own caches below the third level
_INTEL_CORES_MAX = 63  # the six bits of leaf 4's count, which is one less than the number

_KVM_SIGNATURE = 0x4000_0000
_KVM_TIMING = 0x4000_0010
_APIC_BUS_KHZ = 1_000_000  # one cycle a nanosecond, fixed in KVM

_INTEL = b"GenuineIntel"
_AMD = (b"AuthenticAMD", b"HygonGenuine")


class Entry:
    """One `struct kvm_cpuid_entry2`: the answer to CPUID with EAX `function`, ECX `index`."""

    __slots__ = ("eax", "ebx", "ecx", "edx", "flags", "function", "index")

    def __init__(
        self,
        function: int,
        index: int = 0,
        flags: int = 0,
        eax: int = 0,
        ebx: int = 0,
        ecx: int = 0,
        edx: int = 0,
    ) -> None:
        self.function = function
        self.index = index
        self.flags = flags
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx

    def copy(self) -> Entry:
        """Return an entry of its own with the same values."""
        return Entry(self.function, self.index, self.flags, self.eax, self.ebx, self.ecx, self.edx)

    def __repr__(self) -> str:
        registers = f"{self.eax:#010x} {self.ebx:#010x} {self.ecx:#010x} {self.edx:#010x}"
        return f"<CPUID {self.function:#x}.{self.index} {registers}>"


class _Guest:
    """What the leaves are made from."""

    __slots__ = ("apic_id", "deadline", "place", "topology", "tsc_khz", "tsc_ratio", "vendor")

    def __init__(
        self, vendor: bytes, vcpu: int, topology: Topology, tsc_khz: int, *, deadline: bool
    ) -> None:
        self.vendor = vendor
        self.topology = topology
        self.place = topology.place(vcpu)
        self.apic_id = topology.apic_id(vcpu)
        self.tsc_khz = tsc_khz
        self.tsc_ratio = tsc_ratio(tsc_khz) if vendor == _INTEL else (0, 0)
        self.deadline = deadline


def _simplest(low: int, low_unit: int, high: int, high_unit: int) -> tuple[int, int]:
    """Return the fraction of smallest terms from low/low_unit to high/high_unit, inclusive."""
    whole, rest = divmod(low, low_unit)
    if rest == 0:
        return whole, 1
    if whole < high // high_unit:
        return whole + 1, 1
    inverse, unit = _simplest(high_unit, high - whole * high_unit, low_unit, rest)
    return whole * inverse + unit, inverse


def tsc_ratio(tsc_khz: int) -> tuple[int, int]:
    """Return (numerator, denominator) of the TSC's frequency over 1 GHz, for leaf 0x15.

    The crystal must be given as 1 GHz, since guests take it for the local APIC timer's clock. Linux
    multiplies it in kHz with the numerator in 32 bits, so few ratios can be told: the exact one
    if it fits, else one that gives the same whole kHz, else one within 1 ppm, else (0, 0), which
    means unknown.
    """
    hertz = tsc_khz * 1000
    crystal = _APIC_BUS_KHZ * 1000
    ppm = tsc_khz // 1000
    for below, above in ((0, 0), (0, 999), (ppm, ppm)):
        numerator, denominator = _simplest(hertz - below, crystal, hertz + above, crystal)
        if 0 < numerator * _APIC_BUS_KHZ < 1 << 32:
            return numerator, denominator
    return 0, 0


def _features(entry: Entry, guest: _Guest) -> None:
    logical = guest.topology.in_socket
    entry.ebx = entry.ebx & 0xFFFF | min(logical, 255) << 16 | (guest.apic_id & 0xFF) << 24
    # Some versions of KVM report the deadline timer, others leave that to user space. PDCM, DTES64
    # and DS belong to performance monitoring, which is not offered (leaf 0xa).
    entry.ecx &= ~(_X1_ECX_TSC_DEADLINE | _X1_ECX_PDCM | _X1_ECX_DTES64)
    entry.ecx |= _X1_ECX_HYPERVISOR
    if guest.deadline:
        entry.ecx |= _X1_ECX_TSC_DEADLINE
    entry.edx &= ~(_X1_EDX_HTT | _X1_EDX_DS)
    if logical > 1:
        entry.edx |= _X1_EDX_HTT


def _intel_cache(entry: Entry, guest: _Guest) -> None:
    if entry.eax & 0x1F == 0:
        return
    # Both counts are of addressable ids: powers of two, less one. A die has a last level's cache.
    topology = guest.topology
    is_shared = entry.eax >> 5 & 7 >= _SHARED_FROM_LEVEL
    sharing = (1 << (topology.die_shift if is_shared else topology.thread_bits)) - 1
    cores = (1 << (topology.socket_shift - topology.thread_bits)) - 1
    entry.eax = entry.eax & 0x3FFF | sharing << 14 | min(cores, _INTEL_CORES_MAX) << 26


def _amd_cache(entry: Entry, guest: _Guest) -> None:
    if entry.eax & 0x1F == 0:
        return
    topology = guest.topology
    is_shared = entry.eax >> 5 & 7 >= _SHARED_FROM_LEVEL
    sharing = topology.threads * (topology.cores if is_shared else 1) - 1
    entry.eax = entry.eax & 0x3FFF | sharing << 14


def _thermal(entry: Entry, _: _Guest) -> None:
    # KVM's APIC timer never stops; without the bit Linux keeps a second timer in reserve.
    entry.eax |= _X6_EAX_ARAT


def _zero(entry: Entry, _: _Guest) -> None:
    entry.eax = entry.ebx = entry.ecx = entry.edx = 0


def _tsc_frequency(entry: Entry, guest: _Guest) -> None:
    numerator, denominator = guest.tsc_ratio
    if numerator:
        entry.eax, entry.ebx, entry.ecx = denominator, numerator, _APIC_BUS_KHZ * 1000


def _processor_frequency(entry: Entry, guest: _Guest) -> None:
    if guest.tsc_ratio[0]:
        entry.eax = entry.ebx = (guest.tsc_khz + 500) // 1000


def _kvm_signature(entry: Entry, guest: _Guest) -> None:
    if guest.tsc_khz:
        entry.eax = max(entry.eax, _KVM_TIMING)


def _extended_features(entry: Entry, guest: _Guest) -> None:
    entry.ecx &= ~_X80000001_ECX_CMP_LEGACY
    topology = guest.topology
    if guest.vendor in _AMD and topology.in_socket > 1:
        entry.ecx |= _X80000001_ECX_CMP_LEGACY
        # Not every KVM reports it, and without it guests do not look at threads and dies.
        if topology.threads * topology.dies > 1:
            entry.ecx |= _X80000001_ECX_TOPOEXT


def _amd_core_count(entry: Entry, guest: _Guest) -> None:
    if guest.vendor in _AMD:
        topology = guest.topology
        logical = min(topology.in_socket - 1, 255)
        entry.ecx = entry.ecx & ~0xF0FF | topology.socket_shift << 12 | logical


def _amd_topology(entry: Entry, guest: _Guest) -> None:
    # A die is what AMD calls a node.
    topology = guest.topology
    socket, die, core, _ = guest.place
    in_socket = die * topology.cores + core
    entry.eax = guest.apic_id
    entry.ebx = in_socket & 0xFF | (topology.threads - 1) << 8
    entry.ecx = (socket * topology.dies + die) & 0xFF | (topology.dies - 1) << 8
    entry.edx = 0


_FIXES: dict[int, Callable[[Entry, _Guest], None]] = {
    0x1: _features,
    0x4: _intel_cache,
    0x6: _thermal,
    0xA: _zero,  # no performance monitoring
    0x15: _tsc_frequency,
    0x16: _processor_frequency,
    _KVM_SIGNATURE: _kvm_signature,
    0x8000_0001: _extended_features,
    0x8000_0008: _amd_core_count,
    0x8000_001D: _amd_cache,
    0x8000_001E: _amd_topology,
    0x8000_0026: _zero,  # guests go by leaf 0xb then
}
_DIES_IN = 0x1F
_TOPOLOGY = (0xB, _DIES_IN)


def _topology(function: int, guest: _Guest) -> list[Entry]:
    """Return the levels of leaf 0xb or 0x1f; only the second knows dies."""
    topology = guest.topology
    # Each level: its type, the shift to the level above, and the threads in one of it.
    levels = [(_SMT_LEVEL, topology.thread_bits, topology.threads)]
    if function == _DIES_IN and topology.dies > 1:
        levels.append((_CORE_LEVEL, topology.die_shift, topology.cores * topology.threads))
        levels.append((_DIE_LEVEL, topology.socket_shift, topology.in_socket))
    else:
        levels.append((_CORE_LEVEL, topology.socket_shift, topology.in_socket))
    levels.append((0, 0, 0))
    return [
        Entry(function, i, INDEX_SIGNIFICANT, shift, count, kind << 8 | i, guest.apic_id)
        for i, (kind, shift, count) in enumerate(levels)
    ]


def _vendor(supported: Sequence[Entry]) -> bytes:
    for entry in supported:
        if entry.function == 0:
            words = (entry.ebx, entry.edx, entry.ecx)
            return b"".join([word.to_bytes(4, "little") for word in words])
    return b""


def for_vcpu(
    supported: Sequence[Entry], *, vcpu: int, topology: Topology, tsc_khz: int, deadline: bool
) -> list[Entry]:
    """Return the entries for KVM_SET_CPUID2 of a vCPU, by its index.

    `supported` is what KVM_GET_SUPPORTED_CPUID gave; it and its entries stay as they are, and the
    result shares those that need no change. `tsc_khz` is KVM_GET_TSC_KHZ's answer, 0 if unknown;
    `deadline` says whether KVM has KVM_CAP_TSC_DEADLINE_TIMER. ValueError when
    there is no such vCPU.
    """
    if not 0 <= vcpu < topology.vcpus:
        raise ValueError(f"vCPU {vcpu} of {topology.vcpus}")
    guest = _Guest(_vendor(supported), vcpu, topology, tsc_khz, deadline=deadline)
    entries = []
    for given in supported:
        function = given.function
        if function in _TOPOLOGY:
            if given.index == 0:
                entries += _topology(function, guest)
            continue
        if function == _KVM_TIMING:
            continue
        entry = given
        if function in _FIXES:
            entry = given.copy()
            _FIXES[function](entry, guest)
        entries.append(entry)
        if function == _KVM_SIGNATURE and given.index == 0 and tsc_khz:
            entries.append(Entry(_KVM_TIMING, eax=tsc_khz, ebx=_APIC_BUS_KHZ))
    return entries
