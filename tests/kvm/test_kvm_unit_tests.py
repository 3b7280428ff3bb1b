"""`pytest --kvm-unit-tests DIR` on a folder as kvm-unit-tests', with a small kernel of our own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pyvirt.harness.collect import kvm_unit_expected, kvm_unit_tests

from .support import GUESTS, PATIENCE, build

pytestmark = pytest.mark.any_kvm
pytest_plugins = ["pytester"]
CONFTEST = """
import pytest
from pyvirt.harness.vm.fork_server import ForkServer

class Here:
    def __init__(self):
        self._server = ForkServer()
        self.server = lambda: self._server.path
        self.close = self._server.close

@pytest.fixture(scope="session")
def vm_place():
    place = Here()
    yield place
    place.close()
"""
SECTIONS = """
# a comment
[good]
file = test.flat
smp = 2
extra_params = -cpu max -append '2 more words'
groups = fast

[fails]
file = test.flat
extra_params = -append f

[skips]
file = test.flat
test_args = "s"

[aborts]
file = test.flat
extra_params = --append "a"

[switches-off]
file = test.flat
extra_params = -append o
timeout = 30s

[spins]
file = spin.flat
timeout = 1

[triple-faults]
file = triple_fault.flat

[absent]
file = absent.flat

[wants-a-device]
file = test.flat
extra_params = -device edu

[by-hand]
file = test.flat
groups = fast nodefault

[checked]
file = test.flat
check = /proc/sys/kernel/ostype=Minix

[realmode]
file = low.flat
extra_params = -append 0

[ioapic]
file = testdev.flat
extra_params = -cpu qemu64,-pcid -machine pit=off

[s3]
file = s3.flat
"""


@pytest.fixture
def suite(kernel: Callable[[str], Path], pytester: pytest.Pytester) -> Path:
    """Return a folder as that of kvm-unit-tests."""
    pytester.makeconftest(CONFTEST)
    folder = pytester.path / "kvm-unit-tests/x86"
    folder.mkdir(parents=True)
    (folder / "unittests.cfg").write_text(SECTIONS)
    copy = ["objcopy", "-O", "elf32-i386", str(kernel("multiboot")), str(folder / "test.flat")]
    subprocess.run(copy, check=True, timeout=PATIENCE)
    build(GUESTS / "multiboot.S", folder / "low.flat", 0x8000)
    for name in ("spin", "triple_fault", "testdev"):
        shutil.copy(kernel(name), folder / f"{name}.flat")
    return folder.parent


def test_every_way_to_end(suite: Path, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--kvm-unit-tests", str(suite), "-rA", "-p", "no:cacheprovider")
    text = result.stdout.str()
    last = {line.split(" ")[-1] for line in text.splitlines() if line.startswith("PASSED ")}
    passed = ("good", "switches-off", "realmode", "ioapic")
    assert last == {f"kvm-unit-tests::{name}" for name in passed}
    result.stdout.fnmatch_lines_random(
        [
            "SUBFAILED[[]choice: asked to] kvm-unit-tests::fails - *",
            "FAILED kvm-unit-tests::fails - Failed: status 1: 2 tests, 1 unexpected failures",
            "SKIPPED*2 tests, 1 skipped",
            "SUBFAILED[[]choice: asked to] kvm-unit-tests::aborts - *",
            "choice: asked to: error: aborted",
            "FAILED kvm-unit-tests::aborts - Failed: aborted",
            "FAILED kvm-unit-tests::spins - Failed: timeout: not within 1 s",
            "FAILED kvm-unit-tests::triple-faults - *",
            "status 1: vCPU 0: the guest triple-faulted",
            "*absent.flat: there is no such file; run make",
            "SKIPPED*it needs QEMU's -device edu: PCI is not here",
            "SKIPPED*it needs ACPI's sleep S3: *",
            "SKIPPED*not run by default",
            "SKIPPED*/proc/sys/kernel/ostype is Linux, not Minix",
            "3 sections as expected, 0 otherwise, 11 of which nothing is known",
        ]
    )
    assert "FAIL: choice: asked to\nSUMMARY: 2 tests" in text


def test_words_and_processors_arrive(suite: Path, pytester: pytest.Pytester) -> None:
    args = ("--kvm-unit-tests", str(suite / "x86"), "-k", "good", "-vv", "-p", "no:cacheprovider")
    result = pytester.runpytest(*args)
    assert result.parseoutcomes() == {"passed": 1, "subtests": 2, "deselected": 13}
    result.stdout.fnmatch_lines(["*SUBPASSED?smp: all arrived*"])


def test_with_xdist(suite: Path, pytester: pytest.Pytester) -> None:
    args = ("--kvm-unit-tests", str(suite), "-k", "fast or fails", "-n2", "-p", "no:cacheprovider")
    result = pytester.runpytest(*args)
    assert result.parseoutcomes() == {"passed": 1, "failed": 2, "skipped": 1}


def test_what_is_otherwise_than_expected_is_named(
    suite: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pytester.path / "expected"
    expected.write_text("good failed a known fault\nfails failed another\nskips passed\n")
    monkeypatch.setattr(kvm_unit_expected, "FILE", expected)
    args = ("--kvm-unit-tests", str(suite), "-k", "good or fails or skips", "-rxX")
    result = pytester.runpytest_inprocess(*args, "-p", "no:cacheprovider")
    result.stdout.fnmatch_lines_random(
        [
            "good: passed, expected failed",
            "skips: skipped, expected passed",
            "1 sections as expected, 2 otherwise, 0 of which nothing is known",
            "XFAIL kvm-unit-tests::fails - another",
            "XPASS kvm-unit-tests::good - a known fault",
        ]
    )
    assert result.ret == 0


def test_a_check_is_of_where_the_machines_run(
    suite: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def read(_: str, path: str) -> str:
        asked.append(path)
        return "Minix"

    monkeypatch.setattr(kvm_unit_tests, "read_file", read)
    args = ("--kvm-unit-tests", str(suite), "-k", "checked", "-p", "no:cacheprovider")
    assert pytester.runpytest_inprocess(*args).parseoutcomes()["passed"] == 1
    assert asked == ["/proc/sys/kernel/ostype"]
