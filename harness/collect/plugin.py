"""The options that collect other people's test suites, and the items that they give.

    --kselftest DIR[:COLLECTION[:PROGRAM]]    --kunit GLOB    --kvm-unit-tests DIR

With one of them and no other argument nothing else is collected.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...errors import PyvirtError
from ..plugin.plugin import DEFAULT_KERNEL, state_of
from . import kselftest, kunit, kvm_unit_expected, kvm_unit_tests
from .cases import Case, Suite

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..vm.place import Place

_KVM = "kvm-unit-tests"
_CASES = pytest.StashKey[dict[str, list[Case]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("pyvirt")
    group.addoption(
        "--kselftest",
        metavar="DIR[:COLLECTION[:PROGRAM]]",
        help="run the kernel's selftests installed in DIR, each program in a VM",
    )
    group.addoption(
        "--kunit",
        metavar="GLOB",
        help="run the KUnit suites built into the kernel that match, in one boot",
    )
    group.addoption(
        "--kunit-isolated", action="store_true", help="with --kunit, a boot for each suite"
    )
    group.addoption(
        "--kvm-unit-tests",
        metavar="DIR",
        help="run the sections of DIR/x86/unittests.cfg, each with the kernel it names",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the lists, and leave other tests out where none are asked for; UsageError."""
    cases: dict[str, list[Case]] = {}
    if value := config.getoption("--kselftest"):
        cases["kselftest"] = list(kselftest.collect(value))
    if value := config.getoption("--kunit"):
        cases["kunit"] = list(kunit.collect(value))
    if value := config.getoption("--kvm-unit-tests"):
        expected = kvm_unit_expected.read(kvm_unit_expected.FILE.read_text())
        cases[_KVM] = list(kvm_unit_tests.collect(Path(value).absolute(), expected))
        config.pluginmanager.register(kvm_unit_expected.Comparison(_KVM, expected))
    config.stash[_CASES] = cases
    if cases and config.args_source is not config.ArgsSource.ARGS:
        config.args = []


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add the suites to what the session itself has found."""
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        cases = collector.config.stash[_CASES]
        if collector.config.getoption("--kunit-isolated") and "kunit" in cases:
            cases["kunit"] = _isolated(collector.config)
        made = (Suite.of(collector, name, found) for name, found in cases.items())
        report.result = [*report.result, *made]
    return report


def _isolated(config: pytest.Config) -> list[Case]:
    """Return an item for each suite in the kernels under test, booting those not known yet."""
    state = state_of(config)
    found: dict[str, None] = {}
    try:
        for name in state.kernels or [DEFAULT_KERNEL]:
            found |= dict.fromkeys(kunit.listed(state.find_kernel(name), state.place))
    except PyvirtError as error:
        raise pytest.UsageError(f"--kunit-isolated: {error}") from None
    return list(kunit.collect(config.getoption("--kunit"), list(found)))


@pytest.fixture(scope="session")
def vm_place(request: pytest.FixtureRequest) -> Place:
    """Return where VMs run."""
    return state_of(request.config).place


@pytest.fixture(scope="session")
def vm_timeout_scale(request: pytest.FixtureRequest) -> float:
    """Return by what all limits of time are multiplied."""
    return state_of(request.config).scale
