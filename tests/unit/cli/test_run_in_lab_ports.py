"""Ports of a guest that runs in the lab: forwarded sockets, and what is refused before it boots."""

from __future__ import annotations

from typing import Any

import pytest

from ..refusal import refusal
from .test_run_in_lab import run

SERIAL = ["-device", "virtio-serial-device"]


def test_a_path_is_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], Any]] = []

    def lab(command: list[str], **options: Any) -> int:
        calls.append((command, options["forward"]))
        return 0

    argv = [
        *("-chardev", "socket,id=m,path=/m,server,nowait", "-mon", "m,mode=control"),
        *("-chardev", "socket,id=c,,d,path=/host/port,server,nowait", *SERIAL),
        *("-device", "virtserialport,chardev=c,,d,name=n"),
    ]
    assert run(monkeypatch, argv, lab) == 0
    ((command, forward),) = calls
    inside = dict(forward)
    assert inside.keys() == {"/host/port", "/m"}
    assert f"-chardev=socket,id=c,,d,path={inside['/host/port']},server,nowait" in command
    assert "-device=virtio-serial-device" in command
    assert "-device=virtserialport,chardev=c,,d,name=n" in command
    assert sum(word.startswith("-chardev") for word in command) == 1


def test_a_descriptor_is_refused_before_the_lab_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    def lab(_command: list[str], **_: object) -> int:
        raise AssertionError("the lab was started")

    argv = ["-chardev", "socket,id=c,fd=5", *SERIAL, "-device", "virtserialport,chardev=c"]
    assert refusal(lambda: run(monkeypatch, argv, lab)) == (
        "-chardev id=c: no way into the lab but for path=PATH,server,nowait; give that"
    )


KINDS = [
    (["-chardev", "null,id=c"], "-chardev=null,id=c"),
    (["-chardev", "stdio,id=c,signal=on"], "-chardev=stdio,id=c,signal=on"),
    (["-chardev", "ringbuf,id=c,size=4K"], "-chardev=ringbuf,id=c,size=4096"),
    (
        ["-chardev", "file,id=c,input-path=/i,,,path=/o,append=on"],
        "-chardev=file,id=c,path=/o,append=on,input-path=/i,,",
    ),
]


def words(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the command in the lab, and what is forwarded."""
    calls: list[tuple[list[str], Any]] = []

    def lab(command: list[str], **options: Any) -> int:
        calls.append((command, options["forward"]))
        return 0

    assert run(monkeypatch, argv, lab) == 0
    return calls[0][0], dict(calls[0][1])


@pytest.mark.parametrize(("given", "inside"), KINDS)
def test_what_is_the_same_in_the_lab(
    monkeypatch: pytest.MonkeyPatch, given: list[str], inside: str
) -> None:
    command, forward = words(monkeypatch, [*given, "-serial", "chardev:c"])
    assert inside in command
    assert "-serial=chardev:c" in command
    assert forward == {}


def test_a_serial_port_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    command, forward = words(monkeypatch, ["-serial", "socket,path=/s,server,nowait"])
    assert f"-serial=socket,path={forward['/s']},server,nowait" in command
    command, forward = words(monkeypatch, ["-serial", "file,path=a,,b"])
    assert "-serial=file,path=a,,b" in command


def test_a_console_of_20_09_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    command, forward = words(monkeypatch, ["-chardev", "id=c,path=/c"])
    assert f"-chardev=id=c,path={forward['/c']}" in command


PTY = "a terminal of the nested lab is out of reach from here; give socket,path=PATH,server,nowait"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["-serial", "pty"], f"-serial pty: {PTY}"),
        (["-chardev", "pty,id=c", "-serial", "chardev:c"], f"-chardev id=c: {PTY}"),
        (
            ["-serial", "socket,port=5,server,nowait"],
            "-serial socket: no way into the lab but for path=PATH,server,nowait; give that",
        ),
        (
            ["-serial", "socket,path=/s"],
            (
                "-serial socket: who listens there is not in the nested lab, in which the guest "
                "would run; start both there, in pyvirt lab shell, or give server,nowait"
            ),
        ),
    ],
)
def test_what_does_not_reach_the_lab(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], text: str
) -> None:
    def lab(_command: list[str], **_: object) -> int:
        raise AssertionError("the lab was started")

    assert refusal(lambda: run(monkeypatch, argv, lab)) == text
