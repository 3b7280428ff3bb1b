"""The serial console under Linux's own driver: input by interrupts, output, timeline."""

from __future__ import annotations

import hashlib

from .conftest import Boot


def test_input_is_echoed_back(boot: Boot) -> None:
    ended = boot("read -r a; read -r b; echo got: $b $a", stdin=b"one\ntwo\n")
    assert "got: two one" in ended.console.splitlines()


def test_long_input_arrives_whole(boot: Boot) -> None:
    words = [f"word{i:04}" for i in range(800)]
    script = (
        "stty -echo; n=0; while [ $n -lt 80 ]; do read -r l; echo $l; n=$((n+1)); done | md5sum"
    )
    lines = [" ".join(words[i : i + 10]) for i in range(0, 800, 10)]
    ended = boot(script, stdin=("\n".join(lines) + "\n").encode())
    wanted = hashlib.md5(("\n".join(lines) + "\n").encode()).hexdigest()
    assert wanted in ended.console


def test_much_output_arrives_whole(boot: Boot) -> None:
    ended = boot("seq 1 1000")
    numbers = [int(line) for line in ended.console.splitlines() if line.isdigit()]
    assert numbers == list(range(1, 1001))


def test_only_the_console_is_on_stdout(boot: Boot) -> None:
    ended = boot("echo marker", "-timeline")
    assert "marker" in ended.console
    assert "first KVM_RUN" not in ended.console
    for stage in ("exec", "VM ready", "kernel loaded", "first KVM_RUN", "init runs", "end"):
        assert stage in ended.messages
