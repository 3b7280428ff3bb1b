"""What the kernel's histograms say, in the words of the report."""

from __future__ import annotations

from pyvirt.benches.parts import account

PIO = """\
# event histogram
#
# trigger info: hist:keys=port,rw:vals=hitcount:sort=hitcount:size=2048 [active]
#

{ port:       1016, rw:          1 } hitcount:        120
{ port:         97, rw:          0 } hitcount:          3

Totals:
    Hits: 123
"""
MMIO = """\
{ gpa:           4273995776, type:          2 } hitcount:          7
{ gpa:           4273995792, type:          2 } hitcount:          2
{ gpa:           4273995792, type:          0 } hitcount:          5
"""


def test_a_histogram_is_read() -> None:
    assert list(account.parse(PIO)) == [({"port": 1016, "rw": 1}, 120), ({"port": 97, "rw": 0}, 3)]


def test_an_account_is_made() -> None:
    histograms = {
        "kvm_exit": "{ exit_reason:        123 } hitcount:        130\n",
        "kvm_userspace_exit": "{ reason:          2 } hitcount:        120\n",
        "kvm_pio": PIO,
        "kvm_mmio": MMIO,
        "kvm_cpuid": "{ function: 1073741824 } hitcount:          2\n",
        "kvm_msr": "{ ecx:                1760, write:          1 } hitcount:         40\n",
    }
    assert account.counted(histograms.__getitem__, account.SVM) == {
        "exits": [130],
        "Exits: port": [130],
        "exits to user space": [120],
        "Exits to user space: port": [120],
        "Ports: 0x3f8 COM1, write": [120],
        "Ports: 0x061 PIT's gate, read": [3],
        "Addresses: page 0xfec00000, write": [9],
        "Registers: 0x6e0, write": [40],
        "CPUID leaves: 0x40000000": [2],
    }
