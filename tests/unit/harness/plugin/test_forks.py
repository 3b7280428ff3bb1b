"""Which tests get a fork, of which template, and when that is made and gone.

There is no guest, as in test_plugin.py, whose monitors these are; templates are counted.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyvirt.errors import PyvirtError
from pyvirt.harness.vm import boot, fork_server, place

pytest_plugins = ["pytester"]

pytestmark = pytest.mark.long

FAKE = Path(__file__).resolve().parents[2] / "fake_monitor.py"
RELEASE = "6.1.7-fake"
SUITE = """
import pytest

def test_one(vm):
    vm.start()

def test_two(vm):
    assert vm.succeed("echo hello") == "hello\\n"
"""


class Server:
    """What was asked of the fork server: a letter for each boot, template and fork, and its end.

    "b" a boot, "T1" template 1 made, "f1" a fork of it, "x1" its end.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.words: list[Sequence[str]] = []
        self.refusal = ""
        self._numbers = itertools.count(1)

    def template(self, path: str) -> Any:
        return Template(self, next(self._numbers))

    def process(self, path: str, words: Any, *more: Any, template: Any = None) -> Any:
        self.log.append(f"f{template.number}" if template else "b")
        self.words.append(words)
        return fork_server.Process(path, words, *more)


class Template:
    uri = "template:fake"

    def __init__(self, server: Server, number: int) -> None:
        self._server = server
        self.number = number

    def wait(self, timeout: float) -> None:
        if self._server.refusal:
            raise PyvirtError(self._server.refusal)
        self._server.log.append(f"T{self.number}")

    def close(self) -> None:
        self._server.log.append(f"x{self.number}")


Run = Callable[..., pytest.RunResult]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    one = Server()
    monkeypatch.setattr(boot, "Template", one.template)
    monkeypatch.setattr(boot, "Process", one.process)
    return one


@pytest.fixture
def run(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    server: Server,
    agent_cache: None,
) -> Run:
    """Return a function that runs test files, given by their names, with pytest."""
    monkeypatch.setattr(place, "kvm_failure", lambda: "")
    monkeypatch.setattr(
        fork_server, "command", lambda *words: [sys.executable, "-P", str(FAKE), *words[1:]]
    )
    (pytester.path / "initrd").touch()
    kernel = pytester.path / "bzImage"

    def run(
        *options: str, config: str = "CONFIG_KVM_GUEST=y\n", **sources: str
    ) -> pytest.RunResult:
        kernel.write_bytes(f"Linux version {RELEASE} (who@where)".encode())
        (pytester.path / f"config-{RELEASE}").write_text(config)
        for name, source in sources.items():
            (pytester.path / f"test_{name}.py").write_text(source)
        words = ["--vm-kernel", str(kernel), "--vm-initrd", str(pytester.path / "initrd")]
        words += ["--vm-log-dir", str(pytester.path / "logs"), "-o", "vm_fork=auto"]
        words += ["-p", "no:cacheprovider"]
        return pytester.runpytest_inprocess(*words, *options, "--vm-results=results")

    return run


def test_alike_ones_of_a_module_share_a_template(run: Run, server: Server) -> None:
    run(a=SUITE, b=SUITE).assert_outcomes(passed=4)
    assert server.log == ["b", "T1", "f1", "f1", "x1", "b", "T2", "f2", "f2", "x2"]
    assert "-kernel" in server.words[0]
    assert "-kernel" not in server.words[1]
    assert server.words[0][:4] == server.words[1][:4]


FORKED, BOOTED = ["b", "T", "f", "f", "x"], ["b", "b"]
HEADS = ("", "fork=True", "fork=False")
# What tests see of a fork, or might, when nothing is said about forks.
SEEN = {
    "options=['-pidfile', '/dev/null']": BOOTED,
    "nets=['tap0']": BOOTED,
    "nets=['link:a']": FORKED,
    "disks=['scratch:1M']": BOOTED,
    "disks=['scratch:1M,readonly=on']": FORKED,
    "disks=['scratch:1M,overlay=memory']": FORKED,
}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], dict(zip(HEADS, (FORKED, FORKED, BOOTED), strict=True)) | SEEN),
        (["--vm-fork=always"], dict(zip(HEADS, (FORKED, FORKED, BOOTED), strict=True))),
        (["--vm-fork=never"], dict.fromkeys(HEADS, BOOTED)),
        (["-o", "vm_fork=never"], {"": BOOTED}),
        (["-o", "vm_fork=marked"], {"": BOOTED, "fork=True": FORKED}),
        (["-o", "vm_fork=never", "--vm-fork=auto"], {"": FORKED}),
        (["-k", "one"], {"": ["b"], "fork=True": ["b", "T", "f", "x"]}),
    ],
    ids=" ".join,
)
def test_when_there_are_forks(
    options: list[str], expected: dict[str, list[str]], run: Run, server: Server
) -> None:
    heads = list(expected)
    sources = {
        f"m{n}": f"{SUITE}\npytestmark = pytest.mark.vm({head})\n" for n, head in enumerate(heads)
    }
    count = len(heads)
    alone = "-k" in options
    result = run(*options, **sources)
    result.assert_outcomes(passed=count if alone else 2 * count, deselected=count * alone)
    found = [name.rstrip("0123456789") for name in server.log]
    assert found == list(itertools.chain.from_iterable(expected.values()))


def test_a_kernel_without_the_clock_is_asked_for_it(run: Run, server: Server) -> None:
    forked = f"{SUITE}\npytestmark = pytest.mark.vm(fork=True)\n"
    run(config="# CONFIG_KVM_GUEST is not set\n", a=SUITE, b=forked).assert_outcomes(passed=4)
    assert server.log == ["b", "b", "b", "T1", "f1", "f1", "x1"]


def test_what_cannot_be_forked_says_so(run: Run, server: Server) -> None:
    members = ("root='/'", "share=['/tmp']", "disks=['scratch:1M']")
    sources = {
        f"m{n}": f"{SUITE}\npytestmark = pytest.mark.vm(fork=True, {member})\n"
        for n, member in enumerate(members)
    }
    result = run("-k", "one", **sources)
    result.assert_outcomes(errors=3, deselected=3)
    for member in members:
        assert f"vm: fork=True: not with {member}" in result.stdout.str()
    assert server.log == []


def test_disks_are_those_of_the_template(run: Run, server: Server) -> None:
    mark = "pytest.mark.vm(fork=True, disks=['scratch:1M,readonly=on', '/x,readonly=on'])"
    run(a=f"{SUITE}\npytestmark = {mark}\n").assert_outcomes(passed=2)
    of_template, *forks = ([w for w in words if "," in w][:2] for words in server.words)
    assert forks == [of_template] * 2
    assert of_template[0].endswith(".img,readonly=on")
    assert of_template[1] == "/x,readonly=on"
    assert not Path(of_template[0].partition(",")[0]).exists()


def test_others_are_other_templates_up_to_a_number(run: Run, server: Server) -> None:
    source = "import pytest\npytestmark = pytest.mark.vm(fork=True)\n"
    for n in range(5):
        source += f"@pytest.mark.vm(vcpus={n + 1})\ndef test_{n}(vm):\n    vm.start()\n"
    source += "def test_first_again(vm):\n    vm.start()\n"
    run(a=source).assert_outcomes(passed=6)
    log = " ".join(server.log)
    assert log.startswith("b T1 f1 b T2 f2 b T3 f3 b T4 f4 x1 b T5 f5 x2 b T6 f6 ")
    assert sorted(server.log[-4:]) == ["x3", "x4", "x5", "x6"]


def test_limits_and_judgement_make_no_other_template(run: Run, server: Server) -> None:
    more = "@pytest.mark.vm_timeout(call=5)\n@pytest.mark.allow_splat('x')\n"
    run(a=SUITE.replace("def test_two", f"{more}def test_two")).assert_outcomes(passed=2)
    assert server.log == ["b", "T1", "f1", "f1", "x1"]


def test_two_guests_of_a_test_share_one_but_for_their_addresses(run: Run, server: Server) -> None:
    source = """
import pytest

@pytest.mark.vm(fork=True, nets=NETS)
def test_it(vm_factory):
    vm_factory("one").start()
    vm_factory("two").start()
"""
    run(a=source.replace("NETS", "[]")).assert_outcomes(passed=1)
    assert server.log == ["b", "T1", "f1", "f1", "x1"]
    server.log.clear()
    run(a=source.replace("NETS", "['link:a']")).assert_outcomes(passed=1)
    assert server.log == ["b", "T2", "f2", "b", "T3", "f3", "x3", "x2"]


PREPARED = """
import pytest

calls = []

def prepare(vm):
    calls.append(vm)
    vm.succeed("echo prepared")

pytestmark = pytest.mark.vm(prepare=prepare)

def test_one(vm):
    vm.start()
    assert (vm in calls) == MINE

def test_two(vm):
    vm.start()
    assert len(calls) == CALLS
"""


def test_a_template_is_prepared_once(run: Run, server: Server) -> None:
    run(a=PREPARED.replace("MINE", "False").replace("CALLS", "1")).assert_outcomes(passed=2)
    assert server.log == ["b", "T1", "f1", "f1", "x1"]


def test_a_boot_is_prepared_too(run: Run, server: Server) -> None:
    source = PREPARED.replace("MINE", "True").replace("CALLS", "2")
    run("--vm-fork=never", a=source).assert_outcomes(passed=2)
    assert server.log == ["b", "b"]


def test_what_a_preparation_raises_fails_each_test(
    run: Run, server: Server, pytester: pytest.Pytester
) -> None:
    source = PREPARED.replace('"echo prepared"', '"echo because >&2; false"')
    result = run(a=source)
    result.assert_outcomes(failed=2)
    rows = [json.loads(line) for line in (pytester.path / "results").read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["failed", "failed"]
    assert server.log == ["b", "b"]  # the second for the symbols of the first
    text = result.stdout.str()
    assert text.count("status 1, it was to succeed: because") >= 2
    assert "vm-template/" not in text
    assert "vm-template" in text  # its files


def test_a_preparation_may_skip(run: Run, server: Server) -> None:
    source = PREPARED.replace('vm.succeed("echo prepared")', 'pytest.skip("no such hardware")')
    run(a=source).assert_outcomes(skipped=2)
    assert server.log == ["b"]


def test_a_template_that_does_not_boot_leaves_that_to_the_tests(
    run: Run, server: Server, pytester: pytest.Pytester
) -> None:
    (pytester.path / "no-agent").touch()
    source = f"{SUITE}\npytestmark = [pytest.mark.vm(fork=True), pytest.mark.vm_timeout(boot=0.5)]"
    result = run(f"--vm-initrd={pytester.path}/no-agent", a=source)
    result.assert_outcomes(failed=2)
    assert server.log == ["b"] * 4  # one of them for symbols
    assert result.stdout.str().count("reproduce") == 2


@pytest.mark.parametrize("head", ["", "fork=True"])
def test_a_guest_that_cannot_be_kept(head: str, run: Run, server: Server) -> None:
    server.refusal = "-device pc-testdev: a snapshot does not keep it"
    result = run(a=f"{SUITE}\npytestmark = pytest.mark.vm({head})\n")
    if head:
        result.assert_outcomes(failed=2)
        assert f"snapshot: {server.refusal}" in result.stdout.str()
        assert server.log == ["b", "x1"]
    else:
        result.assert_outcomes(passed=2)
        assert server.log == ["b", "x1", "b", "b"]


def test_a_guest_goes_back_to_where_it_stood(run: Run, server: Server) -> None:
    source = """
import pytest

def test_it(vm):
    vm.succeed("echo before the snapshot >$CONSOLE")
    vm.wait_for_console("before")
    point = vm.snapshot()
    assert vm.succeed("echo on; echo after >$CONSOLE") == "on\\n"
    vm.wait_for_console("after")
    other = vm.spawn("sleep 1000")
    assert vm.restore(point) is vm
    assert vm.boots == 2
    assert vm.console.text() == "before the snapshot\\n"
    assert vm.succeed("echo again") == "again\\n"

@pytest.mark.vm(disks=["scratch:1M"])
def test_two(vm):
    with pytest.raises(Exception, match="snapshot: not with disks=.'scratch:1M'., which can be"):
        vm.snapshot()
    vm.start()
"""
    run("--vm-fork=never", a=source).assert_outcomes(passed=2)
    assert server.log == ["b", "T1", "f1", "x1", "b"]


def test_warnings_of_the_template_are_those_of_its_forks(
    run: Run, server: Server, pytester: pytest.Pytester
) -> None:
    (pytester.path / "warning").write_text(
        "[    1.500000] ------------[ cut here ]------------\n"
        "[    1.500001] WARNING: CPU: 0 PID: 99 at drivers/fake.c:12 fake_function+0x10/0x20\n"
        "[    1.500002] ---[ end trace 0000000000000000 ]---\n"
    )
    source = f"""
import pytest, time

def prepare(vm):
    vm.succeed("cat {pytester.path}/warning >$CONSOLE")
    while not vm.splats():
        time.sleep(0.01)

pytestmark = pytest.mark.vm(fork=True, prepare=prepare)

@pytest.mark.allow_splat("fake_function")
def test_allowed(vm):
    vm.start()
    assert len(vm.splats()) == 1

def test_not_allowed(vm):
    point = vm.start().snapshot()
    vm.restore(point)
    assert len(vm.splats()) == 1
"""
    result = run(a=source)
    result.assert_outcomes(passed=1, failed=1)
    assert "the kernel warned: WARNING: at drivers/fake.c:12" in result.stdout.str()
    assert [one for one in server.log if one != "b"] == ["T1", "f1", "f1", "T2", "f2", "x2", "x1"]
