"""The README's chapter on hot-plug, followed word by word.

What its `sh` blocks say is run here, what its `console` blocks say is typed at the guest, which
has to answer as shown. Only the folder of the sockets is another: the lab's /tmp takes none.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

from ..unit.namespace import ip, network_namespace
from .conftest import PYVIRT
from .network import PATIENCE, Guest

README = Path(__file__).resolve().parents[2] / "README.md"
PROMPT = "/ # "
IMAGE = Path("/var/tmp/disk.img")
# The shell asks the terminal where the cursor is.
ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def blocks() -> list[tuple[str, str]]:
    """Return language and text of the chapter's blocks."""
    chapter = README.read_text(encoding="utf-8").partition("\n## Hot-plug\n")[2]
    chapter = chapter.partition("\n## ")[0]
    return re.findall(r"^```(sh|console)\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)


class Follower:
    """Somebody at two terminals."""

    def __init__(self, guest: Guest, folder: Path) -> None:
        self._guest = guest
        self._folder = folder
        self._seen = 0
        self.said: list[str] = []

    def run(self, text: str) -> None:
        """Run a block here; remember what it says."""
        done = subprocess.run(
            ["bash", "-e", "-c", words(text, self._folder)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=os.environ | {"PATH": f"{PYVIRT.parent}:{os.environ['PATH']}"},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), text
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
            until = time.monotonic() + PATIENCE
            shown = self.prompt().partition("\n")[2]
            # What a plug causes in the guest is on its way when the request is answered.
            while shown != answer and time.monotonic() < until:
                self._guest.say(command)
                shown = self.prompt().partition("\n")[2]
            assert shown == answer, command


def words(text: str, folder: Path) -> str:
    return text.replace("/tmp/guest.sock", f"{folder}/guest.sock")


def test_word_by_word(shm: Path) -> None:
    first, *rest = blocks()
    assert first[1].startswith("pyvirt run ")
    command = [*shlex.split(words(first[1], shm)), "-accel", "kvm"]
    assert not IMAGE.exists()
    with network_namespace():
        guest = Guest([str(PYVIRT), *command[1:]], shm)
        follower = Follower(guest, shm)
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
            held = IMAGE.read_bytes() if IMAGE.exists() else b""
            IMAGE.unlink(missing_ok=True)
        assert {line.split()[0] for line in ip("-br link").splitlines()} == {"lo"}
    assert (ended.status, ended.messages) == (0, "")
    assert b"hello\n" in held
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
