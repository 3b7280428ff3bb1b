"""docs/hotplug.md, followed word by word.

What its `sh` blocks say is run here, what its `console` blocks say is typed at the guest, which
has to answer as shown. Only two folders are others: that of the socket, since the lab's /tmp takes
none, and that of the image, which nobody else is to meet.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pyvirt.cli import main

from ..unit.namespace import ip, network_namespace
from .conftest import PYVIRT
from .network import PATIENCE, Guest

PAGE = Path(__file__).resolve().parents[2] / "docs/hotplug.md"
PROMPT = "/ # "
ANSWER_S = 30.0
SOCKET, IMAGE = "/tmp/guest.sock", "/var/tmp/disk.img"
# The shell asks the terminal where the cursor is.
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def blocks() -> list[tuple[str, str]]:
    """Return language and text of the page's blocks."""
    page = PAGE.read_text(encoding="utf-8")
    return re.findall(r"^```(sh|console)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


class Follower:
    """Somebody at two terminals; `places` are what the page's files are called here."""

    def __init__(self, guest: Guest, places: dict[str, str]) -> None:
        self._guest = guest
        self._places = places
        self._seen = 0
        self.said: list[str] = []

    def run(self, text: str) -> None:
        """Run a block here, what is pyvirt's in this process; remember what else says."""
        text = words(text, self._places).replace("\\\n", "")
        for command in [text] if "<<" in text else text.splitlines():
            program, *rest = shlex.split(command)
            if program == "pyvirt":
                assert main.dispatch(rest) == 0, command
                continue
            done = subprocess.run(
                ["bash", "-e", "-c", command],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, ""), command
            self.said.append(done.stdout)

    def prompt(self) -> str:
        """Wait for the guest's prompt; return what came before it."""
        deadline = time.monotonic() + PATIENCE
        while not (text := ESCAPE.sub("", self._guest.console()))[self._seen :].endswith(PROMPT):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        new, self._seen = text[self._seen : -len(PROMPT)], len(text)
        return new

    def type(self, text: str) -> None:
        """Type a block's commands at the guest, which answers as shown."""
        for entry in text.split(PROMPT)[1:]:
            command, _, answer = entry.partition("\n")
            self._guest.say(command)
            if command == "poweroff":
                return
            until = time.monotonic() + ANSWER_S
            shown = self.prompt().partition("\n")[2]
            # What a plug causes in the guest is on its way when the request is answered.
            while shown != answer and time.monotonic() < until:
                self._guest.say(command)
                shown = self.prompt().partition("\n")[2]
            assert shown == answer, command


def words(text: str, places: dict[str, str]) -> str:
    """Return a block with the places that files have here."""
    for told, ours in places.items():
        text = text.replace(told, ours)
    return text


@pytest.fixture
def image() -> Iterator[Path]:
    """A place on a file system that can do direct I/O, as one in memory may not."""
    with TemporaryDirectory(prefix="pyvirt-test-", dir="/var/tmp") as folder:
        yield Path(folder, "disk.img")


def test_word_by_word(shm: Path, image: Path) -> None:
    places = {SOCKET: str(shm / "guest.sock"), IMAGE: str(image)}
    first, *rest = blocks()
    program, *options = shlex.split(words(first[1], places))
    assert program == "pyvirt"
    with network_namespace():
        guest = Guest([str(PYVIRT), *options, "-accel", "kvm"], shm)
        follower = Follower(guest, places)
        try:
            follower.prompt()
            for language, text in rest:
                (follower.run if language == "sh" else follower.type)(text)
            ended = guest.end()
        finally:
            guest.process.kill()
            guest.process.wait()
            assert guest.process.stdin
            guest.process.stdin.close()
        assert {line.split()[0] for line in ip("-br link").splitlines()} == {"lo"}
    assert (ended.status, ended.messages) == (0, "")
    assert b"hello\n" in image.read_bytes()
    raw = next(said for said in follower.said if '"QMP"' in said)
    greeting, *answers = raw.splitlines()
    assert greeting.startswith('{"QMP":{"version":')
    assert answers[:2] == ['{"return":{}}'] * 2
    assert re.fullmatch(
        r'\{"event":"DEVICE_DELETED","data":\{"device":"drive-0","path":"drive-0"\},'
        r'"timestamp":\{"seconds":\d+,"microseconds":\d+\}\}',
        answers[2],
    )
    assert answers[3:] == ['{"return":{}}']
