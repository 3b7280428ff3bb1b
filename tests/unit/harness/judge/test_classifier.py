"""Where a report begins and ends, what belongs to it, and that the log may come in any pieces."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.harness.judge import classifier
from pyvirt.harness.judge.classifier import LINES_MAX, QUIET_S, SPLATS_MAX, Classifier
from pyvirt.harness.judge.splat import Splat
from pyvirt.harness.judge.verdict import Verdict

from ..kernel_log import BOOT, kasan, lockdep, oops, panic, stall, stamped, warning

HUNG, OOPSED, PANICKED, WARNED = Verdict.HUNG, Verdict.OOPSED, Verdict.PANICKED, Verdict.WARNED


def found(*pieces: bytes, gap: float = 0.0) -> list[Splat]:
    """Return the reports in a log that comes in these pieces, `gap` seconds apart."""
    splats: list[Splat] = []
    one = Classifier(splats.append)
    for number, piece in enumerate(pieces):
        one.feed(piece, number * gap)
    one.finish()
    return splats


def kinds(*pieces: bytes, gap: float = 0.0) -> list[Verdict]:
    return [splat.kind for splat in found(*pieces, gap=gap)]


def ends(splat: Splat) -> tuple[str, str]:
    """Return the messages of its first and last line."""
    return splat.lines[0].partition("] ")[2], splat.lines[-1].partition("] ")[2]


@pytest.mark.parametrize(
    ("text", "kind", "last"),
    [
        (warning(), WARNED, "---[ end trace 0000000000000000 ]---"),
        (oops(), OOPSED, "---[ end trace 0000000000000000 ]---"),
        (panic(), PANICKED, "---[ end Kernel panic - not syncing: sysrq triggered crash ]---"),
        (kasan(), WARNED, "=" * 66),
        (lockdep(), WARNED, " </TASK>"),
        (stall("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:81]"), HUNG, " </TASK>"),
        (stall("rcu: INFO: rcu_preempt self-detected stall on CPU"), HUNG, " </TASK>"),
        (stall("INFO: task sh:81 blocked for more than 120 seconds."), HUNG, " </TASK>"),
    ],
)
def test_from_the_first_line_to_the_last(text: str, kind: Verdict, last: str) -> None:
    log = stamped(BOOT + text + "frob: later news\nfrob: and more\n")
    (one,) = found(log)
    assert one.kind == kind
    assert ends(one)[1] == last
    # It starts where its mark says, at the stamp.
    assert log[one.mark :].startswith(one.lines[0].encode())
    assert len(one.lines) < len(text.splitlines()) + 1


def test_a_panic_takes_the_oops_that_led_to_it() -> None:
    (one,) = found(stamped(BOOT + oops("frob") + panic("Fatal exception")))
    assert one.kind == PANICKED
    assert one.title == (
        "Kernel panic - not syncing: Fatal exception (BUG: kernel NULL pointer dereference in frob)"
    )
    first, last = ends(one)
    assert first.startswith("BUG: kernel NULL pointer")
    assert last.startswith("---[ end Kernel panic")


def test_a_panic_takes_the_warning_that_it_interrupts() -> None:
    text = warning().partition("Modules linked")[0] + panic("kernel: panic_on_warn set ...")
    (one,) = found(stamped(BOOT + text))
    assert one.kind == PANICKED
    assert one.title == (
        "Kernel panic - not syncing: kernel: panic_on_warn set (WARNING: at drivers/frob.c:91 frob)"
    )


def test_a_panic_much_later_is_another_story() -> None:
    log = stamped(BOOT + oops()), stamped(panic())
    assert kinds(*log, gap=QUIET_S / 2) == [PANICKED]
    assert kinds(*log, gap=QUIET_S * 2) == [OOPSED, PANICKED]
    chatter = stamped("news\n" * (LINES_MAX + 1))
    assert kinds(log[0], chatter, log[1]) == [OOPSED, PANICKED]


def test_an_oops_in_a_warning_is_one_report() -> None:
    text = warning().partition("Modules linked")[0] + oops()
    (one,) = found(stamped(BOOT + text))
    assert (one.kind, one.title) == (OOPSED, "BUG: kernel NULL pointer dereference in frob")


def test_lesser_lines_in_a_report_are_part_of_it() -> None:
    text = oops().replace("PGD 0", "BUG: scheduling while atomic: sh/81/0x00000002\nPGD 0")
    assert kinds(stamped(BOOT + text)) == [OOPSED]
    text = panic().replace("Kernel Offset", "WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2\nKernel Off")
    assert kinds(stamped(BOOT + text)) == [PANICKED]


def test_one_after_the_other() -> None:
    log = stamped(BOOT + warning("one") + warning("two") + oops() + kasan() + panic())
    assert kinds(log) == [WARNED, WARNED, OOPSED, PANICKED]
    # The same without the lines that end them.
    text = "".join(f"INFO: task t{n}:{n} blocked for more than 120 seconds.\n" for n in range(3))
    assert kinds(stamped(BOOT + text)) == [HUNG] * 3


def test_silence_ends_a_report() -> None:
    splats: list[Splat] = []
    one = Classifier(splats.append)
    head = "BUG: unable to handle page fault for address: ffffc90000010000\n#PF: error\n"
    one.feed(stamped(BOOT + head), 10.0)
    assert one.poll(10.0) == pytest.approx(QUIET_S)
    one.feed(stamped("another line\n"), 10.4)
    assert one.poll(10.8) == pytest.approx(0.1)
    assert splats == []
    assert one.poll(10.9) is None
    assert [len(splat.lines) for splat in splats] == [3]
    assert one.poll(99.0) is None


def test_a_complete_report_waits_for_a_panic_no_longer_than_that() -> None:
    splats: list[Splat] = []
    one = Classifier(splats.append)
    one.feed(stamped(BOOT + warning()), 10.0)
    one.feed(stamped("news\n"), 10.4)
    assert splats == []
    assert one.poll(10.4) == pytest.approx(0.1)
    one.feed(stamped("more news\n"), 10.5)
    assert len(splats) == 1


def test_the_next_boot_ends_a_report() -> None:
    log = stamped(BOOT + panic(ends=False)) + stamped(BOOT, 0.0) + stamped("init: hello\n")
    (one,) = found(log)
    assert ends(one)[1] == "Kernel Offset: disabled"


def test_a_report_that_does_not_end_is_cut() -> None:
    text = "kernel BUG at a.c:1!\n" + "noise\n" * (3 * LINES_MAX)
    (one,) = found(stamped(BOOT + text))
    assert len(one.lines) == LINES_MAX


# What else is on the line, and on the console.


@pytest.mark.parametrize("caller", ["", "[    T1]", "[   C0]", "[T12345]"])
@pytest.mark.parametrize("level", ["", "<4>", "<0>"])
def test_what_printk_puts_before_messages(caller: str, level: str) -> None:
    log = stamped(BOOT + oops() + panic("Fatal exception"), caller=caller, level=level)
    (one,) = found(log)
    assert one.kind == PANICKED
    assert one.title.endswith("(BUG: kernel NULL pointer dereference in frob)")
    assert one.lines[-1].endswith("---[ end Kernel panic - not syncing: Fatal exception ]---")
    assert all(line.startswith("[") for line in one.lines)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\r\n"])
def test_ends_of_lines(end: bytes) -> None:
    (one,) = found(stamped(BOOT + warning()).replace(b"\r\n", end))
    assert not any("\r" in line for line in one.lines)


def test_what_programs_print_is_not_the_kernel_s() -> None:
    noise = b"Kernel panic - not syncing: a test's name\nBUG: mine\nOops: 0000 [#1]\n"
    assert found(stamped(BOOT) + noise) == []
    lines = stamped(warning()).splitlines(keepends=True)
    (one,) = found(stamped(BOOT) + b"BUG: of a program\n".join(lines))
    assert one.kind == WARNED
    assert not any("program" in line for line in one.lines)


def test_a_program_s_text_before_the_kernel_s_on_a_line() -> None:
    log = stamped(BOOT) + b"a prompt # " + stamped(warning()) + b"\x1b[1mbold\x1b[0m" + stamped("x")
    (one,) = found(log)
    assert one.title == "WARNING: at drivers/frob.c:91 frob"
    lines = stamped(warning()).splitlines(keepends=True)
    (same,) = found(stamped(BOOT) + b"50% done\x1b[K".join(lines))
    assert same.lines == one.lines
    long = b"x" * 100_000
    (same,) = found(stamped(BOOT) + long + stamped(warning()))
    assert same.lines == one.lines


def test_a_kernel_that_does_not_stamp() -> None:
    text = (BOOT + oops() + panic("Fatal exception")).encode()
    (one,) = found(text)
    assert one.kind == PANICKED
    assert text[one.mark :].startswith(b"BUG: kernel NULL")
    for report in (warning(), oops(), kasan(), lockdep(), panic()):
        (bare,), (one,) = found(report.encode()), found(stamped(report))
        assert bare.lines == tuple(line.partition("] ")[2] for line in one.lines)
        assert (bare.title, bare.fingerprint) == (one.title, one.fingerprint)
    # A log that is seen from its middle on is taken as it comes.
    assert kinds(b"login: \n" * 20 + stamped(warning())) == [WARNED]


def test_stamps_decide_from_the_first_one_on() -> None:
    log = b"Decompressing Linux...\nBUG: by the boot loader\n" + stamped("x") + b"BUG: a program\n"
    (one,) = found(log)
    assert one.title == "BUG: by the boot loader"


def test_a_line_at_the_end_without_its_end() -> None:
    log = stamped(BOOT + "Kernel panic - not syncing: no more\n").removesuffix(b"\r\n")
    assert kinds(log) == [PANICKED]


# Floods.


def test_reports_without_number() -> None:
    flood = stamped(BOOT) + b"[    1.000000] BUG: x\n" * (3 * SPLATS_MAX)
    splats = found(flood, stamped(panic()), b"[    1.000000] BUG: x\n" * 99)
    assert len(splats) == SPLATS_MAX + 1
    assert splats[-1].kind == PANICKED
    endless = stamped(panic()) + stamped(BOOT)
    assert len(found(*[endless] * (3 * SPLATS_MAX))) == 2 * SPLATS_MAX


@pytest.mark.parametrize(
    "line",
    [
        b"[    1.000000] frob: news of the usual length, of no interest to anybody\r\n",
        b"[    1.000000] BUG: x\n",
        b"[    1.000000] Kernel panic - not syncing: x\n",
        b"[    1.000000] WARNING: \x1b\xff:1 at\n",
        b"BUG: of a program\n",
        b"x",
    ],
)
def test_a_flood_is_read_fast(line: bytes) -> None:
    """10 MB in far less than what a pass over every line in Python would take."""
    one = Classifier(lambda _: None)
    one.feed(stamped(BOOT), 0.0)
    chunk = line * (65536 // len(line))
    started = time.process_time()
    for _ in range(160):
        one.feed(chunk, 0.0)
    assert time.process_time() - started < 2.0


# Pieces.

LOG = (
    stamped(BOOT)
    + b"# echo BUG: > /dev/console\r\nBUG: mine\r\n"
    + stamped(warning(), caller="[   T81]")
    + b"prompt # "
    + stamped(oops(), level="<1>")
    + b"y" * 5000
    + stamped(panic("Fatal exception"))
    + stamped(BOOT + kasan() + lockdep())
)


@given(st.lists(st.integers(0, len(LOG)), max_size=40))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(LOG)]
    pieces = [LOG[a:b] for a, b in itertools.pairwise(edges)]
    assert found(*pieces) == found(LOG)


def test_byte_by_byte() -> None:
    assert found(*(LOG[n : n + 1] for n in range(len(LOG)))) == found(LOG)
    assert kinds(LOG) == [WARNED, PANICKED, WARNED, WARNED]


TOKENS = st.sampled_from(
    [b"\n", b"\r\n", b"[    1.000000] ", b"[    1.000000][    T1] ", b"BUG: ", b"WARNING: CPU: 0",
     b"Kernel panic - not syncing: ", b"Oops: 0000 [#1]", b"---[ end trace", b" </TASK>", b"rcu: ",
     b"<4>", b"\x1b[1m", b"\xff", b"=" * 20, b"Linux version ", b"z" * 3000]
)  # fmt: skip


@given(st.lists(TOKENS | st.binary(max_size=9), max_size=60), st.integers(1, 40))
def test_any_bytes_in_any_pieces(tokens: list[bytes], size: int) -> None:
    log = b"".join(tokens).replace(b"\0", b"")
    splats = found(log)
    assert found(*(log[at : at + size] for at in range(0, len(log), size))) == splats
    for splat in splats:
        assert 1 <= len(splat.lines) <= 3 * LINES_MAX
        assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", "".join(splat.lines))
        assert 0 <= splat.mark < len(log)
    assert len({splat.mark for splat in splats}) == len(splats)


def test_lines_are_bounded() -> None:
    log = stamped(BOOT) + b"[    1.000000] BUG: " + b"x" * (classifier.LINE_MAX * 2) + b"\n"
    assert found(log) == []
    log = stamped(BOOT + "BUG: x\n") + b"[    1.000000] " + b"x" * 10**6 + b"\n"
    (one,) = found(log)
    assert sum(map(len, one.lines)) < 2 * classifier.LINE_MAX
