"""The one word for how a VM, or a test in it, ended."""

from __future__ import annotations

import enum


class Verdict(enum.StrEnum):
    """How it ended; what the guest's kernel said of itself goes before what its programs did."""

    PASSED = "passed"
    FAILED = "failed"
    PANICKED = "panicked"  # the kernel gave up
    OOPSED = "oopsed"  # the kernel killed what it was running, and may run on
    WARNED = "warned"  # the kernel found a fault in itself, and runs on
    HUNG = "hung"  # something makes no progress
    TRIPLE_FAULT = "triple-fault"
    BOOT_FAILED = "boot-failed"
    MONITOR_DIED = "monitor-died"
    TIMEOUT = "timeout"
