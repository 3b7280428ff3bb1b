"""Another processor than the host's, as far as CPUID can tell: a vendor, and features less.

The names of features are QEMU's. Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.
"""

from __future__ import annotations

from ..errors import ConfigError
from .cpuid import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VENDORS = ("GenuineIntel", "AuthenticAMD", "HygonGenuine")
_VENDOR_LEAVES = (0, 0x8000_0000)

# By leaf, index and register: the names of its bits from 0 on, "-" for one that has none here or
# that the machine or the guest decides.
_NAMES = {
    (0x1, 0, "edx"): "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov "
    "pat pse36 pn clflush - - acpi mmx fxsr sse sse2 ss",
    (0x1, 0, "ecx"): "pni pclmulqdq - monitor - vmx smx est tm2 ssse3 - - fma cx16 xtpr - "
    "- pcid dca sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand",
    (0x7, 0, "ebx"): "fsgsbase tsc-adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - "
    "avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb - avx512pf avx512er avx512cd "
    "sha-ni avx512bw avx512vl",
    (0x7, 0, "ecx"): "- avx512vbmi umip pku - waitpkg avx512vbmi2 cet-ss gfni vaes vpclmulqdq "
    "avx512vnni avx512bitalg - avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote "
    "- movdiri movdir64b - - pks",
    (0x7, 0, "edx"): "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - "
    "- - serialize - tsx-ldtrk - - - cet-ibt - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl "
    "stibp flush-l1d arch-capabilities core-capability ssbd",
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves",
    (0x8000_0001, 0, "edx"): "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - "
    "fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    (0x8000_0001, 0, "ecx"): "lahf-lm - svm - cr8legacy abm sse4a misalignsse 3dnowprefetch osvw "
    "ibs xop skinit - - lwp fma4 - - - - tbm topoext",
    (0x8000_000A, 0, "edx"): "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid "
    "decodeassists - - pause-filter - pfthreshold avic - v-vmsave-vmload vgif",
}
FEATURES = {
    name: (*place, bit)
    for place, names in _NAMES.items()
    for bit, name in enumerate(names.split())
    if name != "-"
}


class CpuModel:
    """What `-cpu` asks for: a vendor or "", features that must be there, and others that must not.

    Names are those of VENDORS and FEATURES.
    """

    __slots__ = ("off", "on", "vendor")

    def __init__(self, vendor: str = "", on: Iterable[str] = (), off: Iterable[str] = ()) -> None:
        self.vendor = vendor
        self.on = tuple(on)
        self.off = tuple(off)

    def with_vendor(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Return the entries with the vendor in them; those given stay as they are."""
        if not self.vendor:
            return entries
        name = self.vendor.encode()
        ebx, edx, ecx = (int.from_bytes(name[i : i + 4], "little") for i in (0, 4, 8))
        made = list(entries)
        for at, entry in enumerate(entries):
            if entry.function in _VENDOR_LEAVES:
                made[at] = changed = entry.copy()
                changed.ebx, changed.ecx, changed.edx = ebx, ecx, edx
        return made

    def with_features(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries without what is off; ConfigError when what is on is not there."""
        made = [entry.copy() for entry in entries]
        by_leaf = {(entry.function, entry.index): entry for entry in made}
        for name in self.off:
            function, index, register, bit = FEATURES[name]
            entry = by_leaf.get((function, index))
            if entry is not None:
                setattr(entry, register, getattr(entry, register) & ~(1 << bit))
        for name in self.on:
            function, index, register, bit = FEATURES[name]
            entry = by_leaf.get((function, index))
            if entry is None or not getattr(entry, register) >> bit & 1:
                raise ConfigError(f"-cpu +{name}: this KVM does not have it; leave it out")
        return made
