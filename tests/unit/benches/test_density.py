"""What the density benchmark makes of a process's memory."""

from __future__ import annotations

import os

import pytest
from pyvirt.benches.parts import density


@pytest.mark.parametrize(
    ("size", "name", "part"),
    [
        (128 << 20, "", density.GUEST),
        (4096, "[heap]", "C's heap and stacks"),
        (128 << 10, "", "C's heap and stacks"),
        (1 << 20, "", "Python's memory"),
        (4096, "/usr/lib/libc.so.6", "programs and libraries"),
    ],
)
def test_mappings_belong_to_parts(size: int, name: str, part: str) -> None:
    assert density.part_of(size, name) == part


def test_a_process_has_all_parts_and_rows() -> None:
    found = density.memory_rows([os.getpid()])
    assert found.keys() == {density.TABLE.key(row) for row in density.TABLE.rows}
    for kind in density.KINDS:
        whole = found[density.TABLE.key(density.row(kind))]
        parts = [found[density.TABLE.key(density.row(kind, part))][0] for part in density.PARTS]
        assert whole == [pytest.approx(sum(parts))]
        assert min(parts) > 0
