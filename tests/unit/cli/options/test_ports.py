"""The options of ports: what they make, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config
from pyvirt.devices.virtio.console import ConsoleConfig

from ...refusal import attempt, refusal

SERIAL = ["-device", "virtio-serial-device"]
ENDS = ",server,nowait"


def chardevs(*names: str) -> list[str]:
    return [w for name in names for w in ("-chardev", f"socket,id={name},path=/{name}{ENDS}")]


def port(text: str) -> list[str]:
    return ["-device", f"virtserialport,{text}"]


def console(*words: str) -> ConsoleConfig:
    (found,) = config(parse(list(words))).devices
    assert isinstance(found, ConsoleConfig)
    return found


def test_a_port() -> None:
    words = ["-chardev", "socket,id=c,fd=7", *SERIAL, *port("chardev=c,name=pyvirt.agent")]
    made = console(*words)
    (one,) = made.ports
    assert (made.id, made.ports_max) == ("serial0", 2)
    assert (one.number, one.name) == (1, "pyvirt.agent")
    assert (one.chardev.id, one.chardev.fd, one.chardev.path) == ("c", 7, "")
    assert parse(words).monitors == ()


def test_in_any_order_and_numbered_around_each_other() -> None:
    made = console(
        *port("chardev=a,id=p0"),
        *port("chardev=b,nr=1,bus=s.0"),
        *port("chardev=c,nr=5"),
        *port("chardev=d"),
        *chardevs("d", "c", "b", "a"),
        *("-device", "virtio-serial-device,id=s"),
    )
    assert [(p.number, p.chardev.path) for p in made.ports] == [
        (2, "/a"), (1, "/b"), (5, "/c"), (3, "/d"),
    ]  # fmt: skip
    assert (made.id, made.ports_max) == ("s", 6)


def test_beside_a_monitor() -> None:
    options = parse(
        [*chardevs("m", "c"), "-mon", "chardev=m,mode=control", *SERIAL, *port("chardev=c")]
    )
    assert [monitor.path for monitor in options.monitors] == ["/m"]
    (device,) = options.devices
    assert isinstance(device, ConsoleConfig)
    assert [p.chardev.path for p in device.ports] == ["/c"]
    assert [chardev.path for chardev in options.chardevs] == ["/c"]


def test_a_device_without_ports() -> None:
    assert (console(*SERIAL).ports, console(*SERIAL).ports_max) == ((), 2)
    assert console("-device", "virtio-serial-device,max_ports=31").ports_max == 31


def test_thirty_ports() -> None:
    names = [f"c{n}" for n in range(30)]
    made = console(*SERIAL, *chardevs(*names), *(w for n in names for w in port(f"chardev={n}")))
    assert [p.number for p in made.ports] == list(range(1, 31))
    assert made.ports_max == 31


def numbers(*words: str) -> list[tuple[int, bool]]:
    return [(port.number, port.is_console) for port in console(*words).ports]


def hvc(text: str) -> list[str]:
    return ["-device", f"virtconsole,{text}"]


def test_a_console_alone_is_of_the_simple_kind() -> None:
    words = [*SERIAL, "-chardev", "pty,id=c", *hvc("chardev=c,id=virtio-console0,nr=0")]
    assert (numbers(*words), console(*words).ports_max) == ([(0, True)], 1)
    words = ["-device", "virtio-serial-device,max_ports=4", *words[2:]]
    assert (numbers(*words), console(*words).ports_max) == ([(0, True)], 4)


def test_the_first_console_is_number_0() -> None:
    given = [*SERIAL, *chardevs(*"abcd")]
    words = [*port("chardev=a"), *hvc("chardev=b"), *hvc("chardev=c"), *port("chardev=d")]
    assert numbers(*given, *words) == [(1, False), (0, True), (2, True), (3, False)]
    words = [*hvc("chardev=a,nr=3"), *hvc("chardev=b"), *hvc("chardev=c"), *hvc("chardev=d,nr=1")]
    assert numbers(*given, *words) == [(3, True), (0, True), (2, True), (1, True)]


def test_any_chardev_may_be_behind_a_port() -> None:
    kinds = [
        "stdio",
        "pty",
        "null",
        "ringbuf",
        "file,path=f",
        f"socket,port=5{ENDS}",
        "socket,path=s",
    ]
    words = [*SERIAL]
    for number, kind in enumerate(kinds):
        word, _, rest = kind.partition(",")
        words += ["-chardev", f"{word},id=c{number}{rest and ','}{rest}"]
        words += hvc(f"chardev=c{number}") if number % 2 else port(f"chardev=c{number}")
    made = console(*words)
    assert [one.chardev.kind for one in made.ports] == [kind.partition(",")[0] for kind in kinds]


def test_a_console_on_stdin_leaves_no_serial_port_there() -> None:
    words = ["-chardev", "stdio,id=c", *SERIAL, *hvc("chardev=c")]
    options = parse(words)
    assert (options.serial.kind, options.terminal and options.terminal.id) == ("null", "c")
    assert refusal(lambda: parse([*words, "-serial", "stdio"])) == (
        "-chardev id=c: -serial stdio is on stdin and stdout already; "
        "give it a pty, a file or a socket"
    )
    words += ["-chardev", "stdio,id=d", *hvc("chardev=d")]
    assert refusal(lambda: parse(words)) == (
        "-chardev id=d: -chardev id=c is on stdin and stdout already; "
        "give it a pty, a file or a socket"
    )


def test_the_kernels_console_is_where_the_user_is() -> None:
    stdio = ["-chardev", "stdio,id=s", *SERIAL, *chardevs("c")]
    for words, expected in (
        ([], "ttyS0"),
        ([*stdio, *hvc("chardev=s"), *port("chardev=c")], "hvc0"),
        ([*stdio, *hvc("chardev=c"), *hvc("chardev=s,nr=7")], "hvc1"),
        ([*stdio, *hvc("chardev=c"), *port("chardev=s")], "ttyS0"),
    ):
        assert config(parse([*words])).cmdline == f"console={expected} panic=-1"
        assert config(parse([*words, "-append", "x"])).cmdline == "x"


def test_a_chardev_of_20_09_is_a_console() -> None:
    made = console("-chardev", "id=c,path=/tmp/console")
    assert [(p.number, p.is_console, p.chardev.path) for p in made.ports] == [
        (0, True, "/tmp/console")
    ]
    assert (made.ports_max, made.ports[0].chardev.listens) == (1, True)
    made = console("-chardev=id=c,path=/c", "-chardev=path=/d,id=d", *SERIAL)
    assert [(p.number, p.chardev.id) for p in made.ports] == [(0, "c"), (1, "d")]
    words = ["-chardev=id=c,path=/c", *SERIAL, *hvc("chardev=c")]
    assert refusal(lambda: parse(words)) == (
        "-chardev id=c: c has -device virtconsole,chardev=c already; give each its own -chardev"
    )


REFUSED = [
    (hvc("chardev=c"), ("-device virtconsole: has no device to be on; "
     "add -device virtio-serial-device")),
    ([*SERIAL, *chardevs("c", "d"), *hvc("chardev=c,nr=0"), *hvc("chardev=d,nr=0")],
     "-device virtconsole,nr=0: two ports have it; give each its own"),
    (port("chardev=c"), ("-device virtserialport: has no device to be on; "
     "add -device virtio-serial-device")),
    ([*SERIAL, *port("name=x")],
     "-device virtserialport,name=x: names no chardev; give chardev=ID"),
    ([*SERIAL, *port("chardev=c")],
     "-device virtserialport,chardev=c: c is no -chardev; add -chardev socket,id=c,..."),
    ([*SERIAL, *chardevs("c"), *port("chardev=c"), *port("chardev=c")],
     ("-device virtserialport,chardev=c: c has -device virtserialport,chardev=c already; "
     "give each its own -chardev")),
    ([*SERIAL, *chardevs("c"), *port("chardev=c"), "-mon", "c,mode=control"],
     ("-mon c,mode=control: c has -device virtserialport,chardev=c already; "
     "give each its own -chardev")),
    ([*SERIAL, *chardevs("c", "d"), *port("chardev=c")],
     ("-chardev id=d: nothing uses it; add -mon chardev=d,mode=control, -serial chardev:d, "
      "-device virtconsole,chardev=d or virtserialport,chardev=d")),
    ([*SERIAL, *SERIAL],
     "-device virtio-serial-device: there is one already; put all ports on that"),
    ([*SERIAL, *chardevs("c", "d"), *port("chardev=c,name=x"), *port("chardev=d,name=x")],
     "-device virtserialport,name=x: two ports have it; give each its own"),
    ([*SERIAL, *chardevs("c", "d"), *port("chardev=c,nr=3"), *port("chardev=d,nr=3")],
     "-device virtserialport,nr=3: two ports have it; give each its own"),
    ([*SERIAL, *chardevs("c", "d"), *port("chardev=c,id=i"), *port("chardev=d,id=i")],
     "-device virtserialport,id=i: two ports have it; give each its own"),
    ([*SERIAL, *chardevs("c"), *port("chardev=c,nr=0")],
     ("-device virtserialport,chardev=c,nr=0: port 0 is a console's; give another number, or "
      "virtconsole")),
    ([*SERIAL, *chardevs("c"), *port("chardev=c,nr=31")],
     "-device nr 31: not a number from 0 to 30"),
    ([*SERIAL, *chardevs("c"), *port("chardev=c,name=")],
     "-device name: 0 bytes, a port's name has 1 to 255"),
    ([*SERIAL, *chardevs("c"), *port(f"chardev=c,name={'é' * 128}")],
     "-device name: 256 bytes, a port's name has 1 to 255"),
    ([*SERIAL, *chardevs("c"), *port("chardev=c,bus=other.0")],
     "-device virtserialport,bus=other.0: there is only serial0.0; leave it out"),
    ([*SERIAL, *chardevs("c"), *port("chardev=c,color=red")],
     "-device color: not understood here; accepted are chardev, id, name, nr, bus"),
    ([*SERIAL, "-chardev", "socket,id=a,fd=9", "-chardev", "socket,id=b,fd=9",
      *port("chardev=a"), *port("chardev=b")],
     "-chardev id=b,fd=9: two ports have it; give each its own"),
    (["-device", "virtio-serial-device,max_ports=32"],
     "-device max_ports 32: not a number from 2 to 31"),
    (["-device", "virtio-serial-device,max_ports=3", *chardevs("c"), *port("chardev=c,nr=3")],
     ("-device virtio-serial-device,max_ports=3: the ports' numbers are 1 to 2, for 0 is a "
     "console's; raise it up to 31 or drop a port")),
    ([*SERIAL, *chardevs(*"abcdefghijklmnopqrstuvwxyzABCDE"),
      *(w for c in "abcdefghijklmnopqrstuvwxyzABCDE" for w in port(f"chardev={c}"))],
     ("-device virtio-serial-device,max_ports=31: the ports' numbers are 1 to 30, for 0 is a "
     "console's; raise it up to 31 or drop a port")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "text"), REFUSED, ids=range(len(REFUSED)))
def test_refused(words: list[str], text: str) -> None:
    assert refusal(lambda: parse(words)) == text


def test_the_drivers_that_there_are_stand_in_a_refusal() -> None:
    text = refusal(lambda: parse(["-device", ""]))
    assert text.startswith("-device : no such device; there are virtio-blk-device, virtio-net-")
    names = text.rpartition(" are ")[2].split(", ")
    assert {"virtserialport", "python", "isa-debug-exit"} <= set(names)
    assert len(set(names)) == len(names)


@given(
    st.lists(
        st.sampled_from([*SERIAL, *chardevs("c"), *port("chardev=c"), "-device=virtserialport"])
        | st.lists(
            st.sampled_from(
                ["chardev=c", ",", "nr=", "7", "name=", "é", "id=", "max_ports=", "bus="]
            )
        ).map(lambda words: f"-device=virtserialport,{''.join(words)}"),
        max_size=8,
    )
)
def test_any_text_is_understood_or_refused(words: list[str]) -> None:
    attempt(lambda: parse(words))
