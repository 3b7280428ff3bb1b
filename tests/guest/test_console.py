"""The serial console under Linux's own driver: input by interrupts, output, timeline."""

from __future__ import annotations

import hashlib

import pytest

from .conftest import Boot, Ended

WORDS = [f"word{i:04}" for i in range(800)]
LINES = "".join(" ".join(WORDS[i : i + 10]) + "\n" for i in range(0, 800, 10))
SCRIPT = """
read -r a; read -r b; echo got: $b $a
stty -echo
n=0; while [ $n -lt 80 ]; do read -r l; echo $l; n=$((n+1)); done | md5sum
seq 1 1000
echo marker
"""


@pytest.fixture(scope="module")
def ended(boot: Boot) -> Ended:
    """A guest that is typed at, from the start on, and writes."""
    return boot(SCRIPT, "-timeline", stdin=f"one\ntwo\n{LINES}".encode())


def test_input_is_echoed_back(ended: Ended) -> None:
    # What is typed ahead may be echoed before it, on the same line.
    assert "got: two one" in ended.console


def test_long_input_arrives_whole(ended: Ended) -> None:
    assert hashlib.md5(LINES.encode()).hexdigest() in ended.console


def test_much_output_arrives_whole(ended: Ended) -> None:
    numbers = [int(line) for line in ended.console.splitlines() if line.isdigit()]
    assert numbers == list(range(1, 1001))


def test_only_the_console_is_on_stdout(ended: Ended) -> None:
    assert "marker" in ended.console
    assert "first KVM_RUN" not in ended.console
    for stage in ("exec", "VM ready", "kernel loaded", "first KVM_RUN", "init runs", "end"):
        assert stage in ended.messages
