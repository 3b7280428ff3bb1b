"""The options that describe monitors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options.parse import parse
from pyvirt.qmp.listener import FD, TCP, UNIX, ListenerConfig

from ...refusal import attempt, refusal

ENDS = ",server,nowait"
UNIX_A = ListenerConfig("-qmp unix:/a", UNIX, path="/a")


def only(*words: str) -> ListenerConfig:
    (listener,) = parse(list(words)).monitors
    return listener


UNDERSTOOD = [
    (f"unix:/a{ENDS}", UNIX_A),
    ("unix:/a,server=on,wait=off", UNIX_A),
    ("unix:/a,nowait,server", UNIX_A),
    (f"unix:/a=b{ENDS}", ListenerConfig("-qmp unix:/a=b", UNIX, path="/a=b")),
    (f"unix:a,,b{ENDS}", ListenerConfig("-qmp unix:a,b", UNIX, path="a,b")),
    (
        f"unix:/a{ENDS},throttle=off,events=last",
        ListenerConfig("-qmp unix:/a", UNIX, path="/a", throttled=False, events_last=True),
    ),
    (f"tcp::4444{ENDS}", ListenerConfig("-qmp tcp::4444", TCP, host="127.0.0.1", port=4444)),
    (f"tcp:h:1{ENDS}", ListenerConfig("-qmp tcp:h:1", TCP, host="h", port=1)),
    (f"tcp:[::1]:65535{ENDS}", ListenerConfig("-qmp tcp:[::1]:65535", TCP, host="::1", port=65535)),
    ("fd:3", ListenerConfig("-qmp fd:3", FD, fd=3)),
    ("fd:3,server,nowait", ListenerConfig("-qmp fd:3", FD, fd=3)),
]


@pytest.mark.parametrize(("text", "config"), UNDERSTOOD)
def test_qmp(text: str, config: ListenerConfig) -> None:
    assert only("-qmp", text) == config


def test_first_name_of_it() -> None:
    expected = ListenerConfig("-api-channel unix:/a", UNIX, path="/a")
    assert only("-api-channel", "unix:/a") == expected
    assert only("-api-channel", f"unix:/a{ENDS}") == expected


CHARDEVS = [
    (f"socket,id=c,path=/a{ENDS}", ListenerConfig("-chardev id=c", UNIX, path="/a", chardev="c")),
    (
        "socket,id=c,host=h,port=5,server=on,wait=off",
        ListenerConfig("-chardev id=c", TCP, host="h", port=5, chardev="c"),
    ),
    (
        f"socket,port=5,id=c{ENDS}",
        ListenerConfig("-chardev id=c", TCP, host="127.0.0.1", port=5, chardev="c"),
    ),
    ("socket,id=c,fd=7", ListenerConfig("-chardev id=c", FD, fd=7, chardev="c")),
    ("socket,id=c,fd=7,server,nowait", ListenerConfig("-chardev id=c", FD, fd=7, chardev="c")),
]


@pytest.mark.parametrize(("text", "config"), CHARDEVS)
@pytest.mark.parametrize("mon_first", [False, True])
def test_chardev_with_mon(text: str, config: ListenerConfig, mon_first: bool) -> None:
    chardev, mon = ["-chardev", text], ["-mon", "chardev=c,id=m,mode=control"]
    assert only(*(mon + chardev if mon_first else chardev + mon)) == config


def test_mon_has_the_settings() -> None:
    listener = only(
        *("-chardev", f"socket,id=c,path=/a{ENDS}"),
        *("-mon", "c,mode=control,throttle=off,events=last"),
    )
    assert (listener.throttled, listener.events_last) == (False, True)


def test_several_in_their_order() -> None:
    words = ["-mon", "chardev=c,mode=control", "-qmp", f"unix:/a{ENDS}", "-qmp", f"tcp::1{ENDS}"]
    monitors = parse([*words, "-chardev", f"socket,id=c,path=/c{ENDS}"]).monitors
    assert [(one.kind, one.path) for one in monitors] == [(UNIX, "/c"), (UNIX, "/a"), (TCP, "")]


FORMS = "unix:PATH,server,nowait, tcp:HOST:PORT,server,nowait or fd:N"
LISTENS = "pyvirt listens and does not wait for a client; add ,server,nowait"
HELP = "pyvirt run -help lists what is"
HINT = " (a comma within a value is written twice)"
REFUSED = [
    (["-qmp", "foo"], f"-qmp foo: not a monitor; give {FORMS}"),
    (["-qmp", "/tmp/sock"], f"-qmp /tmp/sock: not a monitor; give {FORMS}"),
    (["-qmp", "vsock:3:4"], f"-qmp vsock:3:4: not a monitor; give {FORMS}"),
    (["-qmp", "unix:/a"], f"-qmp unix:/a: {LISTENS}"),
    (["-qmp", "unix:/a,server"], f"-qmp unix:/a,server: {LISTENS}"),
    (["-qmp", "unix:/a,server=off,nowait"], f"-qmp unix:/a,server=off,nowait: {LISTENS}"),
    (["-qmp", "unix:/a,server,wait=on"], f"-qmp unix:/a,server,wait=on: {LISTENS}"),
    (["-qmp", f"unix:{ENDS}"], f"-qmp unix:{ENDS}: a socket's path has 1 to 107 bytes, not 0"),
    (
        ["-qmp", f"unix:/{'x' * 107}{ENDS}"],
        f"-qmp unix:/{'x' * 107}{ENDS}: a socket's path has 1 to 107 bytes, not 108",
    ),
    (
        ["-qmp", f"tcp:h{ENDS}"],
        f"-qmp tcp:h{ENDS}: has no port; give tcp:HOST:PORT,server,nowait",
    ),
    (
        ["-qmp", f"tcp:h:0{ENDS}"],
        f"-qmp tcp:h:0{ENDS}: 0 is not a number from 1 to 65535",
    ),
    (
        ["-qmp", f"tcp:h:{ENDS}"],
        f"-qmp tcp:h:{ENDS}: nothing is not a number from 1 to 65535",
    ),
    (["-qmp", "fd:2"], "-qmp fd:2: 2 is not a number from 3 to 1048576"),
    (["-qmp", "fd:x"], "-qmp fd:x: x is not a number from 3 to 1048576"),
    (["-qmp", "fd:3,x"], f"-qmp fd:3,x: x is not understood here; {HELP}{HINT}"),
    (["-qmp", "fd:3,"], f"-qmp fd:3,: an empty member is not understood here; {HELP}{HINT}"),
    (
        ["-qmp", f"unix:/a{ENDS},events=never"],
        f"-qmp unix:/a{ENDS},events=never events never: not one of first, last",
    ),
    (
        ["-qmp", f"unix:/a{ENDS},throttle=50"],
        f"-qmp unix:/a{ENDS},throttle=50 throttle 50: not one of on, yes, true, off, no, false",
    ),
    (["-qmp", "unix:/a,server,server"], ("-qmp unix:/a,server,server: server is given twice; "
     "give it once")),
    (["-chardev", "pty,id=c"], ("-chardev id=c: nothing uses it; add -serial chardev:c, -device "
     "virtconsole,chardev=c or virtserialport,chardev=c")),
    (["-chardev", "tty,id=c"], ("-chardev tty,id=c: no such kind; there are stdio, pty, socket, "
     "file, null, ringbuf, as in -chardev socket,id=ID,path=PATH,server,nowait")),
    (["-chardev", "stdio,id=c", "-mon", "c,mode=control"],
     ("-mon c,mode=control: c is of kind stdio, and a monitor is on a socket; give "
      "-chardev socket,id=c,path=PATH,server,nowait")),
    (["-monitor", "stdio"], ("-monitor stdio: there is no monitor for people; give -qmp "
     "unix:PATH,server,nowait, and talk to it by pyvirt qmp PATH")),
    (["-qmp", "stdio"], ("-qmp stdio: stdin and stdout are for the guest's console; give -qmp "
     "unix:PATH,server,nowait")),
    (["-chardev", f"socket,path=/a{ENDS}"], (f"-chardev socket,path=/a{ENDS}: has no id; give "
     "socket,id=ID,path=PATH,server,nowait")),
    (["-chardev", "socket,id=c"], ("-chardev socket,id=c: give one of path=PATH, "
     "host=HOST,port=PORT and fd=N")),
    (["-chardev", f"socket,id=c,path=/a,port=1{ENDS}"], ("-chardev socket,id=c,path=/a,"
     f"port=1{ENDS}: give one of path=PATH, host=HOST,port=PORT and fd=N")),
    (["-chardev", "socket,id=c,path=/a", "-mon", "c,mode=control"],
     f"-chardev socket,id=c,path=/a: {LISTENS}"),
    (["-chardev", f"socket,id=c,path=/a{ENDS}"],
     ("-chardev id=c: nothing uses it; add -mon chardev=c,mode=control, -serial chardev:c, "
      "-device virtconsole,chardev=c or virtserialport,chardev=c")),
    (["-chardev", "socket,id=c,fd=3", "-chardev", "socket,id=c,fd=4"],
     "-chardev socket,id=c,fd=4: there is one of id c; give another"),
    (["-mon", "mode=control"], "-mon mode=control: names no chardev; give chardev=ID,mode=control"),
    (["-mon", "chardev=c"], "-mon chardev=c: the only mode is control; give mode=control"),
    (["-mon", "chardev=c,mode=readline"],
     "-mon chardev=c,mode=readline: the only mode is control; give mode=control"),
    (["-mon", "chardev=c,mode=control"],
     "-mon chardev=c,mode=control: c is no -chardev; add -chardev socket,id=c,..."),
    (["-chardev", "socket,id=c,fd=3", "-mon", "c,mode=control", "-mon", "c,mode=control"],
     "-mon c,mode=control: c has -mon c,mode=control already; give each its own -chardev"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refused(words: list[str], text: str) -> None:
    assert refusal(lambda: parse(words)) == text


@given(
    st.sampled_from(["-qmp", "-chardev", "-mon", "-api-channel"]),
    st.lists(
        st.sampled_from(["unix:", "tcp:", "fd:", "socket", ",", "=", ":", "[", "id", "server",
                         "nowait", "path", "port", "/a", "1", "é", "chardev", "mode=control"])
        | st.text(st.characters(exclude_characters="\n"), max_size=3),
        max_size=10,
    ),
)  # fmt: skip
def test_any_text_is_understood_or_refused(option: str, words: list[str]) -> None:
    attempt(lambda: parse([f"{option}={''.join(words)}"]))
