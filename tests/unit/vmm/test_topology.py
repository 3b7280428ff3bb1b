"""Where vCPUs are, and what their APIC ids say of that."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from pyvirt.vmm.topology import Topology

levels = st.integers(1, 6)


def test_cores_of_one_socket_unless_said() -> None:
    found = Topology(5)
    assert (found.sockets, found.dies, found.cores, found.threads) == (1, 1, 5, 1)
    assert list(found.apic_ids) == [0, 1, 2, 3, 4]


def test_ids_have_gaps() -> None:
    found = Topology(12, sockets=2, cores=3, threads=2)
    assert list(found.apic_ids) == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
    assert found.place(11) == (1, 0, 2, 1)


@given(levels, levels, levels, levels, st.data())
def test_an_id_tells_the_place(
    sockets: int, dies: int, cores: int, threads: int, data: st.DataObject
) -> None:
    whole = sockets * dies * cores * threads
    assume(whole <= 254)
    vcpus = data.draw(st.integers(1, whole))
    found = Topology(vcpus, sockets=sockets, dies=dies, cores=cores, threads=threads)
    ids = found.apic_ids
    assert list(ids) == sorted(set(ids))
    for vcpu, apic_id in enumerate(ids):
        socket, die, core, thread = found.place(vcpu)
        assert apic_id >> found.socket_shift == socket
        assert apic_id >> found.die_shift == socket << (found.socket_shift - found.die_shift) | die
        in_die = apic_id & ((1 << found.die_shift) - 1)
        assert (in_die >> found.thread_bits, in_die & ((1 << found.thread_bits) - 1)) == (
            core, thread,
        )  # fmt: skip
        assert ((socket * dies + die) * cores + core) * threads + thread == vcpu
