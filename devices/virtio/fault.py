"""Faults that a device commits because a test asks for them; native/virtio/fault.h has the rules.

A machine's reset and an unplugging remove a device's rules; a driver's reset does not, which may
be the driver's answer to a fault.
"""

from __future__ import annotations

import errno

from ...errors import ConfigError
from ...native import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

DISK = ("read", "write", "flush", "discard", "write-zeroes")
NIC = ("rx", "tx")
INTERRUPT = ("interrupt",)
# In the order of their bits.
OPERATIONS = (*DISK, *NIC, *INTERRUPT)
# What a fault does, and what it can do it to; in the order of their numbers, from 1.
KINDS = {
    "delay": DISK,
    "fail": DISK,
    "drop": OPERATIONS,
    "corrupt": ("read",),
    "double": INTERRUPT,
}
_WITH_SECTORS = ("read", "write")
_LAST = (1 << 64) - 1


class Fault:
    """A rule: what happens to which requests, packets or interrupts of a device."""

    __slots__ = (
        "after",
        "count",
        "delay_ns",
        "errno",
        "every",
        "kind",
        "offset",
        "ops",
        "sectors",
    )

    def __init__(
        self,
        kind: str,
        ops: Sequence[str] = (),
        *,
        errno: int = 5,
        delay_ns: int = 0,
        offset: int = 0,
        sectors: tuple[int, int] | None = None,
        after: int = 0,
        every: int = 1,
        count: int = 0,
    ) -> None:
        """`kind` is one of KINDS, `ops` are some of what it can be done to; none: what there is.

        `delay` waits `delay_ns`; `fail` answers with `errno` (EOPNOTSUPP: that it is not supported,
        any other: an I/O error; 5 is EIO); `corrupt` turns the byte at `offset` of the data. With
        `sectors`, first and last, only reads and writes that touch one of them count. It strikes
        each `every`-th after the first `after`, `count` times, 0: for ever.
        """
        self.kind = kind
        self.ops = tuple(ops)
        self.errno = errno
        self.delay_ns = delay_ns
        self.offset = offset
        self.sectors = sectors
        self.after = after
        self.every = every
        self.count = count


class FaultState:
    """A rule in force: how often there was something for it (`seen`), and it struck (`hits`)."""

    __slots__ = ("fault", "hits", "id", "seen")

    def __init__(self, id: int, fault: Fault, seen: int, hits: int) -> None:  # noqa: A002
        self.id = id
        self.fault = fault
        self.seen = seen
        self.hits = hits


class Faults:
    """The rules of one device, which are in its transport; any thread."""

    __slots__ = ("_able", "_break", "_irq", "_kick", "_name", "_rules")

    def __init__(
        self,
        name: str,
        irq: Any,
        *,
        operations: Callable[[], tuple[str, ...]],
        kick: Callable[[], None],
        break_device: Callable[[str], None],
    ) -> None:
        """`name` is the device's, `irq` the struct pv_virtio_irq.

        `operations` is the device's. `kick` lets all its queues be looked at; `break_device`
        lets it need a reset for a reason, ConfigError when no driver is at work.
        """
        self._name = name
        self._irq = irq
        self._able = operations
        self._kick = kick
        self._break = break_device
        self._rules = lib.pv_virtio_irq_faults(irq)

    def add(self, fault: Fault) -> int:
        """Begin with a fault and return its id; ConfigError when the device cannot."""
        ops = self._operations(fault)
        first, last = fault.sectors or (0, _LAST)
        words = {
            "kind": 1 + list(KINDS).index(fault.kind),
            "ops": sum(1 << OPERATIONS.index(op) for op in set(ops)),
            "error": fault.errno,
            "delay_ns": fault.delay_ns,
            "offset": fault.offset,
            "first": first,
            "last": last,
            "after": fault.after,
            "every": fault.every,
            "count": fault.count,
        }
        result = lib.pv_faults_add(self._rules, ffi.new("struct pv_fault *", words))
        if result == -errno.ENOSPC:
            raise ConfigError(f"{self._name}: {lib.PV_FAULT_RULES} faults is the most; clear some")
        check(result, f"{self._name}: fault")
        self._kick()
        return int(result)

    def _operations(self, fault: Fault) -> tuple[str, ...]:
        """Return what the fault is to strike."""
        name, able = self._name, self._able()
        if not able:
            raise ConfigError(f"{name}: the kernel does its work (vhost); give vhost=off")
        fitting = [op for op in KINDS[fault.kind] if op in able]
        if not fitting:
            kinds = ", ".join(kind for kind, ops in KINDS.items() if set(ops) & set(able))
            raise ConfigError(f"{name}: no fault {fault.kind}; there are {kinds}")
        if fault.sectors is not None:
            fitting = [op for op in fitting if op in _WITH_SECTORS]
            if not fitting:
                raise ConfigError(f"{name}: no fault {fault.kind} of sectors; leave them out")
        for op in fault.ops:
            if op not in fitting:
                raise ConfigError(
                    f"{name}: fault {fault.kind}"
                    f"{' of sectors' if fault.sectors else ''} is not for {op}, "
                    f"but for {', '.join(fitting)}"
                )
        # Interrupts only where they are asked for, or all there is.
        return fault.ops or tuple(op for op in fitting if op != "interrupt") or INTERRUPT

    def clear(self, id: int = 0) -> None:  # noqa: A002
        """Remove a rule, or all; what it kept goes on. ConfigError: there is none of that id."""
        if lib.pv_faults_remove(self._rules, id) < 0:
            raise ConfigError(f"{self._name}: has no fault {id}")
        left = [state.fault for state in self.states()]
        if not any(fault.kind == "drop" and "interrupt" in fault.ops for fault in left):
            lib.pv_virtio_irq_make_up(self._irq)
        self._kick()

    def states(self) -> list[FaultState]:
        """Return the rules, those that are spent among them, in the order of their ids."""
        state = ffi.new("struct pv_fault_state *")
        found: list[FaultState] = []
        while lib.pv_faults_read(self._rules, len(found), state) == 0:
            rule = state.fault
            whole = (rule.first, rule.last) == (0, _LAST)
            fault = Fault(
                list(KINDS)[rule.kind - 1],
                [op for bit, op in enumerate(OPERATIONS) if rule.ops >> bit & 1],
                errno=rule.error,
                delay_ns=rule.delay_ns,
                offset=rule.offset,
                sectors=None if whole else (rule.first, rule.last),
                after=rule.after,
                every=rule.every,
                count=rule.count,
            )
            found.append(FaultState(state.id, fault, state.seen, state.hits))
        return found

    def break_device(self) -> None:
        """Let the device need a reset; ConfigError when no driver is at work."""
        self._break("somebody asked for DEVICE_NEEDS_RESET")
