"""From files to a guest ready to start: kernel, initrd, command line, tables, boot vCPU."""

from __future__ import annotations

import os

from ...errors import ConfigError
from .. import layout
from ..config import ACPI_WATCHDOG, MachineConfig
from ..memory import GuestMemory
from . import acpi, bios, bzimage, elf, entry, mptable, multiboot, params, raw
from .kernel import MULTIBOOT, PVH, Kernel, KernelFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGE = 4096
_DOS = b"MZ"  # how EFI images begin, bzImages among them


def _load_kernel(path: str, memory: GuestMemory) -> Kernel:
    with KernelFile("-kernel", path) as file:
        if bzimage.recognises(file):
            return bzimage.load(file, memory)
        if file.head.startswith(_DOS):
            from . import efi  # noqa: PLC0415  (few runs come here)

            if efi.recognises(file):
                raise efi.refusal(file)
        if multiboot.recognises(file):
            return multiboot.load(file, memory)
        if elf.recognises(file):
            return elf.load(file, memory)
        return raw.load(file, memory)


def _load_initrd(path: str, memory: GuestMemory, kernel: Kernel) -> tuple[int, int]:
    """Put the initrd as high as the kernel allows; return its address and size."""
    with KernelFile("-initrd", path) as file:
        if file.size == 0:
            raise file.error("empty; name a cpio archive")
        ceiling = min(memory.regions[0][1], kernel.initrd_max + 1)
        address = (ceiling - file.size) & ~(_PAGE - 1)
        if address < kernel.end:
            wanted = (kernel.end + file.size + _PAGE >> 20) + 1
            limit = min(layout.GAP_START, kernel.initrd_max + 1)
            mend = f"raise -m to {wanted} or more" if wanted << 20 <= limit else "shrink it"
            raise file.error(
                f"{file.size} bytes do not fit between the kernel's end at {kernel.end:#x} "
                f"and {ceiling:#x}; {mend}"
            )
        file.load(memory, address, 0, file.size)
        return address, file.size


def _device_words(devices: Sequence[acpi.VirtioMmio]) -> str:
    """Return what tells Linux's virtio-mmio driver of devices, and of nothing else.

    It goes before the user's words, some of which may not be the kernel's (after `--`).
    """
    return "".join(
        f"virtio_mmio.device={window.size >> 10}K@{window.base:#x}:{window.gsi} "
        for window in devices
    )


def _cmdline(text: str, kernel: Kernel) -> bytes:
    data = os.fsencode(text)
    limit = min(kernel.cmdline_max, layout.CMDLINE_ROOM - 1)
    if len(data) > limit:
        raise ConfigError(f"-append: {len(data)} bytes, the kernel takes {limit}; shorten it")
    return data + b"\0"


def _write_tables(
    config: MachineConfig, memory: GuestMemory, devices: Sequence[acpi.VirtioMmio]
) -> int:
    """Write BIOS and MP table, and ACPI where asked for; return the RSDP's address or 0."""
    memory.write(layout.REAL_MODE, bios.low_memory())
    memory.write(layout.BIOS_CALLS, bios.calls())
    memory.write(layout.RESET_VECTOR, bios.reset_code())
    memory.write(layout.MPTABLE, mptable.build(config.topology.apic_ids))
    if config.discovery == "cmdline":
        return 0
    apic_ids = config.topology.apic_ids
    others: list[bytes] = []
    if config.numa is not None:
        from . import numa  # noqa: PLC0415  (few machines have nodes)

        others += numa.tables(config.numa, apic_ids)
    if config.watchdog == ACPI_WATCHDOG:
        from . import wdat  # noqa: PLC0415  (few machines have one)

        others.append(wdat.build())
    tables, rsdp = acpi.build(
        apic_ids=apic_ids,
        devices=devices,
        others=others,
        rtc=config.rtc is not None,
        on_demand=config.on_demand,
    )
    memory.write(layout.ACPI, tables)
    memory.write(layout.GENERATION_ID, os.urandom(layout.GENERATION_ID_SIZE))
    return rsdp


def find(config: MachineConfig) -> None:
    """See that there are files to `place`, and that they can be read still; ConfigError."""
    if not config.kernel:
        raise ConfigError(
            "there is no kernel to begin anew with; restore the machine with -kernel, -initrd and "
            "-append"
        )
    for option, path in (("-kernel", config.kernel), ("-initrd", config.initrd)):
        if path:
            with KernelFile(option, path):
                continue


def place(
    config: MachineConfig, memory: GuestMemory, devices: Sequence[acpi.VirtioMmio] = ()
) -> Kernel:
    """Put the guest that `config` names into memory, and tell it of `devices`.

    ConfigError names the option at fault.
    """
    kernel = _load_kernel(config.kernel, memory)
    initrd = _load_initrd(config.initrd, memory, kernel) if config.initrd else (0, 0)
    if kernel.protocol == MULTIBOOT:
        # Its first word is the program's name, as QEMU has it.
        words = f"{os.path.basename(config.kernel)} "
    else:
        words = _device_words(devices) if config.discovery == "cmdline" else ""
    cmdline = _cmdline(words + config.cmdline, kernel)
    rsdp = _write_tables(config, memory, devices)
    if kernel.protocol == MULTIBOOT:
        module = os.fsencode(os.path.basename(config.initrd)) + b"\0"
        multiboot.boot_information(memory, kernel, cmdline, initrd, module)
        return kernel
    memory.write(layout.CMDLINE, cmdline)
    if kernel.protocol == PVH:
        params.start_info(memory, initrd, rsdp)
    else:
        params.zero_page(memory, kernel, initrd, kernel.cmdline_max, rsdp)
    return kernel


def load(
    config: MachineConfig,
    memory: GuestMemory,
    boot_vcpu_fd: int,
    devices: Sequence[acpi.VirtioMmio] = (),
) -> Kernel:
    """Place the guest and put the boot vCPU at its first instruction; as for `place`."""
    kernel = place(config, memory, devices)
    entry.prepare(memory, boot_vcpu_fd, kernel)
    return kernel
