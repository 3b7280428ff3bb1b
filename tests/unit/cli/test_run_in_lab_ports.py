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
