"""`pyvirt demo` with a guest that is none: what it shows, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyvirt.cli import demo
from pyvirt.harness.guest import default

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 60

# No kernel is needed where no guest runs; the program started is the one below.
PROGRAM = """\
import sys, types
from pathlib import Path
from pyvirt.cli import demo
from pyvirt.cli.main import main
from pyvirt.harness.guest import initramfs, kernel
kernel.find = lambda name: types.SimpleNamespace(release="6.1.0-0", image=Path("/kernel"))
initramfs.build = lambda *words, **names: Path("/initrd")
sys.argv[0] = sys.argv.pop(1)
demo._STEP_S = float(sys.argv.pop(1))
main()
"""

# A monitor whose machine is made up, and whose "guest" does as its name says.
MONITOR = """\
import os, sys, time
from pathlib import Path
from pyvirt.errors import QmpError
from pyvirt.harness.guest import default
from tests.unit.qmp.fake_machine import running

name = Path(sys.argv[0]).name
Path(sys.argv[0] + ".pid").write_text(str(os.getpid()))
Path(sys.argv[0] + ".words").write_text("\\n".join(sys.argv[1:]))

def say(line):
    print(line, flush=True)

def wait(plugged):
    while bool(server.host.slots) != plugged:
        time.sleep(0.01)

if name == "broken":
    sys.exit("pyvirt: -smp 2: this is what is wrong")
if name == "killed":
    os.kill(os.getpid(), 9)
where = sys.argv[sys.argv.index("-qmp") + 1].partition(":")[2].partition(",")[0]
with running(Path(where).parent) as server:
    say("a kernel's line")
    if name == "panicking":
        sys.exit(0)
    if name == "refusing":
        server.host.refusal = QmpError("no room")
    say(default.DEMO_READY)
    wait(True)
    if name == "blind":
        time.sleep(600)
    say(default.DEMO_SEEN)
    image = server.host.slots["blk", 1].backend.resource.request.path
    if name != "forgetful":
        with open(image, "r+b") as file:
            file.seek(4096)
            file.write(default.DEMO_TEXT.encode())
    say(default.DEMO_USED)
    wait(False)
    if name == "greedy":
        sys.exit(0)
    say(default.DEMO_GONE)
    print("the last line", end="", flush=True)
"""


class Demo:
    """The demo as a process, with all it leaves in a folder of its own."""

    def __init__(self, folder: Path, guest: str, step: float) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.monitor = folder / guest
        self.monitor.write_text(f"#!{sys.executable}\n{MONITOR}")
        self.monitor.chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.monitor), str(step), "demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)},
        )

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return status, stdout and stderr. Nothing may be left."""
        try:
            out, err = self.process.communicate(timeout=SECONDS)
        finally:
            self.process.kill()
        assert list(self.temporary.iterdir()) == []
        pid = int(Path(f"{self.monitor}.pid").read_text())
        assert not Path(f"/proc/{pid}").exists()
        return self.process.returncode, out, err


def run(folder: Path, guest: str, step: float = SECONDS) -> tuple[int, str, str]:
    return Demo(folder, guest, step).end()


def test_what_is_shown(tmp_path: Path) -> None:
    status, console, told = run(tmp_path, "good")
    assert status == 0
    assert console.split("\n") == [
        "a kernel's line",
        default.DEMO_READY,
        default.DEMO_SEEN,
        default.DEMO_USED,
        default.DEMO_GONE,
        "the last line",
    ]
    first, *messages, last = told.splitlines()
    assert first == "pyvirt: booting Debian's kernel 6.1.0-0"
    assert last == (
        f"pyvirt: byte 4096 of the image begins what the guest wrote: {default.DEMO_TEXT}"
    )
    arrows, bodies = zip(*(line.split(" ", 1) for line in messages), strict=True)
    assert "".join(arrows) == "-><--><--><-<-"
    bodies = tuple(map(json.loads, bodies))
    assert [body["execute"] for body in bodies if "execute" in body] == [
        "blockdev-add",
        "device_add",
        "device_del",
    ]
    assert bodies[5]["event"] == "DEVICE_DELETED"
    assert bodies[1] == bodies[3] == bodies[6] == {"return": {}}
    words = Path(tmp_path, "good.words").read_text().split("\n")
    assert words[0] == "run"
    assert "-timeline" in words


@pytest.mark.long
@pytest.mark.parametrize(
    ("guest", "last"),
    [
        ("broken", "pyvirt: -smp 2: this is what is wrong"),
        ("killed", "pyvirt: demo: the guest did not boot, but ended"),
        ("panicking", "pyvirt: demo: the guest did not boot, but ended"),
        ("refusing", "pyvirt: demo: device_add was refused"),
        ("greedy", "pyvirt: demo: the guest did not see the disk go, but ended"),
        ("forgetful", "pyvirt: demo: what the guest wrote is not in the image"),
    ],
)
def test_what_goes_wrong_is_one_line(tmp_path: Path, guest: str, last: str) -> None:
    status, _, told = run(tmp_path, guest)
    assert status == 1
    lines = [line for line in told.splitlines() if line[:2] not in {"->", "<-"}]
    assert lines[1:] == [last]


def test_a_guest_that_does_not_see_the_disk(tmp_path: Path) -> None:
    status, _, told = run(tmp_path, "blind", step=2)
    assert status == 1
    assert told.splitlines()[-1] == "pyvirt: demo: the guest did not see the disk within 2 s"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_ended_by_a_signal(tmp_path: Path, number: signal.Signals, status: int) -> None:
    running = Demo(tmp_path, "blind", SECONDS)
    assert running.process.stdout is not None
    while running.process.stdout.readline().strip() != default.DEMO_READY:
        pass
    time.sleep(0.2)
    running.process.send_signal(number)
    assert running.end()[0] == status


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["-help"]) == 0
    assert capsys.readouterr().out.startswith("usage: pyvirt demo\n")
