"""The machine's ACPI tables: hardware-reduced, found through the RSDP.

The guest sees RSDP -> XSDT -> FADT (-> DSDT), MADT and others, all in one piece of memory. There is
no fixed hardware: switching off and resetting are a port each, events come by a generic event
device (GED). Source: ACPI 6.4, chapters 4.1, 5.2 and 5.6.9.
"""

from __future__ import annotations

from struct import pack

from .. import layout
from . import aml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_OEM_ID = b"PYVIRT"
_OEM_TABLE_ID = b"PYVIRTVM"
_CREATOR_ID = b"PYVT"
_HEADER_SIZE = 36
_RSDP_SIZE = 36
_ALIGNMENT = 16

# FADT, table 5.10: caches are flushed by WBINVD; the buttons are no fixed hardware.
_WBINVD = 1 << 0
_NO_FIXED_POWER_BUTTON = 1 << 4
_NO_FIXED_SLEEP_BUTTON = 1 << 5
_RESET_REG_SUP = 1 << 10
_HW_REDUCED_ACPI = 1 << 20
# FADT, table 5.11: what not to probe. A clear bit 1 says that there is no 8042.
_NO_VGA = 1 << 2
_NO_MSI = 1 << 3
_NO_ASPM = 1 << 4
_NO_CMOS_RTC = 1 << 5

_ENABLED = 1
_ALL_PROCESSORS_8BIT = 0xFF
_ALL_PROCESSORS_32BIT = 0xFFFF_FFFF
X2APIC_FROM = 255  # the first id that an 8-bit local APIC entry cannot name
_NMI_LINT = 1
_PLUGGED_UID = 0x1000
PLUGS_MAX = 4000  # of the 4095 owners of names that ACPICA has room for
_NOTIFY_BUS_CHECK = 0
_NOTIFY_PRESSED = 0x80
_NOTIFY_NEW_GENERATION = 0x80


class VirtioMmio:
    """A virtio-mmio register window of `size` bytes at `base`, below 4 GiB, with line `gsi`."""

    __slots__ = ("base", "gsi", "size")

    def __init__(self, base: int, size: int, gsi: int) -> None:
        self.base = base
        self.size = size
        self.gsi = gsi


def _checksum(data: bytes) -> int:
    """Return the byte that makes the sum of all bytes 0 modulo 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Return a table of that signature: the header, and `body` behind it."""
    length = _HEADER_SIZE + len(body)
    head = pack("<4sIB", signature, length, revision)
    tail = pack("<6s8sI4sI", _OEM_ID, _OEM_TABLE_ID, 1, _CREATOR_ID, 1) + body
    return head + bytes((_checksum(head + tail),)) + tail


def _io_byte(port: int) -> bytes:
    """Return the Generic Address Structure of a one-byte port."""
    return pack("<BBBBQ", 1, 8, 0, 1, port)


def _rsdp(xsdt: int) -> bytes:
    # The first checksum covers the 20 bytes of revision 0, the second all.
    old = b"RSD PTR " + b"\0" + _OEM_ID + pack("<BI", 2, 0)
    old = old[:8] + bytes((_checksum(old),)) + old[9:]
    new = old + pack("<IQ", _RSDP_SIZE, xsdt)
    return new + bytes((_checksum(new),)) + bytes(3)


def _fadt(dsdt: int, *, rtc: bool) -> bytes:
    flags = (
        _WBINVD
        | _NO_FIXED_POWER_BUTTON
        | _NO_FIXED_SLEEP_BUTTON
        | _RESET_REG_SUP
        | _HW_REDUCED_ACPI
    )
    # The runs of zeros are the fixed hardware (SCI_INT to MON_ALRM, X_PM1a_EVT_BLK to
    # X_GPE1_BLK), which a hardware-reduced machine does not have; nor has it a FACS.
    body = pack(
        "<4xI2x62xBHxI12sB2xB8xQ96x12s12s8s",
        dsdt,
        layout.RTC_CENTURY if rtc else 0,
        _NO_VGA | _NO_MSI | _NO_ASPM | (0 if rtc else _NO_CMOS_RTC),
        flags,
        _io_byte(layout.RESET),
        layout.RESET_VALUE,
        4,  # the minor of revision 6.4
        dsdt,
        _io_byte(layout.SLEEP_CONTROL),
        _io_byte(layout.SLEEP_STATUS),
        b"PYVIRT",
    )
    return table(b"FACP", 6, body)


def _madt(apic_ids: Sequence[int]) -> bytes:
    # No interrupt source override: KVM wires GSI n to IOAPIC pin n, and ISA lines are edge and
    # active high, which is what goes without saying. No PCAT_COMPAT: the 8259s are not used.
    entries = [pack("<II", layout.LAPIC, 0)]
    processors = list(enumerate(apic_ids))
    narrow = [(cpu, apic_id) for cpu, apic_id in processors if apic_id < X2APIC_FROM]
    wide = processors[len(narrow) :]
    entries += [pack("<BBBBI", 0, 8, cpu, apic_id, _ENABLED) for cpu, apic_id in narrow]
    entries += [pack("<BBHIII", 9, 16, 0, apic_id, _ENABLED, cpu) for cpu, apic_id in wide]
    # The id is what KVM's IOAPIC has in its register at reset.
    entries.append(pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC, 0))
    entries.append(pack("<BBBHB", 4, 6, _ALL_PROCESSORS_8BIT, 0, _NMI_LINT))
    if wide:
        entries.append(pack("<BBHIB3x", 10, 12, 0, _ALL_PROCESSORS_32BIT, _NMI_LINT))
    return table(b"APIC", 5, b"".join(entries))


def _com1() -> bytes:
    resources = aml.resource_template(aml.io(layout.COM1, 8), aml.irq(layout.COM1_IRQ))
    return aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(1)),
        aml.name("_CRS", resources),
    )


def _power_button() -> bytes:
    return aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C")))


def _panic() -> bytes:
    """Return pvpanic, by the name that its driver in Linux looks for."""
    return aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_CRS", aml.resource_template(aml.io(layout.PANIC, 1))),
    )


def _generation() -> bytes:
    """Return the VM generation ID, which tells a guest that it is another one than before.

    Source: Microsoft, Virtual Machine Generation ID. Drivers go by either _CID.
    """
    low, high = layout.GENERATION_ID & 0xFFFF_FFFF, layout.GENERATION_ID >> 32
    return aml.device(
        "VGEN",
        aml.name("_HID", aml.string("PYVT0001")),
        aml.name("_CID", aml.package(aml.string("VM_Gen_Counter"), aml.string("VMGENCTR"))),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        aml.name("ADDR", aml.package(aml.integer(low), aml.integer(high))),
    )


def _seat(slot: int) -> str:
    """Return the method whose children are the devices of a slot, and gone when it has run.

    What is below a method's node is that method's own to ACPICA, and deleted when it ends; Linux
    then lets go of the devices there, as of those of a table that is unloaded.
    """
    return f"\\_SB.M{slot:03X}"


def _slot(window: VirtioMmio) -> int:
    return (window.base - layout.VIRTIO_MMIO) // layout.VIRTIO_MMIO_STEP


def _leaver(offer: bytes, target: bytes = aml.ZERO) -> bytes:
    return aml.bit_and(offer, aml.integer(layout.PLUG_LEAVER), target)


def _take_devices() -> bytes:
    """Return what loads table after table, as long as there is one (devices/plug.py).

    What is to go is left to the exit, once.
    """
    offered = aml.store(aml.path("POFR"), aml.LOCAL1)
    seen = aml.path("SEEN")
    return (
        offered
        + aml.while_(
            aml.and_(aml.LOCAL1, aml.not_(_leaver(aml.LOCAL1))),
            aml.load("PTAB", aml.LOCAL0),
            aml.store(aml.LOCAL1, aml.path("PANS")),
            offered,
        )
        + aml.if_(
            aml.and_(aml.LOCAL1, aml.not_(aml.equal(aml.LOCAL1, seen))),
            aml.store(aml.LOCAL1, seen),
            aml.notify("\\_SB.EXIT", _NOTIFY_BUS_CHECK),
        )
    )


def _exit() -> bytes:
    """Return a container whose bus check is what takes devices away.

    Linux calls _OST at a check's end, in the thread and with the lock of all hot-plug, so that it
    is at no other namespace walk of that. The first has the device's node deleted, which Linux
    does the rest about in that thread's next work; behind that is the second check, which answers.
    """
    registers = "\\_SB.GED"
    leave = [
        aml.if_(aml.equal(aml.LOCAL2, aml.integer(slot + 1)), aml.path(_seat(slot)))
        for slot in range(layout.DEMAND_SLOTS_MAX)
    ]
    is_done = aml.equal(aml.LOCAL1, aml.path("GONE"))
    return aml.device(
        "EXIT",
        aml.name("_HID", aml.string("ACPI0004")),
        aml.name("_UID", aml.string("exit")),
        aml.name("GONE", aml.ZERO),
        aml.method(
            "_OST",
            3,
            aml.store(aml.path(f"{registers}.POFR"), aml.LOCAL1),
            _leaver(aml.LOCAL1, aml.LOCAL2),
            aml.if_(
                aml.LOCAL2,
                aml.if_(is_done, aml.store(aml.LOCAL1, aml.path(f"{registers}.PANS"))),
                aml.if_(
                    aml.not_(is_done),
                    *leave,
                    aml.store(aml.LOCAL1, aml.path("GONE")),
                    aml.notify("\\_SB.EXIT", _NOTIFY_BUS_CHECK),
                ),
            ),
            serialized=True,
        ),
    )


def _event_device(*, on_demand: bool) -> bytes:
    """Return the GED: its interrupt's method reads the selector, which says what happened."""
    pressed = aml.bit_and(aml.LOCAL0, aml.integer(layout.GED_POWER_BUTTON))
    is_new = aml.bit_and(aml.LOCAL0, aml.integer(layout.GED_GENERATION))
    regions: tuple[bytes, ...] = ()
    more: tuple[bytes, ...] = ()
    if on_demand:
        plugged = aml.bit_and(aml.LOCAL0, aml.integer(layout.GED_PLUG))
        more = (aml.if_(plugged, _take_devices()),)
        regions = (
            aml.memory_region("PTAB", layout.PLUG_TABLE, layout.PLUG_TABLE_SIZE),
            aml.io_region("PREG", layout.PLUG, layout.PLUG_SIZE),
            aml.dword_field("PREG", ("POFR", 32), ("PANS", 32)),
            aml.name("SEEN", aml.ZERO),
        )
    return aml.device(
        "GED",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_CRS", aml.resource_template(aml.interrupt(layout.GED_IRQ))),
        aml.io_region("EREG", layout.GED_SELECTOR, layout.GED_SELECTOR_SIZE),
        aml.dword_field("EREG", ("ESEL", 8 * layout.GED_SELECTOR_SIZE)),
        *regions,
        aml.method(
            "_EVT",
            1,
            aml.store(aml.path("ESEL"), aml.LOCAL0),
            aml.if_(pressed, aml.notify("\\_SB.PWRB", _NOTIFY_PRESSED)),
            aml.if_(is_new, aml.notify("\\_SB.VGEN", _NOTIFY_NEW_GENERATION)),
            *more,
            serialized=True,
        ),
    )


def _virtio(path: str, uid: int, window: VirtioMmio, *, shared: bool) -> bytes:
    resources = aml.resource_template(
        aml.memory32_fixed(window.base, window.size), aml.interrupt(window.gsi, shared=shared)
    )
    return aml.device(
        path,
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(uid)),
        aml.name("_CCA", aml.integer(1)),
        aml.name("_CRS", resources),
    )


def plugged(number: int, window: VirtioMmio) -> bytes:
    """Return the table of a device that comes while the guest runs.

    `number` is 0 to PLUGS_MAX - 1, and no other's since the machine started: what is loaded stays.
    """
    path = f"{_seat(_slot(window))}.P{number:03X}"
    return table(b"SSDT", 2, _virtio(path, _PLUGGED_UID + number, window, shared=True))


def _rtc() -> bytes:
    return aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", aml.resource_template(aml.io(layout.RTC, 2), aml.irq(layout.RTC_IRQ))),
    )


def _dsdt(devices: Sequence[VirtioMmio], *, rtc: bool, on_demand: bool) -> bytes:
    # \_S5: of the package only the first value counts, the type for the sleep control register.
    off = aml.package(aml.integer(layout.SLEEP_TYPE_S5), aml.ZERO, aml.ZERO, aml.ZERO)
    more = [_rtc()] if rtc else []
    places = [f"V{index:03X}" for index in range(len(devices))]
    if on_demand:
        more += [aml.method(_seat(slot), 0, aml.NOOP) for slot in range(layout.DEMAND_SLOTS_MAX)]
        more.append(_exit())
        places = [
            f"{_seat(_slot(window))}.{place}" for place, window in zip(places, devices, strict=True)
        ]
    more += [
        _virtio(places[index], index, window, shared=on_demand)
        for index, window in enumerate(devices)
    ]
    events = _event_device(on_demand=on_demand)
    body = aml.name("\\_S5", off) + aml.scope(
        "\\_SB", _com1(), _power_button(), _generation(), events, _panic(), *more
    )
    return table(b"DSDT", 2, body)


def build(
    *,
    apic_ids: Sequence[int],
    devices: Sequence[VirtioMmio] = (),
    others: Sequence[bytes] = (),
    rtc: bool = False,
    on_demand: bool = False,
    address: int = layout.ACPI,
) -> tuple[bytes, int]:
    """Return the tables, to be placed at `address`, and the RSDP's physical address.

    `address` is a multiple of 16 below 4 GiB, and within 0xe0000..0xfffff if the guest is to
    find the RSDP by itself. `apic_ids` are the vCPUs', ascending, and `others` are tables beside
    those made here; `rtc` says that there is a clock, and `on_demand` that devices come as tables.
    ValueError when tables at the usual address would run into the MP table.
    """
    image = bytearray(_RSDP_SIZE)

    def place(data: bytes) -> int:
        image.extend(bytes(-len(image) % _ALIGNMENT))
        at = address + len(image)
        image.extend(data)
        return at

    fadt = place(_fadt(place(_dsdt(devices, rtc=rtc, on_demand=on_demand)), rtc=rtc))
    found = [fadt, place(_madt(apic_ids)), *map(place, others)]
    xsdt = place(table(b"XSDT", 1, pack(f"<{len(found)}Q", *found)))
    image[:_RSDP_SIZE] = _rsdp(xsdt)
    if address < layout.ACPI_END < address + len(image):
        raise ValueError(f"{len(devices)} devices: their ACPI tables reach past the room for them")
    return bytes(image), address
