"""Rounds of a machine that is killed at a random moment, from its exec on.

Its guest writes, and in half of the rounds its monitor has commands to carry out. After each round
every block that the guest told of is there, a snapshot that was begun is whole or refused, and the
same command starts on what the killed one left behind. After the last, an orderly end leaves
nothing but the images.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyvirt.errors import PyvirtError
from pyvirt.vmm.snapshot.restore import open_folder

from .support import PATIENCE
from .test_run import PYVIRT, command, run
from .writer import check, make_image, told, wait_until_free

STARTS_IN_S = 0.4  # or so: moments before its guest runs are among those of a kill
WORKS_FOR_S = 0.1
ENGINES = ("io_uring", "threads")
# What each file is that a killed machine leaves: all of them are taken over by the next.
LEFT = {"image", "other", "qmp", "qmp.lock", "qmp.new", "pid", "port", "port.lock", "port.new"}
LEFT |= {"pyvirt", "tmp", "overlay", "snapshot"}
# Of a machine that ends in good order.
KEPT = {"image", "other", "pyvirt", "tmp", "overlay"}


def refusal_of(snapshot: Path) -> str:
    """Return why nothing goes on from a snapshot; "" when something can."""
    try:
        open_folder(str(snapshot)).close()
    except PyvirtError as error:
        return str(error)
    return ""


class Victim:
    """The machine of all rounds: its folder, and what is started in it."""

    def __init__(self, kernel: Path, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.image = make_image(folder / "image")
        self.other = make_image(folder / "other")
        self._kernel = kernel
        for name in ("tmp", "overlay"):
            (folder / name).mkdir()

    @contextmanager
    def started(self, engine: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start it, with all that has a file of its own; it is killed in the end if it runs."""
        words = [
            *("-disk", f"{self.image},aio={engine}"),
            *("-disk", f"{self.other},overlay={self.folder}/overlay"),
            *("-qmp", f"unix:{self.folder}/qmp,server,nowait", "-pidfile", f"{self.folder}/pid"),
            *("-chardev", f"socket,id=c,path={self.folder}/port,server,nowait"),
            *("-device", "virtio-serial-device", "-device", "virtserialport,chardev=c,name=here"),
        ]
        process = subprocess.Popen(
            command(self._kernel, *words),
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ
            | {"XDG_RUNTIME_DIR": str(self.folder), "TMPDIR": str(self.folder / "tmp")},
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def command_all(self) -> None:
        """Have the monitor plug a disk, unplug it and begin to save; no answer is waited for."""
        file = {"driver": "file", "filename": str(self.folder / "plugged")}
        requests: list[tuple[str, dict[str, object]]] = [
            ("blockdev-add", {"node-name": "p", "file": file}),
            ("device_add", {"id": "p", "driver": "virtio-blk-mmio"}),
            ("device_del", {"id": "p"}),
            ("blockdev-del", {"node-name": "p"}),
            ("stop", {}),
            ("migrate", {"uri": f"file:{self.folder}/snapshot"}),
        ]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{self.folder}/qmp")
            for name, words in requests:
                client.sendall(json.dumps({"execute": name, "arguments": words}).encode())

    def kill_one(self, number: int) -> int:
        """Go through a round; return how many blocks were safe."""
        make_image(self.image)
        make_image(self.folder / "plugged")
        with self.started(ENGINES[number % 2]) as process:
            assert process.stdout is not None
            first = b""
            if number % 4 == 0:
                time.sleep(self.random.uniform(0, STARTS_IN_S))
            else:
                first = process.stdout.readline()
                assert first, process.communicate()[1].decode()
                if number % 4 == 1:
                    self.command_all()
                time.sleep(self.random.uniform(0, WORKS_FOR_S))
            process.kill()
            rest, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == -signal.SIGKILL, errors
            assert errors == b""
        wait_until_free(self.image)
        numbers = told(first + rest)
        check(self.image, numbers)
        self._check_left()
        return len(numbers)

    def _check_left(self) -> None:
        (self.folder / "plugged").unlink()
        assert set(os.listdir(self.folder)) <= LEFT
        assert os.listdir(self.folder / "tmp") == os.listdir(self.folder / "overlay") == []
        assert self.other.read_bytes().strip(b"\0") == b""
        snapshot = self.folder / "snapshot"
        if snapshot.exists():
            assert "\n" not in refusal_of(snapshot)
            shutil.rmtree(snapshot)

    def end_one(self) -> None:
        """Start it once more, and end it in good order."""
        with self.started("io_uring") as process:
            assert process.stdout is not None
            assert process.stdout.readline(), process.communicate()[1].decode()
            process.terminate()
            _, errors = process.communicate(timeout=PATIENCE)
            assert (process.returncode, errors) == (0, b"")
        assert set(os.listdir(self.folder)) <= KEPT
        # Entries of machines that were killed go when somebody looks.
        status, listed, _ = run("env", f"XDG_RUNTIME_DIR={self.folder}", str(PYVIRT), "ps")
        assert (status, str(process.pid).encode() in listed) == (0, False)
        assert os.listdir(self.folder / "pyvirt") == []


def rounds(
    kernel: Path, folder: Path, count: int, seed: int, tell: Callable[[int], None] = lambda _: None
) -> int:
    """Go through so many, and `tell` of each; return how many blocks were safe in all."""
    victim, blocks = Victim(kernel, folder, seed), 0
    for number in range(count):
        blocks += victim.kill_one(number)
        tell(number + 1)
    victim.end_one()
    return blocks
