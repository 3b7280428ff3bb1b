"""The members of -smp: what they group, and what does not multiply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options.parse import parse

from ...refusal import attempt, refusal


def shape(text: str) -> tuple[int, ...]:
    options = parse(["-smp", text])
    found = options.topology
    assert found is not None
    assert found.vcpus == options.smp
    return found.vcpus, found.sockets, found.dies, found.cores, found.threads


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8,maxcpus=8,sockets=1,dies=1,clusters=1,cores=8,threads=1", (8, 1, 1, 8, 1)),
        ("8,threads=2", (8, 1, 1, 4, 2)),
        ("8,sockets=2", (8, 2, 1, 4, 1)),
        ("8,cores=2", (8, 4, 1, 2, 1)),
        ("8,sockets=2,cores=2", (8, 2, 1, 2, 2)),
        ("24,sockets=2,dies=2,cores=3,threads=2", (24, 2, 2, 3, 2)),
        ("2,maxcpus=8,sockets=2", (2, 2, 1, 4, 1)),
        ("1,sockets=2,cores=1,threads=1", (1, 2, 1, 1, 1)),
    ],
)
def test_what_is_grouped(text: str, found: tuple[int, ...]) -> None:
    assert shape(text) == found


def test_without_members_there_is_nothing_to_say() -> None:
    assert parse(["-smp", "4"]).topology is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4,books=1", "no such member as books; there are sockets, dies, clusters, cores, threads"),
        ("4,cores=0", "cores is a number from 1 to 254"),
        ("4,cores=x", "cores is a number from 1 to 254"),
        ("4,threads=", "threads is a number from 1 to 254"),
        ("4,clusters=2", "x86 has no clusters; leave them out, or give dies"),
        ("4,maxcpus=2", "more vCPUs than maxcpus; give maxcpus=4 or more"),
        (
            "4,cores=3",
            "3 cores is 3, and not 4, the vCPUs; give numbers that multiply to that",
        ),
        (
            "4,maxcpus=8,sockets=1,cores=2,threads=2",
            (
                "1 sockets * 2 cores * 2 threads is 4, and not 8, maxcpus; "
                "give numbers that multiply to that"
            ),
        ),
        (
            "252,sockets=84,cores=3",
            (
                "the last vCPU's APIC id would be 334, of 253 at most; "
                "give fewer, or levels that are powers of two"
            ),
        ),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    assert refusal(lambda: parse(["-smp", text])) == f"-smp {text}: {message}"


numbers = st.integers(0, 9).map(str)
members = st.lists(
    st.tuples(
        st.sampled_from(["sockets", "dies", "cores", "threads", "maxcpus", "clusters"]), numbers
    ),
    max_size=5,
    unique_by=lambda member: member[0],
)


@given(st.integers(1, 300), members)
def test_any_members_are_taken_or_refused(vcpus: int, given_: list[tuple[str, str]]) -> None:
    text = ",".join([str(vcpus), *(f"{key}={value}" for key, value in given_)])
    parsed = attempt(lambda: parse(["-smp", text]))
    if parsed is not None and parsed.topology is not None:
        found = parsed.topology
        assert found.sockets * found.dies * found.cores * found.threads >= vcpus
        assert max(found.apic_ids) <= 253
