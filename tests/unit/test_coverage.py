"""What `make coverage` makes of llvm-cov's words."""

from __future__ import annotations

from pyvirt.native.build import HERE

from ..coverage import Sum, ranges, read, table

LCOV = f"""\
SF:{HERE}/net/a.c
FNDA:3,f
DA:1,4
DA:2,0
DA:3,0
DA:9,0
BRDA:1,0,0,4
BRDA:1,0,1,-
end_of_record
SF:{HERE}/b.c
DA:7,1
end_of_record
SF:{HERE}/sandbox/programs.c
DA:1,0
end_of_record
SF:/usr/include/stdio.h
DA:1,0
end_of_record
"""


def test_only_what_is_ours_counts() -> None:
    files = read(LCOV)
    assert set(files) == {"net/a.c", "b.c"}
    assert files["net/a.c"].missed() == [2, 3, 9]
    assert Sum.of(files.values()) == Sum(5, 2, 2, 1)


def test_lines_that_never_ran_are_named_by_their_file() -> None:
    lines = [line.split() for line in table(read(LCOV))]
    assert ["a.c", "1/4", "25.0", "%", "1/2", "50.0", "%", "2-3,", "9"] in lines
    assert ["net/", "1/4", "25.0", "%", "1/2", "50.0", "%"] in lines
    assert lines[-1] == ["total", "2/5", "40.0", "%", "1/2", "50.0", "%"]


def test_ranges() -> None:
    assert ranges([1, 3, 4, 5, 9]) == "1, 3-5, 9"
    assert ranges([]) == ""
