"""Whether this host's KVM can run a stock kernel, or guests must run in the nested lab.

The probe's verdict is kept until the host boots again; it costs 8 ms, reading it nothing.
"""

from __future__ import annotations

import os

from ..errors import PyvirtError
from . import kvm
from .paths import cache_folder

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_WORKS = "works"


def _verdict_file() -> str:
    """Return where this boot's verdict is kept."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return os.path.join(cache_folder(), f"probe-{file.read().strip()}")


def _probe() -> str:
    """Return "works" or what is wrong, in one line."""
    from . import probe  # noqa: PLC0415  (few runs come here)

    fd = kvm.open_device()
    try:
        return probe.exception_failure(fd) or _WORKS
    finally:
        os.close(fd)


def _remember(path: str, verdict: str) -> None:
    """Keep the verdict; a cache folder that cannot be written costs time, nothing else."""
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(verdict)
        os.rename(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)


def kvm_failure() -> str:
    """Return "" when this host's KVM can run a stock kernel, else why not, in one line."""
    if not os.access(kvm.DEVICE, os.R_OK | os.W_OK):
        try:
            os.close(kvm.open_device())
        except PyvirtError as error:
            return str(error)
    path = _verdict_file()
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            verdict = file.read()
    except OSError:
        verdict = ""
    if not verdict:
        try:
            verdict = _probe()
        except PyvirtError as error:
            return str(error)
        _remember(path, verdict)
    return "" if verdict == _WORKS else verdict
