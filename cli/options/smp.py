"""The members of `-smp` that group vCPUs. Imported only when one of them is given."""

from __future__ import annotations

from ...errors import ConfigError
from ...vmm.config import VCPUS_MAX
from ...vmm.topology import APIC_ID_MAX, Topology

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_LEVELS = ("sockets", "dies", "clusters", "cores", "threads")


def topology(text: str, vcpus: int, given: Mapping[str, str]) -> Topology:
    """Return what the members of `-smp text` besides `cpus` say; ConfigError.

    The levels that are given, times the one that is not, are `maxcpus`: which of them is not said
    are cores, then sockets, then threads.
    """
    numbers = {key: _number(text, key, value) for key, value in given.items()}
    most = numbers.pop("maxcpus", 0)
    if numbers.get("clusters", 1) != 1:
        raise ConfigError(f"-smp {text}: x86 has no clusters; leave them out, or give dies")
    counts = {level: numbers.get(level, 1) for level in _LEVELS}
    product = 1
    for count in counts.values():
        product *= count
    wanted = most or max(vcpus, product)
    if wanted < vcpus:
        raise ConfigError(f"-smp {text}: more vCPUs than maxcpus; give maxcpus={vcpus} or more")
    free = [level for level in ("cores", "sockets", "threads") if level not in numbers]
    if product < wanted and free and wanted % product == 0:
        counts[free[0]] = wanted // product
        product = wanted
    if product != wanted:
        terms = " * ".join(f"{counts[level]} {level}" for level in _LEVELS if level in numbers)
        raise ConfigError(
            f"-smp {text}: {terms} is {product}, and not {wanted}, "
            f"{'maxcpus' if most else 'the vCPUs'}; give numbers that multiply to that"
        )
    found = Topology(
        vcpus,
        sockets=counts["sockets"],
        dies=counts["dies"],
        cores=counts["cores"],
        threads=counts["threads"],
    )
    highest = found.apic_id(vcpus - 1)
    if highest > APIC_ID_MAX:
        raise ConfigError(
            f"-smp {text}: the last vCPU's APIC id would be {highest}, of {APIC_ID_MAX} at most; "
            "give fewer, or levels that are powers of two"
        )
    return found


def _number(text: str, key: str, value: str) -> int:
    if key not in (*_LEVELS, "maxcpus"):
        raise ConfigError(f"-smp {text}: no such member as {key}; there are {', '.join(_LEVELS)}")
    is_number = value.isascii() and value.isdigit() and len(value) < 10
    if not is_number or not 1 <= int(value) <= VCPUS_MAX:
        raise ConfigError(f"-smp {text}: {key} is a number from 1 to {VCPUS_MAX}")
    return int(value)
