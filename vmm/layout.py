"""Where things are in guest-physical memory and among the I/O ports.

Addresses and sizes in bytes. Nothing here is read from the host: the same guest sees the same
map everywhere.
"""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

# Below 1 MiB, what a boot protocol hands to the kernel. Linux takes its own copy of each before
# it gives the memory to others. The first page is real mode's.
REAL_MODE = 0x0  # its interrupt table, and the BIOS data behind it
LOW_MEMORY = 0x1000
GDT = 0x500
IDT = 0x520
PVH_START_INFO = 0x6000
MULTIBOOT_INFO = 0x6000  # the same page: a kernel is entered by one protocol; or another free one
ZERO_PAGE = 0x7000
BOOT_STACK = 0x8FF0  # grows down to the end of the zero page
PML4 = 0x9000
PDPT = 0xA000
PAGE_DIRECTORIES = 0xB000  # four pages of 2 MiB entries: the identity map of 4 GiB
PAGE_DIRECTORY_COUNT = 4
CMDLINE = 0x2_0000
CMDLINE_ROOM = 0x1_0000  # including the terminating zero; the kernel's own limit is lower

# Firmware's part of the first MiB. A PC's extended BIOS data area ends base memory here, and
# Linux never uses more of it; the tables lie where Linux looks for them without being told:
# the RSDP in 0xe0000..0xfffff, the MP floating pointer in 0xf0000..0xfffff. (The MP table of 254
# processors is over 5 KiB, too much for the 1 KiB area at EBDA.)
EBDA = 0x9_FC00
PLUG_TABLE = 0xD_0000  # of the device that the guest is told of, where slots come on demand
PLUG_TABLE_SIZE = 0x1000
ACPI = 0xE_0000
ACPI_END = 0xE_F000
GENERATION_ID = 0xE_F000  # 16 bytes in a page of their own; none of it is RAM to the guest
GENERATION_ID_SIZE = 16
MPTABLE = 0xF_0000
BIOS_CALLS = 0xF_FF00  # where every vector of real mode's table goes
RESET_VECTOR = 0xF_FFF0  # where real-mode code jumps to start the machine anew
HIGH_MEMORY = 0x10_0000
KERNEL = 0x100_0000  # 16 MiB, where x86-64 kernels prefer to be

# The gap below 4 GiB holds every memory-mapped device; RAM that would lie in it continues above.
GAP_START = 0xC000_0000
GAP_END = 0x1_0000_0000
# Ports once more, for guests without /dev/port.
BOOT_TIMER_MMIO = 0xC000_0000
DEBUG_EXIT_MMIO = 0xC000_0010
VIRTIO_MMIO = 0xD000_0000
VIRTIO_MMIO_STEP = 0x1000  # a page each, which reads find as memory
IOAPIC = 0xFEC0_0000
LAPIC = 0xFEE0_0000
# Pages that KVM needs on Intel processors to run real mode: one, then three.
KVM_IDENTITY_MAP = 0xFFFB_C000
KVM_TSS = 0xFFFB_D000

IOAPIC_PINS = 24
ISA_IRQS = 16
MAX_VCPUS = 254  # 8-bit APIC ids: 255 is broadcast, and the MP table's IOAPIC needs one

# Lines of the virtio devices, a GSI each, in the order of their slots. What a PC has elsewhere is
# left out (8 the clock, 13 the coprocessor), and so is 9, the GED's.
VIRTIO_GSIS = (5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)

SLOTS_MAX = len(VIRTIO_GSIS)
DEMAND_SLOTS_MAX = 64  # where they come on demand, and share lines when all are taken

# KVM's memory slots, by their numbers.
RAM_MEMSLOT = 0  # and 1
VIRTIO_MEMSLOT = 8

RTC = 0x70  # the index, and the register behind it
RTC_CENTURY = 0x32  # its register of that
RTC_IRQ = 8
COM1 = 0x3F8
COM1_IRQ = 4
DEBUG_EXIT = 0xF4
BOOT_TIMER = 0x505
BOCHS_POWER_OFF = 0x8900
# QEMU's pc-testdev, which is there on request only.
TESTDEV_REGISTER = 0xE0
TESTDEV_FLUSH = 0xE4
TESTDEV_REGISTER_BYTES = 0xE8  # the same register
TESTDEV_LINES = 0x2000  # a port for each pin of the I/O APIC
TESTDEV_MEMORY = 0xFF00_0000

# ACPI hardware-reduced registers; a byte each but the last.
SLEEP_CONTROL = 0x600
SLEEP_STATUS = 0x601
RESET = 0x602
RESET_VALUE = 1
SLEEP_TYPE_S5 = 5
SLEEP_CONTROL_S5 = SLEEP_TYPE_S5 << 2 | 1 << 5  # what a guest writes to switch off (SLP_EN)
# The generic event device: a read of the selector gives the pending events and clears them.
GED_SELECTOR = 0x604
GED_SELECTOR_SIZE = 4
GED_IRQ = 9
GED_POWER_BUTTON = 1 << 0
GED_GENERATION = 1 << 1
GED_PLUG = 1 << 2
PANIC = 0x608  # pvpanic's events, a byte
IB700 = 0x441  # a watchdog of old: stop, and, two ports further, start
PLUG, PLUG_SIZE = 0x620, 8  # the registers of devices/plug.py
PLUG_LEAVER = 0xFF  # of what is on offer: the slot, plus 1, of a device that is to go
ACPI_WATCHDOG = 0x610  # the registers of devices/watchdog.py

# e820 types, as the boot protocols use them.
E820_RAM = 1
E820_RESERVED = 2


def ram_regions(size: int) -> tuple[tuple[int, int], ...]:
    """Return (start, length) of each piece of guest RAM, lowest first.

    `size` is in bytes, a positive multiple of the page size; the lengths add up to it.
    """
    if size <= GAP_START:
        return ((0, size),)
    return (0, GAP_START), (GAP_END, size - GAP_START)


def e820(size: int) -> tuple[tuple[int, int, int], ...]:
    """Return the (start, length, type) entries for `size` bytes of RAM (more than 1 MiB), sorted.

    RAM is what `ram_regions` says less the firmware's piece below 1 MiB, which is reserved.
    """
    (_, low), *rest = ram_regions(size)
    return (
        (0, EBDA, E820_RAM),
        (EBDA, HIGH_MEMORY - EBDA, E820_RESERVED),
        (HIGH_MEMORY, low - HIGH_MEMORY, E820_RAM),
        *((start, length, E820_RAM) for start, length in rest),
    )
