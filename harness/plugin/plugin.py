"""The pytest plugin: VMs as fixtures, their verdicts in the reports. docs/testing.md tells more."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ...errors import ConfigError, PyvirtError
from ..guest import hostroot
from ..guest import kernel as kernels
from ..guest.kernel import Kernel
from ..judge import report as sections
from ..judge.verdict import Verdict
from ..vm.config import VmConfig
from ..vm.console import Console
from ..vm.end import VerdictError, error_of
from ..vm.faults import Faults
from ..vm.link import Links
from ..vm.monitor import Monitor
from ..vm.place import Broker, Remote, Session
from ..vm.vm import VM
from . import markers, results
from .forks import Forks

if TYPE_CHECKING:
    from ..vm.end import End
    from ..vm.snapshot import Snapshot

pytest_plugins = (
    "pyvirt.harness.plugin.options",
    "pyvirt.harness.plugin.subtests",
    "pyvirt.harness.collect.plugin",
)

DEFAULT_KERNEL = "micro"
_VM_MIB = 256 + 64  # of a usual VM and its monitor
_PANICS = (Verdict.PANICKED, Verdict.BOOT_FAILED, Verdict.FAILED)
_NAME_MAX = 120
_OURS = __name__.rsplit(".", 2)[0] + "."  # all of the harness
_PLACE = "pyvirt_place"
_STATE = pytest.StashKey["State"]()
_LINKS = pytest.StashKey[Links]()
_VMS = pytest.StashKey[list[VM]]()
# For each phase of the test, and each subtest, the verdict if it has failed, else None.
_REPORTS = pytest.StashKey[list[str | None]]()
_HAS_RUN = pytest.StashKey[bool]()  # the test's own function has ended: no subtest is to come


class State:
    """A session's: options, where VMs run, results. `--vm-kernel` names are in `kernels`."""

    def __init__(self, config: pytest.Config) -> None:
        """Check the options; UsageError."""
        self.config = config
        self.kernels: list[str] = config.getoption("--vm-kernel") or []
        self.cmdline: str = config.getoption("--vm-cmdline")
        self.console: str = config.getoption("--vm-console")
        self.keep: str = config.getoption("--vm-keep")
        self.scale: float = config.getoption("--vm-timeout-scale")
        initrd: str | None = config.getoption("--vm-initrd")
        root: str = config.getoption("--vm-root") or ""
        if root:
            hostroot.check_folder(f"--vm-root {root}", root)
        self.base = VmConfig(
            root=root,
            initrd=Path(initrd).absolute() if initrd else None,
        )
        self.is_worker = hasattr(config, "workerinput")
        self.broker: Broker | None = None
        self.results: results.Results | None = None
        self.vms: list[VM] = []  # those that have not been closed, of whatever test
        self.forks = Forks(config.getoption("--vm-fork") or config.getini("vm_fork"))
        self._check()
        self.place: Session | Remote
        if self.is_worker:
            given = config.workerinput  # type: ignore[attr-defined]
            self.place = Remote(given[_PLACE], int(given["workerid"].removeprefix("gw")))
        else:
            self.place = self._session()
            path = config.getoption("--vm-results")
            if path:
                self.results = results.Results(Path(path))
                config.pluginmanager.register(self.results)

    def _session(self) -> Session:
        return Session(self._say)

    def share(self) -> str:
        """Return the socket at which workers of pytest-xdist find their sessions."""
        if self.broker is None:
            assert isinstance(self.place, Session)
            self.broker = Broker(self.place, self._session)
        return self.broker.path

    def _check(self) -> None:
        for name in self.kernels:
            if name not in kernels.NAMES and not Path(name).is_file():
                raise pytest.UsageError(
                    f"--vm-kernel {name}: neither a file nor one of {', '.join(kernels.NAMES)}"
                )
        if self.base.initrd and not self.base.initrd.is_file():
            raise pytest.UsageError(f"--vm-initrd {self.base.initrd}: there is no such file")
        if self.scale <= 0:
            raise pytest.UsageError(f"--vm-timeout-scale {self.scale}: give a number above 0")
        if self.console == "live" and self.config.getoption("numprocesses", None):
            raise pytest.UsageError(
                "--vm-console live: not with -n, whose workers have no terminal; "
                "leave one of them out, or use --vm-console always"
            )

    def _say(self, line: str) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"pyvirt: {line}")

    def echo(self, data: bytes) -> None:
        """Show bytes of a console as they come."""
        writer = self.config.get_terminal_writer()
        writer.write(data.decode(errors="replace").replace("\r", ""), flush=True)

    def folder(self, item: pytest.Item) -> Path:
        """Return the log folder of a test."""
        base = self.config.getoption("--vm-log-dir")
        if base is None:
            # pytest's own, of which the last few are kept.
            factory = self.config._tmp_path_factory  # type: ignore[attr-defined]  # noqa: SLF001
            base = Path(factory.getbasetemp()) / "vm"
        name = re.sub(r"[^\w.=-]+", "_", item.nodeid)
        if len(name) > _NAME_MAX:
            digest = hashlib.sha256(item.nodeid.encode()).hexdigest()[:8]
            name = f"{name[: _NAME_MAX - 9]}-{digest}"
        return Path(base).absolute() / name

    def find_kernel(self, name: str) -> Kernel:
        """Return a kernel by its name; making it shows how far it is. PyvirtError."""
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        if capture is None:
            return kernels.find(name)
        with capture.global_and_fixture_disabled():
            return kernels.find(name)

    def close(self) -> None:
        """End all that runs for the session; Ctrl-C leaves a test's VMs to us."""
        for vm in self.vms:
            vm.close()
        self.forks.close()
        if self.broker is not None:
            self.broker.close()
        self.place.close()
        if self.results is not None:
            self.results.close()


def state_of(config: pytest.Config) -> State:
    """Return the session's state, for other plugins of the harness too."""
    return config.stash[_STATE]


def make_vm(item: pytest.Item, kernel: Kernel, name: str = "vm", **overrides: Any) -> VM:
    """Return a VM for a test, which ends with it and is judged with it; ConfigError."""
    state = state_of(item.config)
    vms = item.stash.setdefault(_VMS, [])
    taken = {vm.name for vm in vms}
    unique = next(n for n in (name, *(f"{name}{i}" for i in range(2, 1000))) if n not in taken)
    config = markers.vm_config(item, state.scale, state.base, **overrides)

    def make(config: VmConfig, folder: str, **more: Any) -> VM:
        vm = VM(
            kernel,
            config,
            state.place,
            state.folder(item) / folder,
            name=unique,
            cmdline=state.cmdline,
            allowed=markers.patterns(item, "allow_splat"),
            echo=state.echo if state.console == "live" else None,
            **more,
        )
        vms.append(vm)
        state.vms.append(vm)
        return vm

    def origin() -> Snapshot | None:
        before, folder = len(vms), f"{unique}-template"
        found = state.forks.find(
            kernel, config, unique, state.place.server(), lambda other: make(other, folder)
        )
        # One that was prepared in vain is judged, and shown, with the test.
        for vm in vms[before:]:
            state.vms.remove(vm)
        del vms[before:]
        return found

    links = item.stash.setdefault(_LINKS, Links())
    if state.forks.wants(item, kernel, config):
        return make(config, unique, links=links, origin=origin)
    return make(config, unique, links=links)


# The session.


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks, check the options."""
    for line in markers.MARKERS:
        config.addinivalue_line("markers", line)
    try:
        config.stash[_STATE] = State(config)
    except PyvirtError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_unconfigure(config: pytest.Config) -> None:
    """End everything."""
    state = config.stash.get(_STATE, None)
    if state is not None:
        state.close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist where the session is."""
    node.workerinput[_PLACE] = state_of(node.config).share()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return as many workers as there are cores, and memory for their VMs."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return max(1, min(len(os.sched_getaffinity(0)), pages // _VM_MIB))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count the tests whose VMs are alike."""
    state = state_of(session.config)
    alike = []
    for item in session.items:
        if "vm" in getattr(item, "fixturenames", ()):
            # What makes no sense is told when it is run.
            with contextlib.suppress(ConfigError):
                alike.append((item, markers.vm_config(item, state.scale, state.base)))
    state.forks.count(alike)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests that have a kernel for each of the kernels named."""
    names = state_of(metafunc.config).kernels
    if names and "kernel" in metafunc.fixturenames:
        ids = [Path(name).name for name in names]
        metafunc.parametrize("kernel", names, ids=ids, indirect=True, scope="session")


# Fixtures.


@pytest.fixture(scope="session")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Return the kernel under test: its image, release, and config."""
    name: str = getattr(request, "param", DEFAULT_KERNEL)
    try:
        return state_of(request.config).find_kernel(name)
    except PyvirtError as error:
        pytest.fail(f"kernel {name}: {error}", pytrace=False)


@pytest.fixture
def vm_factory(request: pytest.FixtureRequest, kernel: Kernel) -> Callable[..., VM]:
    """Return a maker of VMs that end with the test; it takes a name, and what the mark takes."""

    def make(name: str = "vm", **overrides: Any) -> VM:
        return make_vm(request.node, kernel, name, **overrides)

    return make


@pytest.fixture
def vm(vm_factory: Callable[..., VM]) -> VM:
    """Return the test's VM; the first verb boots it."""
    return vm_factory()


@pytest.fixture
def console(vm: VM) -> Console:
    """Return the console of the test's VM, which boots for it."""
    return vm.start().console


@pytest.fixture
def qmp(vm: VM) -> Monitor:
    """Return the client of the monitor of the test's VM, which boots for it."""
    return vm.start().qmp


@pytest.fixture
def faults(qmp: Monitor) -> Faults:
    """Return what has the devices of the test's VM fail; it ends with the VM."""
    return Faults(qmp)


# The course of a test.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test whose kernel is not what it needs."""
    yield
    found = getattr(item, "funcargs", {}).get("kernel")
    if isinstance(found, Kernel):
        reason = markers.unfit(item, found)
        if reason:
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Judge the VMs when the test itself has passed."""
    expected = markers.patterns(item, "expects_panic")
    item.stash[_HAS_RUN] = False
    try:
        yield
    except VerdictError as error:
        if not expected or error.verdict not in _PANICS:
            raise
    finally:
        item.stash[_HAS_RUN] = True
    vms = item.stash.get(_VMS, [])
    if expected:
        _check_panic(vms, expected)
    for vm in vms:
        _check_faults(vm, panics=bool(expected))


def _check_panic(vms: list[VM], expected: list[re.Pattern[str]]) -> None:
    """Fail unless a guest panics, be it a moment from now."""
    for vm in vms:
        if vm.is_running:
            try:
                vm.wait_for_end()
            except VerdictError:
                continue
    said = ["\n".join((s.title, *s.lines)) for vm in vms for s in vm.splats()]
    for pattern in expected:
        if not any(pattern.search(text) for text in said):
            ends = "; ".join(f"{vm.name}: {_end_text(vm.end)}" for vm in vms) or "there is no VM"
            pytest.fail(f"no guest panicked with {pattern.pattern!r} ({ends})", pytrace=False)


def _end_text(end: End | None) -> str:
    return "it runs" if end is None else end.reason


def _check_faults(vm: VM, *, panics: bool) -> None:
    """Fail for what the VM's kernel did while the test looked elsewhere."""
    if panics:
        return
    end = vm.end
    if end is not None and not end.expected and end.verdict != Verdict.PASSED:
        raise error_of(end, vm.evidence)
    if end is None or not end.expected:
        for charge in vm.charges():
            pytest.fail(charge, pytrace=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the verdict, and the evidence of a failure, on the report."""
    if call.excinfo is not None and isinstance(call.excinfo.value, VerdictError):
        _cut_traceback(call.excinfo.value)
    made = yield
    failures = item.stash.setdefault(_REPORTS, [])
    # Subtests may fail by the hundred: the evidence is shown once.
    is_first_failure = made.failed and not any(failures)
    vms = item.stash.get(_VMS, [])
    verdict = _verdict(made, call, vms)
    is_test = made.when == "call" and item.stash.get(_HAS_RUN, False)
    if made.passed and is_test:
        # pytest calls it failed later, in its first look at the report, if a subtest was.
        verdict = next(filter(None, failures), verdict)
    failures.append(verdict if made.failed else None)
    splats = [splat for vm in vms for splat in vm.faults()]
    releases = {vm.kernel.release for vm in vms}
    facts = {
        "verdict": verdict,
        "kernel": ", ".join(sorted(releases)) or None,
        "fingerprint": splats[-1].fingerprint if splats else None,
    }
    setattr(made, results.FACTS, facts)
    if made.when == "teardown":
        return made
    told = ("vm_verdict", verdict)
    if vms and verdict is not None and is_test and told not in item.user_properties:
        item.user_properties.append(told)
    shows = state_of(item.config).console
    if is_first_failure or (made.passed and made.when == "call" and shows == "always"):
        for vm in vms:
            _add_sections(made, vm, "" if len(vms) == 1 else f"{vm.name}: ", shows)
    return made


def _cut_traceback(error: VerdictError) -> None:
    """Let the report end where the test called a verb, not where the verb raised."""
    entry, last = error.__traceback__, None
    while entry is not None:
        module = str(entry.tb_frame.f_globals.get("__name__"))
        if module != "contextlib" and not module.startswith(_OURS):
            last = entry
        entry = entry.tb_next
    if last is not None:
        last.tb_next = None


def _verdict(made: pytest.TestReport, call: pytest.CallInfo[None], vms: list[VM]) -> str | None:
    if made.skipped:
        return None
    if made.passed:
        return Verdict.PASSED.value
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, VerdictError) and error.verdict != Verdict.FAILED:
        return error.verdict.value
    worst = (vm.verdict for vm in vms)
    return next((v.value for v in worst if v not in (None, Verdict.PASSED)), Verdict.FAILED.value)


def _add_sections(made: pytest.TestReport, vm: VM, prefix: str, shows: str) -> None:
    if made.passed:
        made.sections.append((prefix + sections.CONSOLE, sections.console(vm)))
        return
    for title, text in vm.evidence().items():
        if title != sections.CONSOLE or shows != "never":
            made.sections.append((prefix + title, text))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """End the VMs after the test's own fixtures; keep or remove their files."""
    try:
        yield
    finally:
        vms = item.stash.get(_VMS, [])
        state = state_of(item.config)
        for vm in vms:
            vm.close()
            state.vms.remove(vm)
        if _LINKS in item.stash:
            item.stash[_LINKS].close()
        if vms:
            vms.clear()
            _tidy(state, item)
        state.forks.end(item, nextitem)


def _tidy(state: State, item: pytest.Item) -> None:
    failures = item.stash.get(_REPORTS, [])
    if state.keep == "never" or (state.keep == "failed" and not any(failures)):
        shutil.rmtree(state.folder(item), ignore_errors=True)
