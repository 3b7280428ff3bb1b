"""Another processor than the host's: its vendor, features that must not be, and that must."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pyvirt.vmm import cpu_model
from pyvirt.vmm.cpu_model import FEATURES, VENDORS, CpuModel
from pyvirt.vmm.cpuid import Entry

from ..refusal import refusal
from .test_cpuid import HOSTS, entries, row

PCID, NPT, SVM = 1 << 17, 1 << 0, 1 << 2


def test_a_feature_has_one_place_and_a_place_one_name() -> None:
    assert len(set(FEATURES.values())) == len(FEATURES)
    assert all(0 <= bit < 32 for *_, bit in FEATURES.values())
    names = " ".join(cpu_model._NAMES.values()).replace("- ", "").replace(" -", "")
    assert len(names.split()) == len(FEATURES)


# Intel SDM volume 2A and AMD APM volume 3; a slip in the table moves all names behind it.
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("ss", (1, 0, "edx", 27)),
        ("rdrand", (1, 0, "ecx", 30)),
        ("pcid", (1, 0, "ecx", 17)),
        ("tsc-deadline", (1, 0, "ecx", 24)),
        ("invpcid", (7, 0, "ebx", 10)),
        ("avx512vl", (7, 0, "ebx", 31)),
        ("la57", (7, 0, "ecx", 16)),
        ("pks", (7, 0, "ecx", 31)),
        ("ssbd", (7, 0, "edx", 31)),
        ("cet-ibt", (7, 0, "edx", 20)),
        ("xsaves", (0xD, 1, "eax", 3)),
        ("3dnow", (0x8000_0001, 0, "edx", 31)),
        ("nx", (0x8000_0001, 0, "edx", 20)),
        ("topoext", (0x8000_0001, 0, "ecx", 22)),
        ("vgif", (0x8000_000A, 0, "edx", 16)),
    ],
)
def test_places(name: str, place: tuple[int, int, str, int]) -> None:
    assert FEATURES[name] == place


def test_names_are_those_of_the_hosts_kernel() -> None:
    """Linux counts the same bits by names that are mostly the same, in /proc/cpuinfo."""
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert flags
    known = {name.replace("-", "_").replace(".", "_") for name in FEATURES}
    assert {"fpu", "tsc", "sse2", "syscall", "nx", "lm"} <= known & set(flags[1].split())


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendor(host: str, vendor: str) -> None:
    given = entries(HOSTS[host])
    before = [row(entry) for entry in given]
    made = CpuModel(vendor).with_vendor(given)
    assert [row(entry) for entry in given] == before
    for entry in made:
        if entry.function == 0:
            words = (entry.ebx, entry.edx, entry.ecx)
            assert b"".join(word.to_bytes(4, "little") for word in words).decode() == vendor
    others = [row(entry) for entry in made if entry.function not in (0, 0x8000_0000)]
    assert others == [values for values in before if values[0] not in (0, 0x8000_0000)]


def test_no_vendor_changes_nothing() -> None:
    given = [Entry(0, eax=1, ebx=2, ecx=3, edx=4)]
    assert CpuModel(off=["pcid"]).with_vendor(given) is given


def test_features_go() -> None:
    given = [
        Entry(1, ecx=PCID | 1, edx=0xFFFF_FFFF),
        Entry(0x8000_0001, ecx=SVM),
        Entry(0x8000_000A, edx=NPT),
    ]
    made = CpuModel(off=["pcid", "svm", "npt", "invpcid"], on=["pni"]).with_features(given)
    assert [(entry.ecx, entry.edx) for entry in made] == [(1, 0xFFFF_FFFF), (0, 0), (0, 0)]
    assert (given[0].ecx, given[1].ecx, given[2].edx) == (PCID | 1, SVM, NPT)


@pytest.mark.parametrize("given", [[], [Entry(1, ecx=PCID)], [Entry(7, 1, ebx=1 << 10)]])
def test_a_feature_that_must_be_there(given: list[Entry]) -> None:
    model = CpuModel(on=["pcid", "invpcid"] if given else ["pcid"])
    message = refusal(lambda: model.with_features(given))
    assert re.fullmatch(r"-cpu \+(pcid|invpcid): this KVM does not have it; leave it out", message)
