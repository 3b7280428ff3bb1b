"""Run the whole suite: `python -m tests [pytest arguments]`, what `make test` calls.

What needs no particular KVM runs here. What boots stock kernels runs here too where this host's
KVM can do that, and otherwise in boots of the nested lab, together with the tests of the monitor
itself, which then meet a real KVM as well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from pyvirt.errors import BackendError, PyvirtError
from pyvirt.harness import lab
from pyvirt.harness.agent import image
from pyvirt.harness.guest import kernel
from pyvirt.vmm.accel import kvm_failure

from .guest import root

ROOT = Path(__file__).resolve().parent.parent
HOST_SECONDS = 900
LAB_SECONDS = 600
LAB_MIB = 6144
TRIES = 2
# Debian's cloud kernel has no LKDTM.
EXAMPLES = (
    *("--vm-kernel", "micro", "--vm-kernel", "cloud"),
    *("-k", "not (test_warning_is_wanted and cloud)"),
)
NOTHING_COLLECTED = 5  # pytest's status


def pytest(*arguments: str) -> list[str]:
    """Return the command that runs pytest on these arguments."""
    return [sys.executable, "-m", "pytest", *arguments]


def passes_in_lab(path: str, extra: list[str]) -> bool:
    """Run the tests in `path` in a boot of the lab; say whether they passed.

    What fails gets one more boot: on a busy host an emulated machine can be too slow for a test.
    """
    # pytest captures into unlinked files, which the lab's 9p cannot truncate: TMPDIR is a tmpfs.
    # The tests' own files stay on the file system of this host: a tmpfs has no O_DIRECT.
    with tempfile.TemporaryDirectory(prefix="pyvirt-tests-") as folder:
        command = pytest(path, "-p", "no:cacheprovider", "--basetemp", f"{folder}/base", *extra)
        for _ in range(TRIES):
            try:
                status = lab.run(
                    command,
                    cwd=str(ROOT),
                    env={**os.environ, "TMPDIR": "/dev/shm"},
                    memory_mib=LAB_MIB,
                    timeout=LAB_SECONDS,
                )
            except BackendError as error:
                print(error, flush=True)
                continue
            if status in {0, NOTHING_COLLECTED}:
                return True
            print(f"{path}: status {status}", flush=True)
    return False


def examples_pass(extra: list[str]) -> bool:
    """Run the harness's examples, which see to a lab themselves; say whether they passed."""
    command = pytest("tests/examples", *EXAMPLES, *extra)
    for _ in range(TRIES):
        done = subprocess.run(command, cwd=ROOT, check=False, timeout=LAB_SECONDS)
        if done.returncode in {0, NOTHING_COLLECTED}:
            return True
    return False


def main() -> int:
    """Return 0 when everything passed."""
    extra = sys.argv[1:]
    # A shell's background jobs ignore these, which the tests send and inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    # Made before the lab boots, where making them would be slow.
    for name in ("cloud", "micro"):
        image.initramfs(kernel.find(name))
    root.image()
    failure = kvm_failure()
    here = ["tests/unit", "tests/native", "tests/compat"]
    if os.path.exists("/dev/kvm"):
        here.append("tests/kvm")
    if not failure:
        here.append("tests/guest")
    command = pytest(*here, *extra)
    status = subprocess.run(command, cwd=ROOT, check=False, timeout=HOST_SECONDS).returncode
    status = status or not examples_pass(extra)
    if not failure:
        return status
    print(f"The rest runs in the nested lab, because: {failure}", flush=True)
    # A boot for each file: a lab that hangs costs no more than that.
    guests = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tests/guest/test_*.py"))
    failed = [path for path in (*guests, "tests/kvm") if not passes_in_lab(path, extra)]
    if failed:
        print(f"failed in the lab: {' '.join(failed)}", flush=True)
    return status or bool(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"tests: {error}")
