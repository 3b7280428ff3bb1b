"""Run the suite: `python -m tests [--quick] [pytest arguments]`, for `make test` and `make quick`.

What needs no stock kernel runs here, on all processors. What boots stock kernels runs here too
where this host's KVM can do that. Otherwise labs are booted, as many as there is room for, which
share those files among them together with tests/kvm, which then meets a real KVM as well: all of it
but what is marked `any_kvm`, which comes out the same on whatever KVM has run it.
Tests of the pytest plugin, and those that are examples of its use, have only their VMs in a lab.

A quick run has none of what is marked `long`, and tries a tenth where chance is at work.

What fails is run once more by itself, here as in a lab. The last lines name every such test. After
a run of everything, the labs and all, they also name each entry of a sandbox's list that no test
has needed, and that fails the run unless sandbox_rare.py says when it is.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pyvirt.errors import PyvirtError
from pyvirt.harness.agent import image
from pyvirt.harness.guest import kernel
from pyvirt.harness.parent import dying_with_parent
from pyvirt.vmm.accel import kvm_failure

from . import sandbox_use
from .effort import QUICK
from .guest import root
from .outcomes import Outcomes

ROOT = Path(__file__).resolve().parent.parent
PROCESSORS = os.cpu_count() or 1
# Tests of the host wait often, and leave the processor to others. A lab does not.
WORKERS = PROCESSORS + 2
LAB_MIB = 6144
SECONDS = 2700  # of one process
# What Debian's kernel does in no other way than the small one, and what takes the LKDTM it lacks.
OF_MICRO = "boots or number_and_bytes or processors or fails or two_guests or many or warning"
AGAIN_MOST = 20  # so many tests may fail by chance; when more do, something is broken
USE = "sandbox-use"  # of the files of a process
PASSED, FAILED, NOTHING_COLLECTED = 0, 1, 5  # pytest's status


@dataclass
class Group:
    """Tests that are run in the same way, by one process or by several that share them."""

    name: str
    paths: Sequence[str]
    options: Sequence[str] = ()
    spread: Sequence[str] = ()  # options of the first run alone
    processes: int = 1
    lab: bool = False
    may_be_empty: bool = False
    notes: bool = False  # what entries of the sandbox's lists its monitors make use of
    sound: bool = True  # no process ended in a way that its tests do not explain
    outcomes: Outcomes = field(default_factory=Outcomes)

    def is_sound(self) -> bool:
        """Say whether what is known of the tests is all there is to know."""
        return self.sound and (self.may_be_empty or bool(self.outcomes))

    def again(self) -> Group:
        """Return the second run of what failed."""
        return Group(
            f"{self.name} again",
            self.outcomes.failed,
            self.options,
            lab=self.lab,
            notes=self.notes,
        )


def host_group(*, quick: bool) -> Group:
    """Return what needs no stock kernel; when quick, without what is marked `long`."""
    paths = ["tests/unit", "tests/native", "tests/fuzz", "tests/compat"]
    if os.path.exists("/dev/kvm"):
        paths.append("tests/kvm")
    marks = ["-m", "not long"] if quick else []
    spread = ["-q", "-n", str(WORKERS), "--dist", "worksteal", *marks]
    return Group("host", paths, spread=spread, notes=True)


def guest_groups(folder: Path, failure: str) -> list[Group]:
    """Return what boots stock kernels; in labs where this host's KVM has the `failure`."""
    # pytest itself runs here, and has the VMs in a lab of its own where it needs one.
    skip = ("-k", f"not (cloud and ({OF_MICRO}))")
    options = ("--vm-kernel", "micro", "--vm-kernel", "cloud", "--vm-fork", "auto")
    plugin = [
        Group("harness", ["tests/harness"]),
        Group("examples", ["tests/examples"], options, skip),
    ]
    if not failure:
        return [*plugin, Group("guests", ["tests/guest"], notes=True)]
    claims = folder / "claims"
    claims.mkdir()
    # What is marked comes out the same on every KVM: it has had this host's.
    marks = ["-m", "not any_kvm"] if os.path.exists("/dev/kvm") else []
    spread = ["--claims", str(claims), *marks]
    paths = files_with_tests(["tests/guest", "tests/kvm"], marks)
    processes = labs_at_once()
    lab = Group("lab", paths, spread=spread, processes=processes, lab=True, notes=True)
    return [*plugin, lab]


def files_with_tests(paths: Sequence[str], options: Sequence[str]) -> Sequence[str]:
    """Return the files below `paths` of which pytest's options leave a test.

    A lab is spared the import of the others. What cannot be collected fails there, as elsewhere.
    """
    # This has pytest compile the files, too.
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", *options, *paths]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    found = re.findall(r"^(\S+\.py): \d+$", done.stdout, re.MULTILINE)
    return found if found and done.returncode == PASSED else paths


def labs_at_once() -> int:
    """Return how many labs this machine can hold: one a processor, each with all its memory."""
    fields = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = next(int(words[1]) for words in fields if words[0] == "MemAvailable:") // 1024
    return max(1, min(PROCESSORS, free // (LAB_MIB + 2048)))


def prepare() -> None:
    """Make here what would be slow to make in a lab, or in each of them."""
    for chosen in ("cloud", "micro"):
        image.initramfs(kernel.find(chosen))
    with suppress(PyvirtError):  # not every archive has it
        kernel.find("cloud-6.12")
    root.image()


def command(group: Group, folder: Path, extra: Sequence[str]) -> list[str]:
    """Return the command of one process, which keeps its files in `folder`."""
    pytest = [sys.executable, "-m", "pytest", "-p", "tests.outcomes", "-p", "tests.claims"]
    pytest += ["--outcomes", str(folder / "outcomes"), *group.paths, *group.options]
    pytest += [*group.spread, *extra]
    if group.notes:
        pytest += ["-p", "tests.sandbox_use", "--sandbox-use", str(folder / USE)]
    if not group.lab:
        # As Ctrl-C, after which it tidies up.
        return [*dying_with_parent("INT"), *pytest]
    # pytest captures into unlinked files, which the lab's 9p cannot truncate: TMPDIR is a tmpfs.
    # The tests' own files stay on this host's file system: a tmpfs has no O_DIRECT.
    pytest += ["-v", "-p", "no:cacheprovider", "--basetemp", str(folder / "base")]
    # What it would only import: that takes seconds there.
    pytest += ["-p", "no:hypothesispytest", "-p", "no:xdist"]
    pyvirt = str(Path(sys.executable).with_name("pyvirt"))
    lab = [*dying_with_parent("TERM"), pyvirt, "lab", "exec", "-m", str(LAB_MIB)]
    return [*lab, "-timeout", str(SECONDS), "--", "env", "TMPDIR=/dev/shm", *pytest]


def run(group: Group, folder: Path, extra: Sequence[str], *, quiet: bool) -> None:
    """Carry out one process of the group; when quiet, show its output only if a test fails."""
    start = time.monotonic()
    if group.notes:
        (folder / USE).write_bytes(uses(folder.parent))
    with (folder / "output").open("w+b") as output:
        to = output if quiet else None
        try:
            status = subprocess.run(
                command(group, folder, extra),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=to,
                timeout=SECONDS + 60,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    print(*(lines[-1:] if status in {PASSED, NOTHING_COLLECTED} else lines), sep="\n")
    print(f"{folder.name}: status {status}, {time.monotonic() - start:.0f} s", flush=True)
    group.outcomes.read(folder / "outcomes")
    # What a lab did not bring to an end is among what failed, whatever became of the lab.
    group.sound &= group.lab or status in {PASSED, FAILED, NOTHING_COLLECTED}


def uses(folder: Path) -> bytes:
    """Return what processes that keep their files below `folder` have noted so far."""
    return sandbox_use.merged(path.read_bytes() for path in folder.glob(f"*/{USE}"))


def run_all(groups: Iterable[Group], folder: Path, extra: Sequence[str], at_once: int = 1) -> None:
    """Carry out all processes of the groups, so many at once, in their order."""
    with ThreadPoolExecutor(at_once) as pool:
        jobs = []
        for group in groups:
            for number in range(group.processes):
                place = folder / f"{group.name} {number + 1}".removesuffix(" 1").replace(" ", "-")
                place.mkdir()
                jobs.append(pool.submit(run, group, place, extra, quiet=at_once > 1))
        for job in jobs:
            job.result()


def run_again(groups: Sequence[Group], folder: Path, extra: Sequence[str]) -> list[Group]:
    """Give what failed its second run; return those runs."""
    failed = sum(len(group.outcomes.failed) for group in groups)
    if failed > AGAIN_MOST:
        print(f"{failed} tests failed; none is run again")
        return []
    second = [group.again() for group in groups if group.outcomes.failed]
    run_all(second, folder, extra)
    return second


def report(groups: Sequence[Group], second: Sequence[Group], unused: Sequence[str] = ()) -> int:
    """Print the last lines; return 0 when everything passed, if at the second time.

    `unused` are entries of the sandbox's lists that are to go.
    """
    by_name = {group.name: group for group in second}
    passed = skipped = 0
    failed: list[str] = []
    for group in groups:
        passed += group.outcomes.passed
        skipped += len(group.outcomes.skipped)
        again = by_name.get(f"{group.name} again")
        failed += again.outcomes.failed if again else group.outcomes.failed
        passed += again.outcomes.passed if again else 0
    flaky = [test for group in groups for test in group.outcomes.failed if test not in failed]
    unsound = [group.name for group in (*groups, *second) if not group.is_sound()]
    for test in failed:
        print(f"failed: {test}")
    for name in unsound:
        print(f"failed: {name}: pytest did not come to its end, or found no test")
    if unused:
        print(
            f"failed: sandbox: no test has needed, of its lists: {'; '.join(unused)}; take them "
            "out of native/sandbox/table.py, or say in tests/sandbox_rare.py when they are needed"
        )
    if flaky:
        tests = "test" if len(flaky) == 1 else "tests"
        print(f"{len(flaky)} {tests} needed a second run: {', '.join(flaky)}")
    print(f"{passed} passed, {len(failed)} failed, {skipped} skipped")
    return int(bool(failed or unsound or unused))


def main() -> int:
    """Return 0 when everything passed."""
    quick = sys.argv[1:2] == ["--quick"]
    extra = sys.argv[1 + quick :]
    if quick:
        os.environ[QUICK] = "1"
    # Tests start Python again and again: each module is compiled once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # A shell's background jobs ignore these, which the tests send and inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    with tempfile.TemporaryDirectory(prefix="pyvirt-tests-") as name:
        folder = Path(name)
        groups = [host_group(quick=quick)]
        run_all(groups, folder, extra)
        if not quick:
            prepare()
            failure = kvm_failure()
            if failure:
                print(f"The rest runs in the nested lab, because: {failure}", flush=True)
            guests = guest_groups(folder, failure)
            run_all(guests, folder, extra, labs_at_once() if failure else 1)
            groups += guests
        for group in groups:
            group.may_be_empty |= bool(extra)  # which may well select none
        for group in groups:
            if group.lab:
                files = [f"{Path(file).stem} {s:.0f} s" for file, s in group.outcomes.longest(20)]
                print(f"{group.name}: longest files: {', '.join(files)}")
        second = run_again(groups, folder, extra)
        # Only where everything was run: this host may lack what a lab has.
        whole = not quick and not extra and any(group.lab for group in groups)
        return report(groups, second, sandbox_use.needless(uses(folder)) if whole else [])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"tests: {error}")
