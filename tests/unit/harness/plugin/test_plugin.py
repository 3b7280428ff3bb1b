"""The pytest plugin as its users meet it: tests are run, and their reports read.

There is no guest: fake_monitor.py stands for the monitors, and this host for the guests.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pyvirt.harness.vm import fork_server, place

pytest_plugins = ["pytester"]

FAKE = Path(__file__).resolve().parents[2] / "fake_monitor.py"
RELEASE = "6.1.7-fake"
CONFIG = "CONFIG_KUNIT=y\nCONFIG_HZ=250\n# CONFIG_KASAN is not set\n"
PANIC = """
[    1.500000] Kernel panic - not syncing: sysrq triggered crash
[    1.500001] CPU: 0 PID: 1 Comm: init Not tainted 6.1.7-fake #1
[    1.500002] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---
"""
OOPS = """
[    1.500000] BUG: kernel NULL pointer dereference, address: 0000000000000000
[    1.500001] Oops: 0002 [#1] PREEMPT SMP
[    1.500002] RIP: 0010:fake_function+0x10/0x20
[    1.500003] ---[ end trace 0000000000000000 ]---
"""
WARNING = """
[    1.500000] ------------[ cut here ]------------
[    1.500001] WARNING: CPU: 0 PID: 99 at drivers/fake.c:12 fake_function+0x10/0x20
[    1.500002] ---[ end trace 0000000000000000 ]---
"""
LOCKUP = """
[    1.500000] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:99]
[    1.500001] RIP: 0010:fake_function+0x10/0x20
[    1.500002]  </TASK>
"""
SHUTDOWN = 'event SHUTDOWN {"guest": true, "reason": "%s"}\nexit %d\n'
TRIPLE_FAULT = "say pyvirt: vCPU 0: the guest triple-faulted\n" + SHUTDOWN % ("guest-panic", 1)

HEAD = """
import json, os, pytest, time
HERE = {!r}

def warn(vm):
    vm.run(f"cat {{HERE}}/warning >$CONSOLE")
    while not vm.splats():
        time.sleep(0.01)

"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, agent_cache: None) -> Run:
    """Return a function that runs a test file's source with pytest and its options."""
    monkeypatch.setattr(place, "kvm_failure", lambda: "")
    monkeypatch.setattr(
        fork_server, "command", lambda *words: [sys.executable, "-P", str(FAKE), *words[1:]]
    )
    kernel = pytester.path / "bzImage"
    kernel.write_bytes(f"Linux version {RELEASE} (who@where)".encode())
    (pytester.path / f"config-{RELEASE}").write_text(CONFIG)
    (pytester.path / "System.map").write_text("ffffffff81000000 T fake_function\n")
    (pytester.path / "initrd").touch()
    for name, text in (("panic", PANIC), ("oops", OOPS), ("warning", WARNING), ("lockup", LOCKUP)):
        (pytester.path / name).write_text(text)

    def run(source: str, *options: str, initrd: str = "initrd") -> pytest.RunResult:
        pytester.makepyfile(HEAD.format(str(pytester.path)) + source)
        words = ["--vm-kernel", str(kernel), "--vm-initrd", str(pytester.path / initrd)]
        words += ["--vm-log-dir", str(pytester.path / "logs"), "-p", "no:cacheprovider"]
        words += ["--vm-results", str(pytester.path / "results"), "-p", "no:randomly"]
        return pytester.runpytest_inprocess(*words, *options, no_reraise_ctrlc=True)

    return run


@pytest.fixture
def rows(pytester: pytest.Pytester) -> Callable[[], list[dict[str, object]]]:
    def read() -> list[dict[str, object]]:
        return [json.loads(line) for line in (pytester.path / "results").read_text().splitlines()]

    return read


Rows = Callable[[], list[dict[str, object]]]


def test_a_test_that_passes(run: Run, rows: Rows, pytester: pytest.Pytester) -> None:
    result = run(
        """
def test_it(vm, kernel):
    assert vm.succeed("echo hello") == "hello\\n"
    done = vm.run(["sh", "-c", "cat; echo no >&2; exit 3"], input="yes")
    assert (done.code, done.stdout, done.stderr) == (3, "yes", "no\\n")
    assert done.duration > 0
    assert "out" in vm.fail("echo out; false")
    assert vm.verdict is None
    assert kernel.release == "6.1.7-fake"
    assert kernel.config["CONFIG_HZ"] == "250"
"""
    )
    result.assert_outcomes(passed=1)
    (row,) = rows()
    assert row == {
        "nodeid": "test_a_test_that_passes.py::test_it[bzImage]",
        "subtest": [],
        "when": "call",
        "outcome": "passed",
        "verdict": "passed",
        "seconds": row["seconds"],
        "kernel": RELEASE,
        "fingerprint": None,
    }
    assert list((pytester.path / "logs").glob("*")) == []


VERDICTS = [
    ("failed", 'vm.succeed("false")', "CommandFailedError: false: status 1, it was to succeed"),
    ("failed", 'vm.run("echo"); assert 1 == 2', "assert 1 == 2"),
    ("panicked", "say('panic')", "GuestPanickedError: Kernel panic - not syncing: sysrq"),
    ("panicked", "do('event GUEST_PANICKED {}')", "GuestPanickedError: Kernel panic; the console"),
    ("oopsed", "say('oops')", "GuestOopsedError: BUG: kernel NULL pointer dereference"),
    (
        "warned",
        "warn(vm)",
        "the kernel warned: WARNING: ",
    ),
    ("hung", "say('lockup')", "GuestHungError: BUG: soft lockup"),
    ("hung", "do('mute')", "GuestHungError: no sign of life from the guest for 1 s"),
    ("timeout", "vm.run('sleep 9', timeout=0.5)", "GuestTimeoutError: sleep 9: not within 0.5 s"),
    ("timeout", "vm.wait_for_file('/none', 0.2)", "GuestTimeoutError: file /none: not within 0.2"),
    (
        "timeout",
        "vm.wait_for_console('none', 0.2)",
        "GuestTimeoutError: console: 'none': not within 0.2 s",
    ),
    ("triple-fault", f"do({TRIPLE_FAULT!r})", "the guest triple-faulted"),
    ("monitor-died", "do('say pyvirt: no more\\nexit 7')", "ended with status 7: no more"),
    ("monitor-died", "vm.start(); os.kill(vm.pid, 9); vm.run('sleep 60')", "killed by signal 9"),
    ("failed", f"do({SHUTDOWN % ('guest-shutdown', 0)!r})", "GuestEndedError: the guest powered"),
    ("failed", f"do({SHUTDOWN % ('guest-reset', 0)!r})", "GuestEndedError: the guest rebooted"),
]
HELPERS = """
def say_of(vm):
    return lambda name: vm.run(f"cat {HERE}/{name} >$CONSOLE; sleep 60")
def do_of(vm):
    return lambda words: vm.run("cat >$MONITOR; sleep 60", input=words + "\\n")

@pytest.mark.vm_timeout(quiet=1, boot=30, call=30)
def test_it(vm):
    say, do = say_of(vm), do_of(vm)
"""


@pytest.mark.long
@pytest.mark.parametrize(("verdict", "statement", "text"), VERDICTS)
def test_every_verdict_is_told_with_evidence(
    verdict: str, statement: str, text: str, run: Run, rows: Rows, pytester: pytest.Pytester
) -> None:
    result = run(f"{HELPERS}    {statement}\n")
    result.assert_outcomes(failed=1)
    output = result.stdout.str()
    assert text in output
    gone = "exit" in statement or "kill" in statement
    for title in ("guest console (last lines)", "vCPU state", "reproduce"):
        # Of a monitor that is gone without a word there is none.
        assert f" {title} " in output or (title == "vCPU state" and gone)
    assert f"pyvirt run -smp 1 -m 256M -kernel {pytester.path}/bzImage" in output
    (row,) = rows()
    assert (row["outcome"], row["verdict"]) == ("failed", verdict)
    if verdict in {"panicked", "oopsed", "warned"} and "event" not in statement:
        assert " kernel report " in output
        assert row["fingerprint"]
    (folder,) = (pytester.path / "logs").iterdir()
    assert {path.name for path in folder.rglob("*.*")} >= {"console.log", "events.jsonl"}


def test_initrd_without_an_agent(run: Run, rows: Rows) -> None:
    (Path("no-agent")).touch()
    result = run(
        """
@pytest.mark.vm_timeout(boot=1)
def test_it(vm):
    vm.start()
""",
        initrd="no-agent",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*BootFailedError: no agent answered in 1 s; does the initrd start one?"]
    )
    assert rows()[0]["verdict"] == "boot-failed"


def test_monitor_that_refuses_to_start(run: Run, rows: Rows, pytester: pytest.Pytester) -> None:
    """The words for the monitor are what a fake one cannot judge, so this one is real."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fork_server,
            "command",
            lambda *w: [sys.executable, "-P", "-c", "from pyvirt.cli.main import main; main()", *w],
        )
        result = run("@pytest.mark.vm(disks=['/no/disk'])\ndef test_it(vm):\n    vm.start()\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*BootFailedError: the monitor refused its options: -disk /no/disk: *"]
    )
    assert rows()[0]["verdict"] == "boot-failed"


@pytest.mark.long
def test_marks_that_expect_what_happens(run: Run, rows: Rows) -> None:
    result = run(
        """
@pytest.mark.expects_panic("sysrq triggered")
def test_panic(vm):
    vm.run(f"cat {HERE}/panic >$CONSOLE; sleep 9")

@pytest.mark.expects_panic("sysrq triggered")
def test_panic_that_comes_later(vm):
    vm.spawn(f"sleep 0.5; cat {HERE}/panic >$CONSOLE")

@pytest.mark.expects_panic("something else")
def test_other_panic(vm):
    vm.run(f"cat {HERE}/panic >$CONSOLE; sleep 9")

@pytest.mark.expects_panic("sysrq triggered")
@pytest.mark.vm_timeout(call=0.5)
def test_no_panic(vm):
    vm.run("true")

@pytest.mark.allow_splat("fake_function")
def test_warning(vm):
    warn(vm)

@pytest.mark.allow_splat("other_function")
def test_other_warning(vm):
    warn(vm)

def test_panic_nobody_looks_at(vm):
    vm.spawn(f"cat {HERE}/panic >$CONSOLE")
    vm.wait_for_end()
"""
    )
    result.assert_outcomes(passed=3, failed=4)
    assert [row["verdict"] for row in rows()] == [
        *("passed", "passed", "panicked", "failed", "passed", "warned", "panicked")
    ]


def test_marks_of_the_kernel(run: Run) -> None:
    result = run(
        """
@pytest.mark.kernel(config=["CONFIG_KUNIT", "HZ=250"], min="6.1")
def test_fits(kernel): pass

@pytest.mark.kernel(config="CONFIG_KASAN")
def test_lacks(vm): vm.start()

@pytest.mark.kernel(config=["CONFIG_HZ=1000"])
def test_other_value(kernel): pass

@pytest.mark.kernel(min="6.10")
def test_newer(kernel): pass
""",
        "-rs",
    )
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines_random(
        [
            f"*kernel {RELEASE} lacks CONFIG_KASAN",
            f"*kernel {RELEASE} has CONFIG_HZ=250*",
            f"*kernel {RELEASE} is older than 6.10",
        ]
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("mark", "error"),
    [
        ("vm(cpus=2)", "mark vm: no such member as cpus; there are vcpus, memory,"),
        ("vm(2)", "mark vm: it takes keywords only"),
        ("vm(disks='scratch:1M')", "give a list of texts"),
        ("vm(disks=['scratch:many'])", "size many: give one such as 64M"),
        ("vm(fork='yes')", "vm: fork='yes': give True or False"),
        ("vm(prepare='it')", "vm: prepare='it': give a function that takes the VM"),
        ("vm_timeout(boot=0)", "boot=0: give a number of seconds"),
        ("vm_timeout(boots=1)", "no such member as boots"),
        ("kernel(arch='x86')", "mark kernel: give config="),
        ("allow_splat()", "mark allow_splat: give one regular expression"),
        ("allow_splat('(')", "mark allow_splat: '(': "),
    ],
)
def test_marks_that_make_no_sense(mark: str, error: str, run: Run) -> None:
    result = run(f"@pytest.mark.{mark}\ndef test_it(vm): vm.start()\n")
    assert result.parseoutcomes().keys() & {"errors", "failed"}
    assert error in result.stdout.str()


def test_nothing_of_a_test_outlives_it(run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        """
pids = []
def test_it(vm, vm_factory):
    vm.spawn("sleep 1000")
    other = vm_factory("other", vcpus=2, disks=["scratch:64M"]).start()
    third = vm_factory("other").start()
    assert [vm.name, other.name, third.name] == ["vm", "other", "other2"]
    assert "-smp" in other.words and "2" in other.words
    disk = other.words[other.words.index("-disk") + 1]
    assert os.stat(disk).st_size == 64 << 20 and os.stat(disk).st_blocks == 0
    pids.extend(vm.pid for vm in (vm, other, third))
    pids.append(disk)

def test_afterwards():
    *numbers, disk = pids
    assert not any(os.path.exists(f"/proc/{pid}") for pid in numbers)
    assert not os.path.exists(disk)
"""
    )
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("keep", "left"), [("never", []), ("failed", ["fails"]), ("always", ["fails", "passes"])]
)
def test_keep(keep: str, left: list[str], run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        """
def test_passes(vm): vm.start()
def test_fails(vm): vm.succeed("false")
""",
        "--vm-keep",
        keep,
    )
    result.assert_outcomes(passed=1, failed=1)
    logs = pytester.path / "logs"
    kept = sorted(path.name for path in logs.iterdir()) if logs.exists() else []
    assert [name.split("test_")[-1].removesuffix("_bzImage_") for name in kept] == left


@pytest.mark.parametrize(
    ("shows", "count"), [("never", 0), ("fail", 1), ("live", 3), ("always", 2)]
)
def test_console(shows: str, count: int, run: Run) -> None:
    result = run(
        """
def test_passes(vm):
    vm.run("echo words of a kernel >$CONSOLE"); vm.wait_for_console("words")
def test_fails(vm):
    vm.run("echo words of a kernel >$CONSOLE"); vm.wait_for_console("words"); vm.succeed("false")
""",
        *("--vm-console", shows, "-rP", "--tb=line"),
    )
    result.assert_outcomes(passed=1, failed=1)
    assert result.stdout.str().count("words of a kernel") == count


def test_a_warning_s_text_stands_once_in_a_report(run: Run) -> None:
    result = run("def test_it(vm):\n    warn(vm)\n", "--tb=line")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert text.count("at drivers/fake.c:12 fake_function+0x10/0x20") == 1
    assert text.count("---[ end trace 0000000000000000 ]---") == 1


def test_a_test_that_fails_by_its_subtests(run: Run, rows: Rows) -> None:
    result = run(
        """
def test_points(vm, subtests):
    with subtests.test(msg="good"):
        vm.run("true")
    with subtests.test(msg="late"):
        vm.run("sleep 9", timeout=0.2)
    with subtests.test(msg="bad"):
        vm.succeed("false")

def test_good(vm, subtests):
    with subtests.test(msg="good"):
        vm.run("true")
""",
        "--junitxml=junit.xml",
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [(row["subtest"], row["outcome"], row["verdict"]) for row in rows()] == [
        (["good"], "passed", "passed"),
        (["late"], "failed", "timeout"),
        (["bad"], "failed", "failed"),
        ([], "failed", "timeout"),
        (["good"], "passed", "passed"),
        ([], "passed", "passed"),
    ]
    said = re.findall('name="vm_verdict" value="([a-z]+)"', Path("junit.xml").read_text())
    assert said == ["timeout", "passed"]


@pytest.mark.long
def test_files_of_any_size_go_in_pieces(run: Run) -> None:
    """Neither the host's file nor the guest's is ever in memory as a whole."""
    run(
        """
import pathlib, tracemalloc

def big(path):
    with path.open("wb") as file:
        file.write(b"begin"); file.truncate(96 << 20); file.seek(0, 2); file.write(b"end")
    path.chmod(0o700)
    return path

def test_it(vm, tmp_path):
    vm.start()
    inside = str(tmp_path / "in the guest")
    source, back = big(tmp_path / "big"), tmp_path / "back"
    tracemalloc.start()
    try:
        vm.put(inside, source, timeout=300)
        vm.get_file(inside, back, timeout=300)
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()
    assert back.stat().st_size == source.stat().st_size
    assert os.stat(inside).st_mode & 0o777 == 0o755
    with back.open("rb") as file:
        assert file.read(6) == b"begin\\0"
        file.seek(-4, 2)
        assert file.read() == b"\\0end"

def test_limits(vm, tmp_path):
    vm.start()
    inside, source = str(tmp_path / "in the guest"), big(tmp_path / "big")
    with pytest.raises(Exception, match="put .*guest: not within 0.001 s"):
        vm.put(inside, source, timeout=0.001)
    vm.put(inside, source, timeout=300)
    with pytest.raises(Exception, match="get .*guest: not within 0.001 s"):
        vm.get(inside, timeout=0.001)

def test_errors(vm, tmp_path):
    with pytest.raises(Exception, match="put /x: .*/none: No such file"):
        vm.put("/x", tmp_path / "none")
    with pytest.raises(Exception, match="get /none: /none: No such file"):
        vm.get_file("/none", tmp_path / "out")
    with pytest.raises(Exception, match="get /proc/self/maps: /dev/full: No space"):
        vm.get_file("/proc/self/maps", pathlib.Path("/dev/full"))
"""
    ).assert_outcomes(passed=3)


def test_events_and_hotplug(run: Run) -> None:
    result = run(
        """
def test_it(vm, qmp, console):
    with vm.expect_event("DEVICE_DELETED", device="disk1") as events:
        image = vm.hotplug.disk("disk1", size="16M")
        assert image.stat().st_size == 16 << 20
        vm.hotplug.remove("disk1")
    again = vm.hotplug.disk("disk1", size="1M")
    assert (again.stat().st_size, image.stat().st_size) == (1 << 20, 16 << 20)
    vm.hotplug.disk("a/b", size="1M")
    with pytest.raises(Exception, match="size 900000G: File too large"):
        vm.hotplug.disk("c", size="900000G")
    vm.hotplug.net("nic", ifname="tap0", mac="52:54:00:00:00:01")
    asked = [json.loads(line[3:]) for line in vm.qmp_log if line.startswith("->")]
    assert [one["arguments"] for one in asked[-2:]] == [
        {"id": "nic", "ifname": "tap0"},
        {"id": "nic", "driver": "virtio-net-mmio", "mac": "52:54:00:00:00:01"},
    ]
    assert events[0]["data"]["device"] == "disk1"
    assert vm.events("DEVICE_DELETED") == events
    assert qmp.execute("query-status") == {"running": True}
    assert vm.regs()["rip"] == 0x1234
    assert console is vm.console

@pytest.mark.vm_timeout(call=0.5)
def test_no_event(vm):
    with vm.expect_event("STOP"):
        pass
"""
    )
    result.assert_outcomes(passed=1, failed=1)
    assert "GuestTimeoutError: event STOP: not within 0.5 s" in result.stdout.str()


def test_power_that_a_test_asks_for_is_no_failure(run: Run) -> None:
    off = SHUTDOWN % ("guest-shutdown", 0)
    result = run(
        f"""
def test_kill(vm):
    vm.start()
    vm.kill()
    with pytest.raises(Exception, match="killed by signal 9"):
        vm.run("true")

def test_power_cut_by_the_guest(vm):
    with pytest.raises(Exception, match="the guest powered off"):
        vm.run("cat >$MONITOR; sleep 9", input={off!r})
    assert vm.verdict == "passed"
"""
    )
    result.assert_outcomes(passed=2)


@pytest.mark.long
def test_several_workers_share_a_session(run: Run, rows: Rows) -> None:
    result = run(
        """
@pytest.mark.parametrize("n", range(6))
def test_it(vm, n):
    assert vm.succeed(f"echo {n}") == f"{n}\\n"
    assert n != 5
""",
        *("-n", "2", "-p", "xdist"),
    )
    result.assert_outcomes(passed=5, failed=1)
    assert sorted(str(row["verdict"]) for row in rows()) == ["failed"] + ["passed"] * 5
    assert " guest console (last lines) " in result.stdout.str()


def test_live_console_needs_a_terminal(run: Run) -> None:
    result = run("def test_it(): pass\n", "-n", "2", "--vm-console", "live")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--vm-console live: not with -n" in result.stderr.str()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--vm-kernel", "/none"], "--vm-kernel /none: neither a file nor one of cloud"),
        (["--vm-initrd", "/none"], "--vm-initrd /none: there is no such file"),
        (["--vm-root=/none"], "--vm-root /none: no such folder"),
        (["--vm-timeout-scale", "0"], "--vm-timeout-scale 0.0: give a number above 0"),
        (["--vm-results", "/none/file"], "--vm-results /none/file: No such file or directory"),
    ],
)
def test_options_that_make_no_sense(options: list[str], error: str, run: Run) -> None:
    result = run("def test_it(): pass\n", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert error in result.stderr.str()


def test_nothing_is_started_for_tests_without_a_vm(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "command", lambda *words: ["/bin/false"])
    run("def test_it(kernel): assert kernel.image.exists()\n").assert_outcomes(passed=1)


def test_server_that_goes_away_costs_one_test(run: Run, rows: Rows) -> None:
    result = run(
        """
def test_it(vm, request):
    from pyvirt.harness.plugin import plugin
    vm.start()
    plugin.state_of(request.config).place._server._process.kill()
    vm.run("sleep 20")

def test_next(vm):
    vm.succeed("true")
"""
    )
    result.assert_outcomes(passed=1, failed=1)
    assert "LabLostError: the fork server ended with status -9" in result.stdout.str()
    assert [row["verdict"] for row in rows()] == ["monitor-died", "passed"]


def test_ctrl_c_leaves_nothing(run: Run, pytester: pytest.Pytester) -> None:
    result = run(
        """
def test_it(vm, request):
    from pyvirt.harness.plugin import plugin
    vm.start()
    with open("left", "w") as file:
        server = plugin.state_of(request.config).place.server()
        file.write(f"/proc/{vm.pid} {vm.folder()} {os.path.dirname(server)}")
    raise KeyboardInterrupt
"""
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED
    for path in (pytester.path / "left").read_text().split():
        assert not Path(path).exists()
