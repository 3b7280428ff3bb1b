"""The plugin on real guests: every verdict provoked, and the report read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyvirt.cli import registry

SUITE = Path(__file__).with_name("verdicts.py")
SECONDS = 400
# A session that has shared memory and processes to itself, and what is there after its end.
ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
SCRIPT = """
mount -t tmpfs none /dev/shm
"$@"
status=$?
cat /proc/[0-9]*/comm >left
ls /dev/shm >>left
exit $status
"""
STATE, REPORT = "vCPU state", "kernel report"
# Of each test: its outcome and verdict, and what is in the report of its failure.
EXPECTED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "passed": ("passed", "passed", ()),
    "failed": ("failed", "failed", ("cat /none: status 1, it was to succeed: cat: can't open",)),
    "assertion": ("failed", "failed", ("assert 'one\\n' == 'two\\n'", STATE)),
    "panicked": ("failed", "panicked", (REPORT, "not syncing: dumptest", "lkdtm_PANIC+0x")),
    "panicked_for_an_oops": (
        *("failed", "panicked"),
        (REPORT, "Kernel panic - not syncing: Fatal exception (BUG: kernel NULL pointer deref"),
    ),
    "panicked_for_a_warning": (
        *("failed", "panicked"),
        (REPORT, "Kernel panic - not syncing: kernel: panic_on_warn set"),
    ),
    "oopsed": ("failed", "oopsed", (REPORT, "NULL pointer dereference", "in lkdtm_EXCEPTION")),
    "bug": ("failed", "oopsed", (REPORT, "kernel BUG at drivers/misc/lkdtm/bugs.c")),
    "warned": ("failed", "warned", (REPORT, "the kernel warned: ", "lkdtm_WARNING")),
    "hung": (
        *("failed", "hung"),
        (STATE, "no sign of life from the guest for 8 s", "interrupts off", "lkdtm_HARDLOCKUP+0x"),
    ),
    "hung_with_interrupts_on": (
        *("failed", "hung"),
        (REPORT, STATE, "BUG: soft lockup - CPU stuck!", "lkdtm_SOFTLOCKUP+0x"),
    ),
    "triple_fault": ("failed", "triple-fault", (STATE, "the guest triple-faulted", "rip ")),
    "boot_failed_with_garbage": (
        *("failed", "boot-failed"),
        ("before the agent answered: Kernel panic", "VFS: Unable to mount root fs"),
    ),
    "boot_failed_without_agent": (
        *("failed", "boot-failed"),
        ("no agent answered in 8 s; does the initrd start one?", STATE),
    ),
    "monitor_died": ("failed", "monitor-died", ("the monitor was killed by signal 9",)),
    "timeout": ("failed", "timeout", ("sleep 60: not within 1 s", STATE)),
    "powered_off": ("failed", "failed", ("the guest powered off",)),
    "panic_expected": ("passed", "passed", ()),
    "panic_missing": ("failed", "failed", ("no guest panicked with 'dumptest' (vm: it runs)",)),
    "warning_allowed": ("passed", "passed", ()),
    "hotplug": ("passed", "passed", ()),
    "power": ("passed", "passed", ()),
    "crash": ("passed", "passed", ()),
    "pause": ("passed", "passed", ()),
    "leaves_work_behind": ("passed", "passed", ()),
}


@dataclass(frozen=True)
class Session:
    """What a run of the suite left: results by the names of tests, and the text of each report."""

    rows: dict[str, dict[str, object]]
    reports: dict[str, str]
    output: str
    logs: Path
    left: list[str]  # the names of processes and of files in shared memory, after its end


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("session")
    (folder / "pytest.ini").write_text("[pytest]\n")
    words = [*ALONE, "sh", "-c", SCRIPT, "sh"]
    words += [sys.executable, "-m", "pytest", "-c", f"{folder}/pytest.ini"]
    words += ["--noconftest", "-p", "no:cacheprovider", f"--basetemp={folder}/base", "--tb=short"]
    words += [f"--vm-results={folder}/results", f"--vm-log-dir={folder}/logs", str(SUITE)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=folder
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    rows = [json.loads(line) for line in (folder / "results").read_text().splitlines()]
    parts = re.split(r"^_+ test_(\w+) _+$", done.stdout, flags=re.MULTILINE)
    return Session(
        {str(row["nodeid"]).partition("::test_")[2]: row for row in rows},
        dict(zip(parts[1::2], parts[2::2], strict=True)),
        done.stdout + done.stderr,
        folder / "logs",
        (folder / "left").read_text().split(),
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_verdict(name: str, session: Session) -> None:
    outcome, verdict, texts = EXPECTED[name]
    row = session.rows[name]
    assert (row["outcome"], row["verdict"]) == (outcome, verdict), session.reports.get(name)
    assert str(row["kernel"]).endswith("-micro")
    report = session.reports.get(name, "")
    assert ("reproduce" in report) == (outcome == "failed")
    for text in texts:
        assert text in report
    if outcome == "failed":
        assert "guest console (last lines)" in report
        (folder,) = session.logs.glob(f"*test_{name}")
        # A guest that is given up may not have come to its first word.
        assert (folder / "vm" / "console.log").is_file()


def test_every_test_is_known(session: Session) -> None:
    assert session.rows.keys() == EXPECTED.keys()


def test_nothing_is_left(session: Session) -> None:
    registry_of_machines = Path(registry.folder()).name  # empty, for those to come
    assert set(session.left) - {registry_of_machines} == {"sh"}  # which has looked


def test_logs_of_what_passed_are_not_kept(session: Session) -> None:
    kept = {path.name.partition("test_")[2] for path in session.logs.iterdir()}
    assert kept == {name for name in EXPECTED if EXPECTED[name][0] == "failed"}
