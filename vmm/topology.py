"""How a machine's vCPUs are sockets, dies, cores and threads, and their APIC ids.

An id has a field for each level, as wide as its count needs: guests take ids apart by widths that
CPUID tells. So ids have gaps where a count is no power of two. Source: Intel SDM volume 3A,
9.9.3 (hierarchical mapping of shared resources); AMD APM volume 3, E.5.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

APIC_ID_MAX = 253  # 8-bit ids: 255 is broadcast, and the MP table's IOAPIC needs one


class Topology:
    """The first `vcpus` threads of so many sockets, each of so many dies of cores of threads."""

    __slots__ = ("cores", "dies", "sockets", "threads", "vcpus")

    def __init__(
        self, vcpus: int, *, sockets: int = 1, dies: int = 1, cores: int = 0, threads: int = 1
    ) -> None:
        """`cores` are those of a die, 0 for as many as hold the vCPUs."""
        self.vcpus = vcpus
        self.sockets = sockets
        self.dies = dies
        self.cores = cores or -(-vcpus // (sockets * dies * threads))
        self.threads = threads

    @property
    def in_socket(self) -> int:
        """Return the threads of a socket."""
        return self.dies * self.cores * self.threads

    @property
    def thread_bits(self) -> int:
        """Return the width of a thread's number in its core."""
        return (self.threads - 1).bit_length()

    @property
    def die_shift(self) -> int:
        """Return how far an APIC id is shifted right to tell dies apart."""
        return self.thread_bits + (self.cores - 1).bit_length()

    @property
    def socket_shift(self) -> int:
        """Return how far an APIC id is shifted right to tell sockets apart."""
        return self.die_shift + (self.dies - 1).bit_length()

    def place(self, vcpu: int) -> tuple[int, int, int, int]:
        """Return the numbers of a vCPU's socket, die in that, core in that, and thread in that."""
        core, thread = divmod(vcpu, self.threads)
        die, core = divmod(core, self.cores)
        socket, die = divmod(die, self.dies)
        return socket, die, core, thread

    def apic_id(self, vcpu: int) -> int:
        """Return the APIC id of a vCPU."""
        socket, die, core, thread = self.place(vcpu)
        return (
            socket << self.socket_shift | die << self.die_shift | core << self.thread_bits | thread
        )

    @property
    def apic_ids(self) -> Sequence[int]:
        """Return the APIC ids of all vCPUs, by index."""
        return [self.apic_id(vcpu) for vcpu in range(self.vcpus)]
