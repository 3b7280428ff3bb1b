"""Chardevs and the serial port: what each kind takes, who may use it, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli import run
from pyvirt.cli.options.parse import parse
from pyvirt.devices.chardev import FILE, NULL, PTY, RINGBUF, SOCKET, STDIO, ChardevConfig

from ...refusal import attempt, refusal

ENDS = ",server,nowait"
WAITS = "pyvirt listens and does not wait for a client; add ,server,nowait"


def serial(*words: str) -> ChardevConfig:
    return parse(list(words)).serial


# Members, the kind and the fields that they make.
KINDS = [
    ("stdio", STDIO, {"signals": False}),
    ("stdio,mux=off,signal=on", STDIO, {"signals": True}),
    ("null", NULL, {}),
    ("pty", PTY, {"path": ""}),
    ("pty,path=/tmp/tty", PTY, {"path": "/tmp/tty"}),
    ("file,path=/tmp/a=b", FILE, {"path": "/tmp/a=b", "append": False, "input_path": ""}),
    ("file,path=a,,b,append=on", FILE, {"path": "a,b", "append": True}),
    ("file,input-path=i,append=off,path=o", FILE, {"path": "o", "input_path": "i"}),
    (f"socket,path=s{ENDS}", SOCKET, {"path": "s", "listens": True}),
    ("socket,server=on,wait=off,path=s", SOCKET, {"path": "s", "listens": True}),
    ("socket,path=s", SOCKET, {"path": "s", "listens": False}),
    ("socket,path=s,server=off", SOCKET, {"path": "s", "listens": False}),
    (f"socket,port=5{ENDS}", SOCKET, {"host": "127.0.0.1", "port": 5, "listens": True}),
    ("socket,host=::1,port=65535", SOCKET, {"host": "::1", "port": 65535, "listens": False}),
    ("socket,fd=7", SOCKET, {"fd": 7, "path": ""}),
]
OF_CHARDEV = [
    *KINDS,
    ("ringbuf", RINGBUF, {"size": 65536}),
    ("ringbuf,size=2", RINGBUF, {"size": 2}),
    ("ringbuf,size=16k", RINGBUF, {"size": 16384}),
    ("ringbuf,size=64M", RINGBUF, {"size": 1 << 26}),
]


def check(config: ChardevConfig, kind: str, fields: dict[str, object]) -> None:
    assert config.kind == kind
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(("text", "kind", "fields"), KINDS)
def test_of_the_serial_port(text: str, kind: str, fields: dict[str, object]) -> None:
    config = serial("-serial", text)
    check(config, kind, fields)
    assert config.id == "serial0"


@pytest.mark.parametrize(("text", "kind", "fields"), OF_CHARDEV)
def test_of_a_chardev(text: str, kind: str, fields: dict[str, object]) -> None:
    word, _, rest = text.partition(",")
    config = serial("-serial", "chardev:c", "-chardev", f"{word},id=c{rest and ','}{rest}")
    check(config, kind, fields)
    assert (config.id, config.option) == ("c", "-chardev id=c")


def test_who_has_the_terminal() -> None:
    assert parse([]).terminal is not None
    words = ["-chardev", "stdio,id=c", "-serial", "chardev:c"]
    options = parse(words)
    assert options.terminal is options.serial
    assert parse(["-serial", "none"]).terminal is None


def test_the_guest_that_runs_when_none_is_named_is_on_its_serial_port() -> None:
    words = ["-chardev", "stdio,id=c", "-device", "virtio-serial-device"]
    words += ["-device", "virtconsole,chardev=c"]
    assert refusal(lambda: run.main(words)) == (
        "-chardev id=c: the guest that runs when none is named is on its serial port; "
        "give -serial chardev:c, or a -kernel"
    )


REFUSED = [
    (["-serial", ""], ("-serial : not a backend; give stdio, none, pty, file,path=FILE, "
     "socket,path=PATH,server,nowait or chardev:ID")),
    (["-serial", "tcp"], ("-serial tcp: not a backend; give stdio, none, pty, file,path=FILE, "
     "socket,path=PATH,server,nowait or chardev:ID")),
    (["-serial", "stdio,path=x"], ("-serial stdio,path=x: path is not understood here; "
     "pyvirt run -help lists what is")),
    (["-serial", "pty,"], ("-serial pty,: an empty member is not understood here; "
     "pyvirt run -help lists what is (a comma within a value is written twice)")),
    (["-serial", "file"], "-serial file: path names no file; give path=FILE"),
    (["-serial", "file,path="], "-serial file,path=: path names no file; give path=FILE"),
    (["-serial", "file,path=a,path=b"],
     "-serial file,path=a,path=b: path is given twice; give it once"),
    (["-serial", "file,path=a,b"], ("-serial file,path=a,b: b is not understood here; pyvirt run "
     "-help lists what is (a comma within a value is written twice)")),
    (["-serial", "file,path=a,append=1"],
     "-serial file,path=a,append=1 append 1: not one of on, yes, true, off, no, false"),
    (["-serial", "file,path=a,input-path="],
     "-serial file,path=a,input-path=: input-path names no file; give input-path=FILE"),
    (["-serial", "socket,server,nowait"], ("-serial socket,server,nowait: give one of path=PATH, "
     "host=HOST,port=PORT and fd=N")),
    (["-serial", "socket,path=a,server"], f"-serial socket,path=a,server: {WAITS}"),
    (["-serial", "socket,path=a,nowait"], f"-serial socket,path=a,nowait: {WAITS}"),
    (["-serial", "socket,path=a,server,wait=on"], f"-serial socket,path=a,server,wait=on: {WAITS}"),
    (["-serial", f"socket,path={'a' * 108}{ENDS}"],
     (f"-serial socket,path={'a' * 108}{ENDS}: a socket's path has 1 to 107 bytes, not 108")),
    (["-serial", "socket,port=65536"],
     "-serial socket,port=65536: 65536 is not a number from 1 to 65535"),
    (["-serial", "socket,fd=2"], "-serial socket,fd=2: 2 is not a number from 3 to 1048576"),
    (["-serial", "ringbuf"], ("-serial ringbuf: not a backend; give stdio, none, pty, "
     "file,path=FILE, socket,path=PATH,server,nowait or chardev:ID")),
    (["-serial", "chardev:c"],
     "-serial chardev:c: c is no -chardev; add -chardev socket,id=c,..."),
    (["-chardev", "stdio,id=c,mux=on", "-serial", "chardev:c"],
     ("-chardev stdio,id=c,mux=on: nothing can share the terminal with the guest's console; "
      "give mux=off, and -qmp unix:PATH,server,nowait for a monitor")),
    *((["-chardev", f"ringbuf,id=c,size={size}", "-serial", "chardev:c"],
       (f"-chardev ringbuf,id=c,size={size}: size={size} is no power of two from 2 to 64M; "
        "give one such as 64K")) for size in ("1", "3", "1000", "128M", "0", "", "-4", "4G", "K")),
    (["-chardev", "null", "-serial", "chardev:c"],
     "-chardev null: has no id; give null,id=ID"),
    (["-chardev", "null,id=c", "-chardev", "pty,id=c"],
     "-chardev pty,id=c: there is one of id c; give another"),
    (["-chardev", "stdio,id=c", "-serial", "chardev:c", "-chardev", "null,id=d"],
     ("-chardev id=d: nothing uses it; add -serial chardev:d, -device virtconsole,chardev=d "
      "or virtserialport,chardev=d")),
    (["-chardev", "stdio,id=c", "-serial", "chardev:c", "-mon", "c,mode=control"],
     ("-mon c,mode=control: c has -serial chardev:c already; give each its own -chardev")),
    (["-daemonize", "-chardev", "stdio,id=c", "-serial", "chardev:c"],
     ("-chardev id=c: not with -daemonize, which leaves stdin and stdout; give it a file, "
      "a socket or null")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refused(words: list[str], text: str) -> None:
    assert refusal(lambda: parse(words)) == text


@given(
    st.sampled_from(["-serial", "-chardev"]),
    st.lists(
        st.sampled_from(
            ["stdio", "pty", "file", "socket", "ringbuf", "null", "id=c", "path=x", "path", "size="]
        )
        | st.sampled_from(["server", "nowait", "port=", "fd=", "7", "append=on", "signal=on"])
        | st.text("aé=,:. ", max_size=4),
        max_size=6,
    ),
)
def test_any_words_are_understood_or_refused(option: str, words: list[str]) -> None:
    user = ["-serial", "chardev:c"] if option == "-chardev" else []
    attempt(lambda: parse([f"{option}={','.join(words)}", *user]))
