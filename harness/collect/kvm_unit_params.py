"""What the parameters of a section of unittests.cfg, which are QEMU's, mean for pyvirt."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, NamedTuple

from ...vmm.cpu_model import FEATURES, VENDORS

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = "128M"  # QEMU's default
_DATE = "`date +%s`"
_HARMLESS = ("enable-kvm", "no-reboot", "nographic")
# What is on every machine of these tests, and what a guest of pyvirt has without asking.
_DEVICES = ("pc-testdev", "isa-debug-exit")
_HOSTS_OWN = ("migratable=no", "host-phys-bits")
_MACHINES = {"accel=kvm": "", "kernel_irqchip=on": "", "pit=off": "pit=off", "pit=on": "pit=on"}
# What words of QEMU's stand for that is not here.
_LACKING = (
    ("irqchip=split", "an I/O APIC outside of KVM"),
    ("intel-iommu", "an IOMMU"),
    ("hv_", "an interface of Hyper-V's"),
    ("hyperv-testdev", "an interface of Hyper-V's"),
    ("vmport", "VMware's port"),
    ("phys-bits", "a physical address of another width"),
    ("cpu-pm", "an idle state of the host for the guest"),
    ("edu", "PCI"),
)


class Run(NamedTuple):
    """How to start a kernel: `words` are more of pyvirt's; `unfit` says why not to."""

    cmdline: str = ""
    memory: str = MEMORY
    words: tuple[str, ...] = ()
    unfit: str = ""


def read(text: str, test_args: str) -> Run:
    """Return what `extra_params` or `qemu_params` ask for, and a section's `test_args`."""
    text, test_args = (
        part.replace(_DATE, str(int(time.time()))) for part in (text, test_args.strip("'\""))
    )
    if "`" in text or "$(" in text:
        return Run(unfit="its parameters are a shell's to expand")
    try:
        words = iter(shlex.split(text))
    except ValueError as error:
        return Run(unfit=f"its parameters cannot be read: {error}")
    return _translated(words, Run(cmdline=test_args))


def _translated(words: Iterator[str], run: Run) -> Run:
    for word in words:
        name = word.lstrip("-")
        if name in _HARMLESS:
            continue
        value = next(words, "")
        if name == "append":
            run = run._replace(cmdline=value)
        elif name == "m":
            run = run._replace(memory=value)
        elif name == "device" and value.partition(",")[0] in _DEVICES:
            continue
        else:
            more = _READERS[name](value) if name in _READERS else None
            if more is None:
                return Run(unfit=_reason(word, value))
            run = run._replace(words=(*run.words, *more))
    return run


def _reason(word: str, value: str) -> str:
    lacking = next((what for part, what in _LACKING if part in value), "")
    return f"it needs QEMU's {word} {value}" + (f": {lacking} is not here" if lacking else "")


def _cpu(value: str) -> tuple[str, ...] | None:
    """Return pyvirt's words for a processor, None where there is none like it.

    The guest has the host's, with all that KVM can do: no feature need be added, and a model
    counts for what is taken from it and for its vendor.
    """
    kept = []
    for feature in value.split(",")[1:]:
        vendor = feature.removeprefix("vendor=")
        if (feature[:1] == "-" and feature[1:] in FEATURES) or vendor in VENDORS:
            kept.append(feature)
        elif feature[:1] != "+" and feature not in _HOSTS_OWN:
            return None
    return ("-cpu", ",".join(["host", *kept])) if kept else ()


def _machine(value: str) -> tuple[str, ...] | None:
    if not all(member in _MACHINES for member in value.split(",")):
        return None
    kept = [_MACHINES[member] for member in value.split(",") if _MACHINES[member]]
    return ("-machine", ",".join(["microvm", *kept])) if kept else ()


_READERS = {"cpu": _cpu, "machine": _machine, "M": _machine}
