"""Lists of other people's tests: what is read from them, and the items that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.harness import cache
from pyvirt.harness.collect import kselftest, kunit, kvm_unit_expected, kvm_unit_tests
from pyvirt.harness.collect.kvm_unit_expected import Comparison, Expected
from pyvirt.harness.collect.kvm_unit_params import Run
from pyvirt.harness.collect.kvm_unit_tests import Log, Section

pytest_plugins = ["pytester"]

CFG = """\
# [not-this]
file = outside.flat
[first]
file = first.flat
smp= 2
extra_params =-append 'a b'
check = /a=b /c=d
check = /e=f=g
nonsense
[second one]
timeout=90s
groups = x nodefault y
"""


def section(**members: str) -> Section:
    return Section("s", members, ())


def test_unittests_cfg() -> None:
    first, second = kvm_unit_tests.parse(CFG)
    assert first.name == "first"
    assert first.members == {"file": "first.flat", "smp": "2", "extra_params": "-append 'a b'"}
    assert first.checks == ("/a=b", "/c=d", "/e=f=g")
    assert second.name == "second one"
    assert second.groups == ["x", "nodefault", "y"]
    assert second.get("file") == ""


@given(st.text())
def test_any_text_is_a_unittests_cfg(text: str) -> None:
    for found in kvm_unit_tests.parse("[s]\n" + text):
        kvm_unit_tests.parameters(found)
        kvm_unit_tests.seconds(found.get("timeout"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 90), ("30", 30), ("2m", 120), ("1.5s", 1.5), ("1h", 3600), ("0", 90), ("soon", 90)],
)
def test_durations(text: str, seconds: float) -> None:
    assert kvm_unit_tests.seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("", Run()),
        ("-append one", Run(cmdline="one")),
        ("--append \"one 'two'\" -m 2560", Run(cmdline="one 'two'", memory="2560")),
        ("-cpu max -append x", Run(cmdline="x")),
        ("-cpu host,migratable=no", Run()),
        ("-cpu max,host-phys-bits,+vmx -m 4g", Run(memory="4g")),
        ("-cpu qemu64,-pcid,-invpcid", Run(words=("-cpu", "host,-pcid,-invpcid"))),
        ("-cpu qemu64,-pcid,+invpcid", Run(words=("-cpu", "host,-pcid"))),
        ("-cpu Opteron_G1,vendor=AuthenticAMD", Run(words=("-cpu", "host,vendor=AuthenticAMD"))),
        (
            "-machine pit=off -append 'ipi'",
            Run(cmdline="ipi", words=("-machine", "microvm,pit=off")),
        ),
        ("-M accel=kvm,kernel_irqchip=on", Run()),
        ("-device pc-testdev -device isa-debug-exit,iobase=0xf4", Run()),
        ("-cpu max,-nosuch", Run(unfit="it needs QEMU's -cpu max,-nosuch")),
        ("-cpu max,vendor=VIA", Run(unfit="it needs QEMU's -cpu max,vendor=VIA")),
        (
            "-cpu kvm64,hv_time -device hyperv-testdev",
            Run(unfit="it needs QEMU's -cpu kvm64,hv_time: an interface of Hyper-V's is not here"),
        ),
        (
            "-machine vmport=on",
            Run(unfit="it needs QEMU's -machine vmport=on: VMware's port is not here"),
        ),
        (
            "-machine kernel_irqchip=split",
            Run(
                unfit="it needs QEMU's -machine kernel_irqchip=split: an I/O APIC outside of KVM "
                "is not here"
            ),
        ),
        ("-enable-kvm -append x", Run(cmdline="x")),
        ("-append `uname -r`", Run(unfit="its parameters are a shell's to expand")),
        ("-append 'a", Run(unfit="its parameters cannot be read: No closing quotation")),
        ("-append", Run()),
    ],
)
def test_qemus_parameters(text: str, run: Run) -> None:
    assert kvm_unit_tests.parameters(section(extra_params=text)) == run
    assert kvm_unit_tests.parameters(section(qemu_params=text)) == run


def test_the_time_is_filled_in() -> None:
    run = kvm_unit_tests.parameters(section(extra_params='--append "10 `date +%s`"'))
    assert run.cmdline.startswith("10 1")


def test_test_args() -> None:
    assert kvm_unit_tests.parameters(section(test_args="'a b'")).cmdline == "a b"


@pytest.mark.parametrize(
    ("members", "checks", "reason"),
    [
        ({}, (), ""),
        ({"arch": "x86_64", "accel": "kvm"}, (), ""),
        ({"arch": "i386"}, (), "for i386"),
        ({"accel": "tcg"}, (), "for accel tcg"),
        ({"groups": "a nodefault"}, (), "not run by default"),
        ({"groups": "nodefaults"}, (), ""),
        ({}, ("/sys/there=Y",), ""),
        ({}, ("/sys/there=N",), "/sys/there is Y, not N"),
        ({}, ("/sys/there=Y", "/absent=1"), "/absent is not there, not 1"),
        ({}, ("sys/there=Y",), "sys/there is not there, not Y"),
        ({"extra_params": "-device edu"}, (), "it needs QEMU's -device edu: PCI is not here"),
        (
            {"file": "s3.flat"},
            (),
            "it needs ACPI's sleep S3: a FACS, PM1a registers and an RTC, which are not here",
        ),
    ],
)
def test_who_is_not_to_run(members: dict[str, str], checks: tuple[str, ...], reason: str) -> None:
    there = {"/sys/there": "Y\n"}
    assert kvm_unit_tests.unfit(Section("s", members, checks), "x86_64", there.get) == reason


@pytest.mark.parametrize(
    ("text", "online", "count"),
    [
        ("3", "0-1", 3),
        ("$MAX_SMP", "0-1\n", 2),
        ("$MAX_SMP", "0,2-4,7", 5),
        ("$MAX_SMP", "0", 1),
        ("", None, 1),
    ],
)
def test_processors(text: str, online: str | None, count: int) -> None:
    assert kvm_unit_tests.vcpus(text, lambda _: online) == count


def test_what_is_expected_of_each_section_is_written_down() -> None:
    expected = kvm_unit_expected.read(kvm_unit_expected.FILE.read_text())
    assert expected["realmode"] == Expected("passed")
    assert expected["s3"] == Expected("skipped", "ACPI's sleep S3")
    assert all(found.why or found.outcome == "passed" for found in expected.values())


@pytest.mark.parametrize("line", ["a", "a nothing", "a passed\na failed why", "a b passed"])
def test_a_line_that_expects_nothing(line: str) -> None:
    with pytest.raises(ValueError, match="not a new section"):
        kvm_unit_expected.read(f"# all\n\n{line}\n")


def report(name: str, when: Any, outcome: Any, **more: object) -> pytest.TestReport:
    made = pytest.TestReport(name, (name, None, name), {}, outcome, None, when)
    vars(made).update(more)
    return made


def test_a_run_is_compared_with_what_is_expected() -> None:
    names = ("good", "bad", "left", "known", "better")
    text = "good passed\nbad passed\nleft passed\nknown failed why\nbetter failed why\n"
    comparison = Comparison("s", kvm_unit_expected.read(text))
    ends: dict[str, tuple[str, dict[str, object]]] = {
        "good": ("passed", {}),
        "bad": ("failed", {}),
        "left": ("skipped", {}),
        "known": ("skipped", {"wasxfail": "why"}),
        "better": ("passed", {"wasxfail": "why"}),
        "new": ("failed", {}),
    }
    for name in (*names, "new"):
        outcome, more = ends[name]
        comparison.pytest_runtest_logreport(report(f"s::{name}", "setup", "passed"))
        comparison.pytest_runtest_logreport(
            report(f"s::{name}", "call", "skipped", context=None)  # of a subtest
        )
        comparison.pytest_runtest_logreport(report(f"s::{name}", "call", outcome, **more))
        comparison.pytest_runtest_logreport(report(f"s::{name}", "teardown", "passed"))
    comparison.pytest_runtest_logreport(report("other::good", "call", "failed"))
    assert comparison.differences() == [
        "bad: failed, expected passed",
        "left: skipped, expected passed",
        "better: passed, expected failed",
    ]


@pytest.mark.parametrize(("memory", "megabytes"), [("128M", 128), ("2560", 2560), ("4g", 4096)])
def test_what_replaces_fw_cfg(memory: str, megabytes: int) -> None:
    lines = kvm_unit_tests.environment(Run(memory=memory), 3).split()
    assert {"NR_CPUS=3", f"MEMSIZE={megabytes}", f"MEMLIMIT={megabytes}"} <= set(lines)


def test_report_lines() -> None:
    log = Log()
    text = b"enabling apic\r\nPASS: a: b\nFAIL: c\nnoise\nSKIP: d\nXFAIL: e\nXPASS: f\nABORT: g\n"
    for i in range(0, len(text), 5):
        log.feed(text[i : i + 5])
    log.feed(b"PASSED: no\nSUMMARY: 6 tests, 2 unexpected failures\nEXIT: STATUS=3")
    log.end()
    assert [(point.name, point.outcome) for point in log.points] == [
        *(("a: b", "passed"), ("c", "failed"), ("d", "skipped")),
        *(("e", "xfailed"), ("f", "failed"), ("g", "error")),
    ]
    assert log.points[0].lines == ("enabling apic", "PASS: a: b")
    assert log.points[2].lines == ("noise", "SKIP: d")
    assert log.summary == "6 tests, 2 unexpected failures"
    assert log.status == 1


@given(st.lists(st.binary()))
def test_any_bytes_are_a_log(chunks: list[bytes]) -> None:
    log = Log()
    for chunk in chunks:
        log.feed(chunk)
    log.end()
    assert len(log.tail) <= 20


def test_a_log_is_bounded() -> None:
    log = Log()
    for _ in range(100):
        log.feed(b"x" * 100_000 + b"\n" * 10)
    assert sum(map(len, log.tail)) < 100_000


STATUSES = {
    1: "status 1: sum\nlast",
    124: "timeout: sum\nlast",
    127: "aborted: sum\nlast",
    139: "ended by signal 11: sum\nlast",
    -9: "ended by signal 9: sum\nlast",
    None: "timeout: not within 5 s: sum\nlast",
}


@pytest.mark.parametrize("status", STATUSES)
def test_statuses(status: int | None) -> None:
    log = Log()
    log.feed(b"last\n")
    log.summary = "sum"
    with pytest.raises(pytest.fail.Exception) as info:
        kvm_unit_tests.judge(status, log, "", 5)
    assert info.value.msg == STATUSES[status]


def test_status_0_is_a_pass() -> None:
    kvm_unit_tests.judge(0, Log(), "", 5)


@pytest.mark.parametrize("status", [77, 38])
def test_skips(status: int) -> None:
    with pytest.raises(pytest.skip.Exception):
        kvm_unit_tests.judge(status, Log(), "", 5)


def test_a_status_in_the_log_counts_where_there_is_no_other() -> None:
    log = Log()
    log.feed(b"EXIT: STATUS=3\n")
    with pytest.raises(pytest.fail.Exception, match="status 1"):
        kvm_unit_tests.judge(0, log, "", 5)


def test_kselftest_list() -> None:
    text = "timers:posix_timers\n\nnet/forwarding:a.sh\ntimers:with space\n"
    every = [("timers", "posix_timers"), ("net/forwarding", "a.sh"), ("timers", "with space")]
    assert list(kselftest.entries(text)) == every
    assert list(kselftest.entries(text, "timers")) == [every[0], every[2]]
    assert list(kselftest.entries(text, "timers", "posix_timers")) == every[:1]


@pytest.mark.parametrize(
    "line", ["noise", "a:../b", "../a:b", "a/../b:c", "/a:b", "a:b;c", "a:$(b)", ":b", "a:"]
)
def test_kselftest_list_with_other_things_in_it(line: str) -> None:
    with pytest.raises(pytest.UsageError, match="is not COLLECTION:PROGRAM"):
        list(kselftest.entries(f"a:b\n{line}\n"))


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [(None, 45), ("timeout=7\n", 7), ("# x\ntimeout=0", 3600), ("timeout=soon", 45), ("", 45)],
)
def test_kselftest_limits(settings: str | None, seconds: float, tmp_path: Path) -> None:
    if settings is not None:
        (tmp_path / "settings").write_text(settings)
    assert kselftest.limit(tmp_path) == seconds


def test_what_programs_need(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/bash -e\n")
    (tmp_path / "ours").write_text("#!/bin/sh\n")
    (tmp_path / "text").write_text("#!/usr/bin/perl\n")
    for name in ("script", "ours"):
        (tmp_path / name).chmod(0o755)
    needs = kselftest.needs(tmp_path)
    assert needs["/bin/bash"].samefile("/bin/bash")
    assert any("libc.so" in name for name in needs)
    assert any("ld-linux" in name for name in needs)
    assert "/usr/bin/perl" not in needs
    assert "/bin/sh" not in needs
    assert all(path.is_file() and not path.is_symlink() for path in needs.values())


LISTED = """\
[    0.0] Linux version 6.1.0
[    0.3] KTAP version 1
[    0.3] 1..2
[    0.3] example.simple_test
[    0.3] example.skip_test
[    0.3][    T1] list-kunit-test.list_test_list_init
[    0.4] Freeing unused kernel image (initmem) memory: 1024K
"""


def test_kunit_list() -> None:
    assert kunit.suites(LISTED) == ["example", "list-kunit-test"]
    assert kunit.suites("a.b\n") == []


def test_kunit_items() -> None:
    def names(glob: str) -> list[str]:
        return [case.name for case in kunit.collect(glob, ["example", "list"])]

    assert [case.name for case in kunit.collect("list*")] == ["list*"]
    assert names("*") == ["example", "list"]
    assert names("l*.x*") == ["list"]
    assert names("z*") == []
    with pytest.raises(pytest.UsageError, match="give a pattern"):
        list(kunit.collect("a b"))


CONFTEST = """
import pytest
from types import SimpleNamespace
from pyvirt.tests.unit.harness.fake_vm import EndedError, FakeVm

PROGRAMS = {
    "posix_timers": ("TAP version 13\\n1..1\\nok 1 one\\n", 0),
    "quiet": ("all is well\\n", 0),
    "wrong": ("1..2\\nok 1 one\\nnot ok 2 two\\n", 1),
    "dies": ("1..2\\nok 1 one\\n", EndedError("panicked", "Kernel panic")),
}
LOG = "KTAP version 1\\n1..1\\n    # Subtest: list\\n    1..1\\n    ok 1 init\\nok 1 list\\n"

@pytest.fixture(scope="session")
def kernel():
    return SimpleNamespace(modules=None)

@pytest.fixture
def vm_factory():
    def make(**options):
        vm = FakeVm(PROGRAMS, log=LOG, **options)
        with open("options", "a") as file:
            print(options, file=file)
        return vm
    return make
"""


@pytest.fixture
def tree(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an installed kselftest tree."""
    monkeypatch.setenv("PYVIRT_CACHE", str(pytester.path / "cache"))
    pytester.makeconftest(CONFTEST)
    tree = pytester.path / "tree"
    (tree / "timers").mkdir(parents=True)
    names = ["posix_timers", "quiet", "wrong", "dies"]
    (tree / "kselftest-list.txt").write_text("".join(f"timers:{name}\n" for name in names))
    for name in names:
        (tree / "timers" / name).write_text("#!/bin/sh\n")
        (tree / "timers" / name).chmod(0o755)
    return tree


@pytest.mark.parametrize("workers", [0, 2])
def test_kselftest_items(tree: Path, pytester: pytest.Pytester, workers: int) -> None:
    args = ("-p", "no:cacheprovider", "-rA", f"-n{workers}")
    result = pytester.runpytest("--kselftest", str(tree), *args)
    result.stdout.fnmatch_lines_random(
        [
            "PASSED kselftest::timers:posix_timers",
            "PASSED kselftest::timers:quiet",
            "SUBFAILED?two? kselftest::timers:wrong*",
            "SUBFAILED??2? kselftest::timers:dies*",
            "#2: crashed: Kernel panic",
        ]
    )
    # The two points, the end of the one, and the test of the other, which they fail.
    assert result.parseoutcomes() == {"passed": 2, "failed": 4}
    options = (pytester.path / "options").read_text()
    image = next((pytester.path / "cache").glob("kselftest-*.ext4"))
    assert f"{image},readonly=on" in options
    assert len(options.splitlines()) == 4


def test_kselftest_of_one_program(tree: Path, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--kselftest", f"{tree}:timers:quiet", "-p", "no:cacheprovider")
    assert result.parseoutcomes() == {"passed": 1}


def test_kselftest_tree_without_its_programs(tree: Path, pytester: pytest.Pytester) -> None:
    """As an installation leaves it that has no rsync; no VM is booted to find that out."""
    text = (tree / "kselftest-list.txt").read_text()
    (tree / "kselftest-list.txt").write_text(f"{text}kcmp:kcmp_test\nnet/a:one\nnet/a:two\n")
    result = pytester.runpytest("--kselftest", str(tree), "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*none of the programs of kcmp, net/a is there*rsync*"])
    # What is there can be asked for, and of the rest no VM is booted.
    (tree / "timers/wrong").unlink()
    result = pytester.runpytest("--kselftest", f"{tree}:timers:wrong", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    args = ("-k", "quiet or wrong", "-p", "no:cacheprovider")
    result = pytester.runpytest("--kselftest", f"{tree}:timers", *args)
    assert result.parseoutcomes() == {"passed": 1, "failed": 1, "deselected": 2}
    result.stdout.fnmatch_lines(["*/tree/timers/wrong: not there; was it built?"])
    assert len((pytester.path / "options").read_text().splitlines()) == 1


def test_suites_come_beside_the_tests_that_are_asked_for(
    tree: Path, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(test_own="def test_own(): pass")
    args = ("--kselftest", f"{tree}:timers:quiet", "--kunit", "list*", "-p", "no:cacheprovider")
    assert pytester.runpytest(*args, "test_own.py").parseoutcomes()["passed"] == 3
    assert pytester.runpytest(*args).parseoutcomes()["passed"] == 2
    options = (pytester.path / "options").read_text()
    assert "kunit.enable=1 loglevel=7 kunit.filter_glob=list*" in options


def test_kunit_isolated(
    tree: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = pytester.path / "vmlinux"
    kernel.write_bytes(b"\x7fELF Linux version 6.1.0 (x) ")
    booted: list[object] = []

    def boot(*given: object) -> str:
        booted.append(given)
        return LISTED

    monkeypatch.setattr(kunit, "_boot", boot)
    args = ("--kunit", "*", "--kunit-isolated", "--vm-kernel", str(kernel), "-v")
    for _ in range(2):
        result = pytester.runpytest_inprocess(*args, "-p", "no:cacheprovider")
        result.stdout.fnmatch_lines(["kunit::example*", "kunit::list-kunit-test*"])
    assert len(booted) == 1
    assert cache.root() == pytester.path / "cache"
    assert [path.suffix for path in cache.root().glob("kunit-*")] == [".suites"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--kselftest", "absent"), "there is no kselftest-list.txt"),
        (("--kselftest", "tree:absent"), "has no such test"),
        (("--kunit", "a b"), "give a pattern"),
        (("--kvm-unit-tests", "tree"), "there is no x86/unittests.cfg"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_wrong_words(
    args: tuple[str, ...], words: str, workers: int, tree: Path, pytester: pytest.Pytester
) -> None:
    result = pytester.runpytest(*args, f"-n{workers}", "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{words}*"])
