"""The options of the pytest plugin. docs/testing.md tells more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .forks import MARKED, MODES

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("pyvirt", "guest kernels under test (pyvirt)")
    group.addoption(
        "--vm-kernel",
        action="append",
        metavar="KERNEL",
        help="cloud, cloud-6.12, generic, micro (default), or a bzImage or vmlinux; "
        "may be repeated: the tests run for each",
    )
    group.addoption("--vm-initrd", metavar="FILE", help="an initramfs that starts the agent")
    group.addoption(
        "--vm-root",
        nargs="?",
        const="/",
        metavar="DIR",
        help="boot on a folder of the host (default: /), which the guests cannot write",
    )
    group.addoption(
        "--vm-fork",
        choices=MODES,
        help="begin VMs where another like them has booted: never, where a mark says so (marked, "
        "default), where several tests of a module share that and see no difference (auto), or "
        "always where it can be",
    )
    parser.addini("vm_fork", f"the default of --vm-fork: {', '.join(MODES)}", default=MARKED)
    group.addoption("--vm-cmdline", default="", metavar="TEXT", help="added to the command line")
    group.addoption(
        "--vm-console",
        choices=("fail", "live", "always", "never"),
        default="fail",
        help="show the console of tests that fail (default), as it comes, of all tests, or never",
    )
    group.addoption(
        "--vm-keep",
        choices=("never", "failed", "always"),
        default="failed",
        help="of which tests the log files are kept (default: failed)",
    )
    group.addoption(
        "--vm-log-dir", metavar="DIR", help="folder of the log files (default: pytest's temporary)"
    )
    group.addoption(
        "--vm-timeout-scale",
        type=float,
        default=1.0,
        metavar="F",
        help="multiply all limits of time by F",
    )
    group.addoption(
        "--vm-results", metavar="FILE", help="write a line of JSON for each test to FILE"
    )
