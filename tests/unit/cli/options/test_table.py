"""The command line of `pyvirt run`: what is understood, and what is refused in which words."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyvirt.cli.options import table as options
from pyvirt.cli.options.help import usage
from pyvirt.cli.options.parse import parse
from pyvirt.cli.options.parsed import ACCELERATORS, Options
from pyvirt.cli.options.sizes import memory_size
from pyvirt.vmm.memory import MIB

from ...refusal import attempt, refusal

GIB = 1024 * MIB


def plain(value: object) -> object:
    """Return a value in which our configurations are dicts, for comparison."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    names: tuple[str, ...] = getattr(type(value), "__slots__", ())
    if not names:
        return value
    return {name: plain(getattr(value, name)) for name in names if name not in {"given", "handle"}}


def fields(parsed: Options) -> dict[str, object]:
    """Return what was asked for, less how it was written, and less what depends on all of it."""
    left_out = {"given", "serial", "terminal"}
    return {
        name: plain(getattr(parsed, name)) for name in Options.__slots__ if name not in left_out
    }


def changed(*argv: str) -> dict[str, object]:
    """Return the fields that a command line changes."""
    before = fields(Options())
    return {
        name: value for name, value in fields(parse(list(argv))).items() if value != before[name]
    }


def test_defaults() -> None:
    assert changed() == {}
    given = Options()
    assert (given.memory, given.smp, given.accel, given.append) == (256 * MIB, 1, "auto", None)


# Option, field, text, value; flags have no text.
EACH = [
    ("kernel", "kernel", "/boot/vmlinuz", "/boot/vmlinuz"),
    ("append", "append", "console=ttyS0 root=/dev/vda", "console=ttyS0 root=/dev/vda"),
    ("append", "append", "", ""),
    ("smp", "smp", "2", 2),
    ("smp", "smp", "cpus=254", 254),
    ("m", "memory", "512", 512 * MIB),
    ("m", "memory", "size=2G", 2 * GIB),
    ("machine", "discovery", "microvm,discovery=acpi,dump-guest-core=off", "acpi"),
    ("machine", "discovery", "type=MicroVM,discovery=cmdline,usb=no", "cmdline"),
    ("machine", "accel", "microvm,accel=kvm", "kvm"),
    ("machine", "share", "microvm,mem-share=on", True),
    ("accel", "accel", "lab", "lab"),
    ("name", "name", "guest one", "guest one"),
    ("name", "name", "é" * 255, "é" * 255),
    ("S", "freeze", None, True),
    ("freeze", "freeze", None, True),
    ("daemonize", "daemonize", None, True),
    ("pidfile", "pidfile", "/run/x.pid", "/run/x.pid"),
    ("D", "log", "/tmp/log", "/tmp/log"),
]


@pytest.mark.parametrize("dashes", ["-", "--"])
@pytest.mark.parametrize(("name", "field", "text", "value"), EACH)
def test_each_option_in_every_spelling(
    dashes: str, name: str, field: str, text: str | None, value: object
) -> None:
    word = f"{dashes}{name}"
    if text is None:
        assert changed(word) == {field: value}
    else:
        assert changed(word, text) == {field: value}
        assert changed(f"{word}={text}") == {field: value}


def test_value_after_equals_may_hold_anything() -> None:
    assert changed("-append=a=b -c --d") == {"append": "a=b -c --d"}
    assert changed("--kernel=-odd=name") == {"kernel": "-odd=name"}


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["-append", "a", "b", "c"], "a b c"),
        (["-append", "a b", "c"], "a b c"),
        (["-append", "a", "b", "-S"], "a b"),
        (["-S", "-append", ""], ""),
    ],
)
def test_words_after_append_belong_to_it(argv: list[str], text: str) -> None:
    assert parse(argv).append == text
    assert parse(argv).freeze == ("-S" in argv)


def test_words_after_append_with_equals_do_not() -> None:
    assert refusal(lambda: parse(["-append=a", "b"])) == (
        "b: not an option; pyvirt run -help lists them"
    )


@pytest.mark.parametrize("argv", [["-D"], ["-D", "-S"], ["-D="]])
def test_log_without_a_file_goes_to_stderr(argv: list[str]) -> None:
    assert parse(argv).log == ""


@pytest.mark.parametrize(
    ("argv", "where"), [(["-timeline"], ""), (["-timeline=a.svg"], "a.svg"), ([], None)]
)
def test_timeline(argv: list[str], where: str | None) -> None:
    assert parse(argv).timeline == where


def test_timeline_takes_no_word() -> None:
    assert "a.svg: not an option" in refusal(lambda: parse(["-timeline", "a.svg"]))


def test_actions() -> None:
    def actions(*argv: str) -> tuple[str, str, str]:
        found = parse(list(argv)).actions
        return found.reboot, found.shutdown, found.panic

    assert actions() == actions("-no-reboot") == ("shutdown", "poweroff", "none")
    assert actions("-action", "reboot=reset,panic=pause") == ("reset", "poweroff", "pause")
    assert actions("-action", "reboot=reset", "-action", "panic=exit-failure", "-no-shutdown") == (
        "reset", "pause", "exit-failure",
    )  # fmt: skip
    assert actions("-action", "reboot=reset", "-no-reboot")[0] == "shutdown"


def test_watchdog_action() -> None:
    assert parse([]).actions.watchdog == "reset"
    for word in ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"):
        assert parse(["-action", f"watchdog={word}"]).actions.watchdog == word
        assert parse(["-watchdog-action", word]).actions.watchdog == word
    message = "-watchdog-action bark: not one of reset, shutdown, poweroff, pause, debug, none, "
    assert refusal(lambda: parse(["-watchdog-action", "bark"])).startswith(message)


def test_what_was_given_is_kept_as_written() -> None:
    argv = ["--m=1G", "-append", "a", "b", "-freeze", "-smp", "cpus=2", "-nographic"]
    assert parse(argv).given == [("m", "1G"), ("append", "a b"), ("S", ""), ("smp", "cpus=2")]


@pytest.mark.parametrize("word", ["-nodefaults", "--no-user-config"])
def test_habits_of_others_ask_for_nothing(word: str) -> None:
    assert changed(word, "-S", word) == {"freeze": True}


@pytest.mark.parametrize(
    "words",
    [
        ["-overcommit", "mem-lock=off"],
        ["-msg", "timestamp=on", "-boot", "strict=on"],
        ["-display", "none", "-global", "driver.x=y", "-trace"],
    ],
)
def test_habits_with_a_value_ask_for_nothing(words: list[str]) -> None:
    assert changed(*words, "-S", *words) == {"freeze": True}


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ([], "on"),
        (["-sandbox", "on"], "on"),
        (["-sandbox=log"], "log"),
        (["-sandbox", "enable=off"], "off"),
        (["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"], "on"),
        (["-sandbox", "on", "-disable-seccomp"], "off"),
        (["-disable-seccomp"], "off"),
    ],
)
def test_sandbox(words: list[str], mode: str) -> None:
    assert parse(words).sandbox == mode


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-sandbox", "maybe"], "-sandbox maybe: not one of on, off, log"),
        (["-sandbox", "spawn=deny"], "-sandbox : not one of on, off, log"),
        (["-sandbox=on,spawn=allow"], "-sandbox spawn allow: not one of deny"),
        (
            ["-sandbox=on,children=deny"],
            (
                "-sandbox on,children=deny: children is not understood; accepted are obsolete, "
                "elevateprivileges, spawn, resourcecontrol"
            ),
        ),
        (["-disable-seccomp=yes"], "-disable-seccomp: takes no value; leave yes out"),
        (
            ["-device", "pc-testdev", "-sandbox", "on"],
            (
                "-device pc-testdev: not in a sandbox, which lets nobody change how memory is "
                "mapped as this device does; give -sandbox off"
            ),
        ),
    ],
)
def test_sandboxes_that_cannot_be(words: list[str], message: str) -> None:
    assert refusal(lambda: parse(words)) == message


def test_sandbox_paths() -> None:
    words = ["-sandbox", "on", "-sandbox-path", "/a", "-sandbox-path=/b,ro"]
    assert parse(words).sandbox_paths == [("/a", False), ("/b", True)]


def test_a_sandbox_path_names_something() -> None:
    message = refusal(lambda: parse(["-sandbox", "on", "-sandbox-path", ",ro"]))
    assert message == "-sandbox-path ,ro: names nothing; give PATH[,ro]"
    message = refusal(lambda: parse(["-sandbox", "on", "-sandbox-path", "/a,rw"]))
    assert message == "-sandbox-path /a,rw: rw is not understood here; give ro, or none"


def test_a_sandbox_path_takes_a_sandbox() -> None:
    message = refusal(lambda: parse(["-sandbox-path", "/a", "-sandbox", "off"]))
    assert message == "-sandbox-path /a: only in a sandbox; give -sandbox on"


def test_the_environment_has_a_sandbox_for_who_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVIRT_SANDBOX", "log")
    assert parse([]).sandbox == "log"
    assert parse(["-sandbox", "off"]).sandbox == "off"
    assert parse(["-device", "pc-testdev"]).sandbox == "off"
    monkeypatch.setenv("PYVIRT_SANDBOX", "")
    assert refusal(lambda: parse([])) == "PYVIRT_SANDBOX= : not one of on, off, log"


@pytest.mark.parametrize("word", ["-h", "--help", "-help"])
def test_help(word: str) -> None:
    assert changed(word) == {"help": True}


@pytest.mark.parametrize("word", ["-bogus", "--bogus", "-bogus=1", "-", "--", "---kernel", "-K"])
def test_unknown_option(word: str) -> None:
    assert refusal(lambda: parse([word])) == f"{word}: no such option; pyvirt run -help lists them"


@pytest.mark.parametrize("word", ["kernel", "", "+S", "/boot/vmlinuz"])
def test_word_that_is_no_option(word: str) -> None:
    assert refusal(lambda: parse([word])) == f"{word}: not an option; pyvirt run -help lists them"


VALUED = [o.name for o in options.TABLE if not o.is_bare]


@pytest.mark.parametrize("name", VALUED)
@pytest.mark.parametrize("rest", [[], ["-S"], ["--name", "x"]])
def test_option_without_its_value(name: str, rest: list[str]) -> None:
    message = refusal(lambda: parse([f"-{name}", *rest]))
    assert message.startswith(f"-{name}: needs a value, ")


@pytest.mark.parametrize("word", ["-S=1", "--daemonize=yes", "-freeze="])
def test_flag_with_a_value(word: str) -> None:
    assert "takes no value; leave " in refusal(lambda: parse([word]))


@pytest.mark.parametrize(
    "argv",
    [["-m", "512", "--m=512"], ["-S", "-freeze"], ["-append", "a", "-append", "b"], ["-D", "-D"]],
)
def test_repeated_option(argv: list[str]) -> None:
    assert refusal(lambda: parse(argv)).endswith("given twice; give it once")


@pytest.mark.parametrize("name", ["kernel", "initrd", "pidfile"])
def test_empty_file_name(name: str) -> None:
    assert refusal(lambda: parse([f"-{name}="])) == f"-{name}: an empty file name; name a file"


@pytest.mark.parametrize("size", ["127", "127M", "0", "524289", "513G", "999999999G"])
def test_memory_out_of_range(size: str) -> None:
    assert refusal(lambda: parse(["-m", size])) == (
        f"-m {size}: not between 128M and 512G; give a size in that range"
    )


@pytest.mark.parametrize(
    ("size", "value"), [("128", 128 * MIB), ("524288M", 512 * GIB), ("512g", 512 * GIB)]
)
def test_memory_at_the_edges(size: str, value: int) -> None:
    assert parse(["-m", size]).memory == value


@pytest.mark.parametrize(
    "size",
    ["", "M", "G", "1T", "1.5G", "0x200", "256MB", "256 M", "+256", "1_000", "²56", "٢٥٦", "1e3",
     "1" * 10, "9" * 5000],
)  # fmt: skip
def test_memory_that_is_no_size(size: str) -> None:
    message = refusal(lambda: parse([f"-m={size}"]))
    assert message == f"-m {size}: not a size; give one such as 256, 256M or 1G"


@pytest.mark.parametrize("text", ["size=1G,slots=2", "1G,size=1G", "slots=2", ","])
def test_memory_members(text: str) -> None:
    assert refusal(lambda: parse(["-m", text])).startswith(f"-m {text}: ")


@pytest.mark.parametrize(
    "count",
    ["0", "255", "1000000", "", "two", "-1", "1.0", "0x2", "²", "٢", "cpus=", "cpus=0", "maxcpus=2",
     "0000002549", "254" + "0" * 5000],
)  # fmt: skip
def test_vcpu_count_out_of_range(count: str) -> None:
    message = refusal(lambda: parse([f"-smp={count}"]))
    assert message == f"-smp {count}: the vCPU count is a number from 1 to 254"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-machine", "q35"], "-machine q35: the only machine type is microvm"),
        (["-machine", "discovery=dt"], "-machine discovery dt: not one of auto, acpi, cmdline"),
        (["-machine", "accel=tcg"], "-machine accel tcg: not one of auto, kvm, lab"),
        (["-machine", "usb=maybe"], "-machine usb maybe: not one of on, yes, true, off, no, false"),
        (["-machine", "x=1"], "-machine x=1: no such member as x; see pyvirt run -help"),
        (["-accel", "KVM"], "-accel KVM: not one of auto, kvm, lab"),
        (["-action", "reboot=pause"], "-action reboot pause: not one of shutdown, reset"),
        (
            ["-action", "hang=reset"],
            (
                "-action hang=reset: no such event as hang; "
                "there are reboot, shutdown, panic, watchdog"
            ),
        ),
        (["-name", "x" * 256], "-name: 256 characters, 255 is the most; shorten it"),
        (["-initrd", "i"], "-initrd i: needs a -kernel to go with it"),
        *(
            (
                ["-uuid", text],
                (f"-uuid {text}: not a UUID; "
                "give 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12"),
            )
            for text in (
                "", "9f1c3e0a1f1e4b7e8a432f0f4c1d2e3b", "9f1c3e0a-1f1e-4b7e-8a43-2f0f4c1d2e3",
                "9f1c3e0a-1f1e-4b7e-8a43-2f0f4c1d2e3g", "{9f1c3e0-1f1e-4b7e-8a43-2f0f4c1d2e3b}",
            )
        ),
    ],
)  # fmt: skip
def test_refusals(argv: list[str], message: str) -> None:
    assert refusal(lambda: parse(argv)) == message


def test_uuid() -> None:
    assert parse([]).uuid == ""
    uuid = "9F1C3E0A-1f1e-4b7e-8a43-2f0f4c1d2e3b"
    assert parse(["-uuid", uuid]).uuid == uuid.lower()


def test_daemon_has_no_terminal() -> None:
    for words in (["-serial", "stdio"], ["-serial=stdio,signal=on"]):
        message = refusal(partial(parse, ["-daemonize", *words]))
        assert message == (
            "-serial stdio: not with -daemonize, which leaves stdin and stdout; "
            "give it a file, a socket or null"
        )


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ([], "stdio"),
        (["-daemonize"], "null"),
        (["-serial", "none"], "null"),
        (["-serial", "null"], "null"),
        (["-serial", "pty"], "pty"),
        (["-serial", "file,path=/tmp/x"], "file"),
    ],
)
def test_what_the_serial_port_is_on(words: list[str], kind: str) -> None:
    given = parse(words)
    assert (given.serial.kind, given.serial.id) == (kind, "serial0")
    assert given.terminal is (given.serial if kind == "stdio" else None)


def test_usage_names_every_option() -> None:
    text = usage()
    for option in options.TABLE:
        assert f"\n  -{option.name}" in text
        assert option.doc in text
    assert text.endswith("\n")


@given(st.integers(128, 512 * 1024), st.sampled_from(["", "M", "m"]))
def test_size_in_mib_is_read_back(mib: int, unit: str) -> None:
    assert memory_size("-m", f"{mib}{unit}") == mib * MIB


@given(st.integers(1, 512), st.sampled_from("Gg"))
def test_size_in_gib_is_read_back(gib: int, unit: str) -> None:
    assert memory_size("-m", f"{gib}{unit}") == gib * GIB


# One line is promised for words of one line.
printable = st.text(st.characters(exclude_categories=["Cc", "Zl", "Zp"]), max_size=20)
names = st.sampled_from([o.name for o in options.TABLE] + ["freeze", "help", "nodefaults"])
members = st.sampled_from(["cpus", "size", "maxcpus", "cores", "type", "discovery", "accel", "usb"])
values = (
    printable
    | st.integers(-5, 10**12).map(str)
    | st.builds("{}={}".format, members, printable | st.integers(0, 300).map(str))
    | st.lists(st.builds("{}={}".format, members, st.integers(0, 9)), max_size=3).map(",".join)
)
words = (
    st.builds("{}{}".format, st.sampled_from(["-", "--"]), names)
    | st.builds("{}{}={}".format, st.sampled_from(["-", "--"]), names, values)
    | values
)


@given(st.lists(words, max_size=8))
@example(["-smp", "1" * 9])
def test_any_command_line_is_understood_or_refused(argv: list[str]) -> None:
    parsed = attempt(lambda: parse(argv))
    if parsed is not None:
        assert 1 <= parsed.smp <= 254
        assert 128 * MIB <= parsed.memory <= 512 * GIB
        assert parsed.accel in ACCELERATORS
        assert parsed.kernel or not parsed.initrd


@given(st.lists(words, max_size=8))
@example(["-object=iothread,id=t", "-disk=a,iothread=t"])
def test_what_was_given_means_the_same_again(argv: list[str]) -> None:
    parsed = attempt(lambda: parse(argv))
    if parsed is not None:
        flags = [option.name for option in options.TABLE if not option.value]
        again = [f"-{name}" if name in flags else f"-{name}={text}" for name, text in parsed.given]
        assert fields(parse(again)) | {"help": parsed.help} == fields(parsed)
