"""KTAP and TAP: every shape that kernels print, and whatever else may come."""

from __future__ import annotations

from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.harness.plugin import ktap
from pyvirt.harness.plugin.ktap import LINE_MAX, Lines, Parser, Point

KUNIT = """\
    [    0.310001] printk: console enabled
    [    0.381914] KTAP version 1
    [    0.381921] 1..2
    [    0.382002]     # queue: initializing suite
    [    0.382008]     KTAP version 1
    [    0.382011]     # Subtest: queue
    [    0.382013]     # module: queue_test
    [    0.382015]     1..3
    [    0.382190]     ok 1 queue_is_empty
    [    0.382301]         KTAP version 1
    [    0.382303]         # Subtest: queue_wraps
    [    0.382440]         ok 1 size 3
    [    0.382592]     # queue_wraps: EXPECTATION FAILED at lib/queue_test.c:88
    [    0.382592]     Expected head == 4, but
    [    0.382592]         head == 3 (0x3)
    [    0.382700]         not ok 2 size 4
    [    0.382705]     # queue_wraps: pass:1 fail:1 skip:0 total:2
    [    0.382707]     not ok 2 queue_wraps
    [    0.382800]     ok 3 queue_sleeps # SKIP no timer here
    [    0.382802] # queue: pass:1 fail:1 skip:1 total:3
    [    0.382804] # Totals: pass:2 fail:1 skip:1 total:4
    [    0.382806] not ok 1 queue
    [    0.383000]     KTAP version 1
    [    0.383001]     # Subtest: ring
    [    0.383002]     1..1
    [    0.383101]     ok 1 ring_turns
    [    0.383102] ok 2 ring
    [    0.400000] Freeing unused kernel image (initmem) memory: 1024K
"""


def read(text: str, crash: str = "") -> list[Point]:
    parser = Parser()
    for line in dedent(text).splitlines(keepends=True):
        parser.feed(line)
    if crash:
        parser.crashed(crash)
    return parser.finish()


def brief(points: list[Point]) -> list[tuple[str, str]]:
    return [(point.title, point.outcome) for point in points]


def told(points: list[Point]) -> list[tuple[str, str, str]]:
    return [(point.title, point.outcome, point.reason) for point in points]


def test_kunit() -> None:
    points = read(KUNIT)
    assert brief(points) == [
        ("queue > queue_is_empty", "passed"),
        ("queue > queue_wraps > size 3", "passed"),
        ("queue > queue_wraps > size 4", "failed"),
        ("queue > queue_wraps", "failed"),
        ("queue > queue_sleeps", "skipped"),
        ("queue", "failed"),
        ("ring > ring_turns", "passed"),
        ("ring", "passed"),
    ]
    assert points[4].reason == "no timer here"
    # The lines of a point are its own, none of what came before the log.
    assert "EXPECTATION FAILED" in points[2].lines[0]
    assert points[2].lines[-1].endswith("not ok 2 size 4")
    assert "console enabled" not in points[0].lines[0]
    assert points[0].number == 1
    assert points[0].path == ("queue",)


@pytest.mark.parametrize("stamp", ["[   12.345678][    T1] ", "[    0.000001][C0] ", "<6>[  1.0] "])
def test_stamps(stamp: str) -> None:
    text = "".join(stamp + line[15:] + "\n" for line in dedent(KUNIT).splitlines())
    assert brief(read(text)) == brief(read(KUNIT))


def test_kselftests_runner() -> None:
    points = read("""\
        TAP version 13
        1..5
        # timeout set to 45
        # selftests: locks: fair
        # TAP version 13
        # 1..2
        # # a remark
        # ok 1 fair.first
        # not ok 2 fair.second
        # # Totals: pass:1 fail:1 xfail:0 xpass:0 skip:0 error:0
        not ok 1 selftests: locks: fair # exit=1
        # selftests: locks: slow
        not ok 2 selftests: locks: slow # TIMEOUT 45 seconds
        # selftests: locks: absent
        ok 3 selftests: locks: absent # SKIP
        # selftests: locks: known
        ok 4 selftests: locks: known # XFAIL not yet
        # selftests: locks: bad
        not ok 5 selftests: locks: bad # ERROR it broke
    """)
    assert told(points) == [
        ("selftests: locks: fair > fair.first", "passed", ""),
        ("selftests: locks: fair > fair.second", "failed", ""),
        ("selftests: locks: fair", "failed", "exit=1"),
        ("selftests: locks: slow", "failed", "45 seconds"),
        ("selftests: locks: absent", "skipped", ""),
        ("selftests: locks: known", "xfailed", "not yet"),
        ("selftests: locks: bad", "error", "it broke"),
    ]


@pytest.mark.parametrize("indent", ["  ", "    ", "\t", "# ", "# # ", "\t  "])
def test_every_way_to_nest(indent: str) -> None:
    text = f"1..1\n{indent}1..2\n{indent}ok 1 a\n{indent}ok 2 b\nok 1 c\n"
    assert brief(read(text)) == [("#1 > a", "passed"), ("#1 > b", "passed"), ("c", "passed")]


def test_tap_14_names_a_subtest_ahead_of_it() -> None:
    points = read("""\
        TAP version 14
        1..2
        # Subtest: outer
            1..1
            # Subtest: inner
                ok 1 x
                1..1
            ok 1 - inner
        ok 1 - outer
        ok 2 - plain
    """)
    assert [point.title for point in points] == [
        *("outer > inner > x", "outer > inner", "outer", "plain"),
    ]


def test_no_plan_no_version_no_numbers() -> None:
    assert brief(read("ok - a\nnoise\nnot ok b\nok\n")) == [
        ("a", "passed"),
        ("b", "failed"),
        ("#3", "passed"),
    ]


@pytest.mark.parametrize(
    ("line", "outcome", "name", "reason"),
    [
        ("ok 1 a # SKIP b c", "skipped", "a", "b c"),
        ("not ok 1 a # SKIP b", "skipped", "a", "b"),
        ("ok 1 # SKIP b", "skipped", "", "b"),
        ("ok 1 a #skip: b", "skipped", "a", "b"),
        ("ok 1 a # TODO b", "xfailed", "a", "b"),
        ("not ok 1 a # TODO", "xfailed", "a", ""),
        ("not ok 1 a # XFAIL b", "xfailed", "a", "b"),
        ("not ok 1 a # TIMEOUT 9 s", "failed", "a", "9 s"),
        ("ok 1 a # TIMEOUT", "failed", "a", ""),
        ("ok 1 a # ERROR", "error", "a", ""),
        ("ok 1 a # a note", "passed", "a", "a note"),
        ("ok 1 a # SKIPPING is no directive", "passed", "a", "SKIPPING is no directive"),
        (r"ok 1 a \# SKIP \\b", "passed", r"a # SKIP \b", ""),
        ("ok 1 issue #7", "passed", "issue #7", ""),
        ("ok 1 - a - b", "passed", "a - b", ""),
        ("ok 1a", "passed", "1a", ""),
    ],
)
def test_directives(line: str, outcome: str, name: str, reason: str) -> None:
    (point,) = read(line)
    assert (point.outcome, point.name, point.reason) == (outcome, name, reason)


@pytest.mark.parametrize(
    "line",
    ["okay 1 a", "ok, fine", "not okay", "  OK 1", "nok 1", "1..x", "1..2..3", "KTAP", "#ok"],
)
def test_what_is_no_point(line: str) -> None:
    assert told(read(line)) == [("the whole", "failed", "no test points")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1..3\nok 1\n", "incomplete: 1 of 3"),
        ("1..1\nok 1\nok 2\n", "too many points: 2 of 1"),
        ("1..2\nok 1\nok 1\n", "point 1 where 2 was to come"),
        ("ok 1\nok 3\n", "point 3 where 2 was to come"),
        ("1..1\n1..2\nok 1\nok 2\n", "a second plan: 1..2 after 1..1"),
        ("1..2\nok 1\nBail out! no memory\n", "bailed out: no memory"),
    ],
)
def test_what_is_wrong_with_a_log_fails_it(text: str, reason: str) -> None:
    points = read(text)
    assert told(points)[-1] == ("the whole", "failed", reason)
    assert all(point.outcome == "passed" for point in points[:-1])
    # Within a level, its parent fails instead.
    nested = "".join(f"  {line}\n" for line in text.splitlines()) + "ok 1 parent\nok 2 other\n"
    assert told(read(nested))[-2:] == [("parent", "failed", reason), ("other", "passed", "")]


def test_wrong_two_levels_below_fails_what_is_between() -> None:
    points = read("1..1\n    1..2\n    ok 1 a\n  ok 1 b\nok 1 c\n")
    assert told(points)[1:] == [("#1 > b", "failed", "incomplete: 1 of 2"), ("c", "passed", "")]


@pytest.mark.parametrize("directive", ["# SKIP", "# XFAIL known", "# a note"])
def test_no_directive_hides_a_broken_level(directive: str) -> None:
    points = read(f"  1..2\n  ok 1 a\nok 1 b {directive}\n")
    assert told(points)[-1] == ("b", "failed", "incomplete: 1 of 2")


def test_a_level_without_its_parent() -> None:
    assert told(read("ok 1 a\n  1..2\n  ok 1 b\n"))[-1] == (
        "the whole",
        "failed",
        "incomplete: 1 of 2",
    )


def test_parent_that_fails_though_its_children_pass() -> None:
    assert brief(read("  ok 1 a\nnot ok 1 b\n"))[-1] == ("b", "failed")


def test_two_logs_in_a_row() -> None:
    points = read("TAP version 13\n1..2\nok 1 a\nTAP version 13\n1..1\nok 1 b\n")
    assert told(points) == [
        ("a", "passed", ""),
        ("the whole", "failed", "incomplete: 1 of 2"),
        ("b", "passed", ""),
    ]


@pytest.mark.parametrize("text", ["", "KTAP version 1\n", "TAP version 13\n1..0\n", "noise\n"])
def test_nothing_is_a_failure(text: str) -> None:
    assert told(read(text)) == [("the whole", "failed", "no test points")]


def test_all_skipped() -> None:
    assert told(read("1..0 # SKIP not here\n")) == [("the whole", "skipped", "SKIP not here")]


def test_crash_within_a_suite() -> None:
    text = KUNIT[: KUNIT.index("    [    0.382700]")]
    assert told(read(text, "panicked: not syncing"))[-6:] == [
        ("queue > queue_wraps > size 3", "passed", ""),
        ("queue > queue_wraps > #2", "crashed", "panicked: not syncing"),
        ("queue > queue_wraps", "failed", "did not get beyond #2"),
        ("queue > #3", "not-run", "not run"),
        ("queue", "failed", "did not get beyond queue_wraps"),
        ("#2", "not-run", "not run"),
    ]


def test_crash_of_a_program_that_the_runner_named() -> None:
    points = read("TAP version 13\n1..9\n# selftests: a: b\nBUG: boom\n", "oops")
    assert told(points) == [
        ("selftests: a: b", "crashed", "oops"),
        ("#2 to #9", "not-run", "not run"),
    ]
    assert points[0].lines[-1] == "BUG: boom"


def test_crash_between_the_last_child_and_its_parent() -> None:
    points = read("1..1\n  # Subtest: a\n  1..1\n  ok 1 b\n", "oops")
    assert told(points) == [("a > b", "passed", ""), ("a", "crashed", "oops")]


def test_crash_before_and_after_everything() -> None:
    assert told(read("", "oops")) == [("the whole", "crashed", "after the last point: oops")]
    assert told(read("1..1\nok 1 a\n", "oops"))[-1] == (
        "the whole",
        "crashed",
        "after the last point: oops",
    )


def test_nothing_counts_after_a_crash() -> None:
    parser = Parser()
    parser.crashed("oops")
    parser.feed("ok 1 a")
    parser.crashed("again")
    assert len(parser.finish()) == 1


def test_points_are_told_as_they_come() -> None:
    seen: list[Point] = []
    parser = Parser(seen.append)
    parser.feed("ok 1 a\n")
    assert [point.name for point in seen] == ["a"]
    assert parser.finish() == seen


def test_depth_count_and_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ktap, "POINTS_MAX", 10)
    parser = Parser()
    for i in range(1000):
        parser.feed("noise " + "x" * 10_000)
        parser.feed(" " * i + "ok 1 a")
    points = parser.finish()
    assert len(points) == 11
    assert points[-1].reason == "6 points are left out: more than 10"
    assert max(len(point.path) for point in points) == 9
    assert all(len(point.lines) <= ktap.LINES_MAX for point in points)
    assert max(len(line) for point in points for line in point.lines) <= LINE_MAX


def test_escape_sequences_stay_out() -> None:
    (point,) = read("ok 1 a\x1b[2Jb\x00\n")
    assert point.name == "a\ufffd[2Jb\ufffd"


@given(st.lists(st.binary(max_size=30)), st.booleans())
def test_any_bytes(chunks: list[bytes], crash: bool) -> None:
    lines, parser = Lines(), Parser()
    for chunk in chunks:
        for line in lines.feed(chunk):
            parser.feed(line)
    for line in lines.end():
        parser.feed(line)
    if crash:
        parser.crashed("x")
    assert parser.finish()


WORDS = ["ok 1 a", "not ok", "1..3", "1..0 # SKIP", "KTAP version 1", "# Subtest: s", "Bail out!",
         "# selftests: p", "noise", "ok 2 # TODO", "ok 999999999", "1..999999999"]  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(["", " ", "  ", "\t", "# "]), st.sampled_from(WORDS))),
    st.booleans(),
)
def test_any_lines(lines: list[tuple[str, str]], crash: bool) -> None:
    parser = Parser()
    for indent, word in lines:
        parser.feed(indent + word)
    if crash:
        parser.crashed("x")
    points = parser.finish()
    assert points
    assert crash == any(point.outcome == "crashed" for point in points)


@given(st.binary(), st.integers(1, 7))
def test_lines_do_not_depend_on_the_pieces(data: bytes, size: int) -> None:
    lines = Lines()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    found = [line for piece in pieces for line in lines.feed(piece)] + lines.end()
    whole = Lines()
    assert found == whole.feed(data) + whole.end()


def test_a_line_without_end_is_cut() -> None:
    lines = Lines()
    assert sum(len(lines.feed(b"x" * 100_000)) for _ in range(10)) == 0
    (line, short) = lines.feed(b"\nshort\r\n")
    assert line == "x" * LINE_MAX
    assert short == "short"


Tree = tuple[str, str, str, list["Tree"]]
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1).map("n{}".format)
MARKS = {"passed": ("ok", ""), "failed": ("not ok", ""), "skipped": ("ok", " # SKIP why"),
         "xfailed": ("not ok", " # XFAIL why"), "error": ("not ok", " # ERROR why")}  # fmt: skip
TREES: st.SearchStrategy[list[Tree]] = st.recursive(
    st.just([]),
    lambda below: st.lists(
        st.tuples(
            NAMES, st.sampled_from(sorted(MARKS)), st.sampled_from(["  ", "\t", "# "]), below
        ),
        max_size=4,
    ),
    max_leaves=12,
)


def write(trees: list[Tree], indent: str, path: tuple[str, ...]) -> tuple[list[str], list[Point]]:
    lines = [f"{indent}1..{len(trees)}"]
    points = []
    for number, (name, outcome, step, below) in enumerate(trees, 1):
        if below:
            inner = [f"{indent}{step}KTAP version 1", f"{indent}{step}# Subtest: {name}"]
            more, found = write(below, indent + step, (*path, name))
            lines += ["noise", *inner, *more]
            points += found
        word, rest = MARKS[outcome]
        lines.append(f"{indent}{word} {number} {name}{rest}")
        points.append(Point(number, name, outcome, "why" if rest else "", (), path))
    return lines, points


@given(TREES.filter(bool))
def test_what_is_written_is_read(trees: list[Tree]) -> None:
    lines, points = write(trees, "", ())
    found = read("\n".join(["KTAP version 1", *lines]))
    assert [point._replace(lines=()) for point in found] == points
