"""What a guest without ACPI wants of its kernel's configuration, and a word where it lacks that.

Imported for a guest without ACPI only, once the guest runs: to find a configuration may
take seconds.
"""

from __future__ import annotations

import _thread

from ..errors import PyvirtError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..vmm.log import Log
    from .options.parsed import Options


def warn(options: Options, log: Log) -> None:
    """Look for what the kernel lacks, on a thread of its own, and log a line for each."""
    _thread.start_new_thread(_look, (options, log))


def _look(options: Options, log: Log) -> None:
    config = _config(options.kernel)
    if config is None:
        return
    asked, mend = "-machine discovery=cmdline", "use discovery=acpi"
    if options.discovery == "auto":
        asked, mend = "-append acpi=off", "leave acpi=off out"
    for name, effect in lacking(options, config):
        log.warning(
            f"{asked}: {options.kernel} was built without {name}, so the guest {effect}; "
            f"{mend}, or take another kernel"
        )


def _config(kernel: str) -> Mapping[str, str] | None:
    """Return the kernel's configuration, None where nothing tells it."""
    from ..harness.guest.kernel import find

    try:
        return find(kernel).config
    except (PyvirtError, OSError):
        return None  # no Linux, or nothing that can be taken apart


def lacking(options: Options, config: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the options that a kernel would have to be built with, and what comes of their lack."""
    if options.smp > 1 and config.get("CONFIG_X86_MPPARSE") != "y":
        yield "CONFIG_X86_MPPARSE", "sees one processor"
    devices = (options.disks, options.nics, options.devices)
    found = config.get("CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES")
    if any((*devices, options.monitors)) and found != "y":
        yield "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES", "finds no virtio device"
