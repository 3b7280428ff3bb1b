"""Describes the machine that a part is measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

QEMU = "qemu-system-x86_64"
_MODULES = ("kvm_intel", "kvm_amd")


def describe() -> dict[str, str]:
    """Return the processor, its cores, memory, kernel, KVM, Python and QEMU, in words."""
    processor = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)$", processor, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "processor": name[1].strip() if name else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{int(memory[1]) / (1 << 20):.1f} GiB" if memory else "unknown",
        "kernel": platform.release(),
        "KVM": _kvm(" hypervisor" in processor),
        "Python": platform.python_version(),
        "QEMU": _qemu(),
    }


def _kvm(nested: bool) -> str:
    """Return which KVM this is, and whether this machine is a virtual one."""
    if not os.path.exists("/dev/kvm"):
        return "none"
    kind = next((name for name in _MODULES if os.path.exists(f"/sys/module/{name}")), "no module")
    return f"{kind}, in a virtual machine" if nested else kind


def _qemu() -> str:
    try:
        done = subprocess.run([QEMU, "--version"], capture_output=True, check=False, text=True)
    except FileNotFoundError:
        return "none"
    found = re.search(r"version (\S+)", done.stdout)
    return found[1] if found else "unknown"


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
