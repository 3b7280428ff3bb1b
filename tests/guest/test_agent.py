"""The agent as process 1 of real guests, spoken to over its port."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.harness.agent import image
from pyvirt.harness.agent.client import Agent
from pyvirt.harness.agent.process import Result
from pyvirt.harness.agent.protocol import AgentError
from pyvirt.harness.guest import initramfs, kernel

from .conftest import APPEND, SECONDS, Running, command, make

MIB = 1 << 20


class Guest:
    """A guest with the agent, which is up when this is."""

    def __init__(
        self, image: Path, initrd: Path, console: Path, *options: str, append: str = ""
    ) -> None:
        self.console = console
        ours, theirs = socket.socketpair()
        port = ["-chardev", f"socket,id=agent,fd={theirs.fileno()}"]
        port += ["-device", "virtio-serial-device"]
        port += ["-device", "virtserialport,chardev=agent,name=pyvirt.agent"]
        full = command(image, "-initrd", str(initrd), *port, *options, append=f"{APPEND} {append}")
        with theirs, console.open("wb") as output:
            self.process = subprocess.Popen(
                ["timeout", "-k", "5", str(SECONDS), *full],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )
        self.agent = Agent(ours)

    def run(self, script: str, **options: bytes) -> Result:
        return self.agent.spawn(["sh", "-c", script], stdin=options.get("stdin")).wait(SECONDS)

    def lines(self, script: str) -> list[str]:
        result = self.run(script)
        assert (result.code, result.stderr) == (0, b""), result
        return result.stdout.decode().splitlines()

    def log(self) -> str:
        return self.console.read_text(errors="replace")

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.close()
        self.process.terminate()
        self.process.wait(SECONDS)


@pytest.fixture(scope="module", params=["micro", "cloud"])
def chosen(request: pytest.FixtureRequest) -> kernel.Kernel:
    return kernel.find(request.param)


@pytest.fixture(scope="module")
def guest(chosen: kernel.Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    console = tmp_path_factory.mktemp("agent") / "console"
    start = time.monotonic()
    (console.parent / "seen").write_text("from the host")
    initrd = image.initramfs(chosen, modules=("virtiofs",))
    share = ("-share", str(console.parent))
    append = "pyvirt.share=share0"
    with Guest(chosen.image, initrd, console, *share, append=append) as running:
        try:
            running.agent.wait_ready(SECONDS)
        except AgentError as error:
            pytest.fail(f"{error}: {running.log()}")
        print(f"{chosen.name}: start to HELLO {time.monotonic() - start:.2f} s")
        yield running


def test_a_folder_of_the_host_is_mounted(guest: Guest) -> None:
    guest.agent.wait_ready(SECONDS)
    assert guest.lines("cat /mnt/share0/seen") == ["from the host"]


def test_hello_names_the_kernel(guest: Guest, chosen: kernel.Kernel) -> None:
    hello = guest.agent.wait_ready(SECONDS)
    assert hello.release == chosen.release
    assert hello.taint == guest.agent.taint() == 0
    assert guest.lines("uname -r") == [chosen.release]


def test_the_console_is_the_kernels_alone(guest: Guest) -> None:
    before = guest.log()
    assert guest.lines("echo said; cat /proc/1/comm; echo from the kernel >/dev/kmsg") == [
        "said",
        "init",
    ]
    assert guest.log() == before, "quiet keeps it away"


def test_what_programs_expect_is_there(guest: Guest) -> None:
    mounted = guest.lines("cut -d' ' -f2 /proc/mounts")
    assert {"/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp"} <= set(mounted)
    assert "/sys/kernel/debug" in mounted
    assert guest.lines("readlink /dev/fd; readlink /dev/stderr; cat <<E\nhere\nE") == [
        "/proc/self/fd",
        "fd/2",
        "here",
    ]
    assert ",UP" in guest.lines("ip link show lo")[0]
    assert guest.lines("echo $HOME; pwd; id -u") == ["/root", "/", "0"]


def test_a_process_that_loses_its_parent_leaves_no_zombie(guest: Guest) -> None:
    guest.run("for i in 1 2 3 4 5; do (sleep 0.1 &) ; done; exit 0")
    deadline = time.monotonic() + SECONDS
    while guest.run("ps -o stat,args | grep -q '[Z] \\|[s]leep 0.1'").code == 0:
        assert time.monotonic() < deadline


def test_files_both_ways(guest: Guest) -> None:
    data = random.Random(1).randbytes(5 * MIB)
    guest.agent.put("/tmp/a folder/bulk\n", data, 0o750)
    assert guest.lines("md5sum <'/tmp/a folder/bulk\n'; stat -c %a /tmp/a*/*") == [
        f"{hashlib.md5(data).hexdigest()}  -",
        "750",
    ]
    assert guest.agent.get("/tmp/a folder/bulk\n") == data
    guest.run("rm -r /tmp/a*")


def test_files_of_the_kernel(guest: Guest) -> None:
    symbols = guest.agent.get("/proc/kallsyms")
    assert b" T start_kernel\n" in symbols
    assert symbols.endswith(b"\n")
    guest.agent.put("/proc/sys/kernel/hostname", b"named\n")
    assert guest.lines("hostname") == ["named"]
    assert guest.agent.exists("/dev/null")
    assert not guest.agent.exists("/dev/vda")


def test_many_at_once(guest: Guest) -> None:
    script = "i=0; while [ $i -lt 50 ]; do echo $0 $i; i=$((i+1)); done"
    running = [guest.agent.spawn(["sh", "-c", script, str(n)]) for n in range(10)]
    for n, process in enumerate(running):
        expected = "".join(f"{n} {i}\n" for i in range(50))
        assert process.wait(SECONDS).stdout.decode() == expected


def test_a_killed_command(guest: Guest) -> None:
    process = guest.agent.spawn(["sleep", "1000"])
    assert guest.lines(f"cat /proc/{process.pid}/comm") == ["sleep"]
    process.kill()
    result = process.wait(SECONDS)
    assert (result.code, result.signalled) == (128 + signal.SIGKILL, True)


def test_how_fast_it_is(guest: Guest) -> None:
    for what in (lambda: guest.agent.ping(SECONDS), lambda: guest.run("exit 3")):
        start = time.monotonic()
        for _ in range(20):
            what()
        print(f"round trip {(time.monotonic() - start) / 20 * 1000:.1f} ms")
    start = time.monotonic()
    result = guest.run(f"head -c {8 * MIB} /dev/zero")
    print(f"output {8 / (time.monotonic() - start):.1f} MiB/s")
    assert result.stdout == bytes(8 * MIB)


def test_crash(micro: kernel.Kernel, tmp_path: Path) -> None:
    with Guest(micro.image, image.initramfs(micro), tmp_path / "console") as guest:
        guest.agent.wait_ready(SECONDS)
        running = guest.agent.spawn(["sleep", "1000"])
        guest.agent.power("crash")
        with pytest.raises(AgentError):
            running.wait(SECONDS)
        assert "sysrq triggered crash" in guest.log()


def power_off(guest: Guest) -> None:
    """Have the agent end the guest, with what runs in it."""
    running = guest.agent.spawn(["busybox", "sleep", "1000"])
    guest.agent.power("off")
    with contextlib.suppress(AgentError):
        running.wait(SECONDS)
    assert guest.process.wait(SECONDS) == 0
    assert guest.agent.closed.wait(SECONDS)
    with pytest.raises(AgentError, match="has ended"):
        guest.agent.spawn(["true"])


def test_another_root_and_the_end(micro: kernel.Kernel, tmp_path: Path, shm: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    for folder in ("proc", "sys", "dev", "run", "tmp"):
        (tree / folder).mkdir()
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    disk = make(shm / "disk", 64 * MIB)
    subprocess.run(["mke2fs", "-qt", "ext4", "-d", tree, disk], timeout=SECONDS, check=True)
    options = ["-drive", f"id=d,file={disk}"]
    for mode, created in (("", 0), (",ro", 1)):
        with Guest(
            micro.image,
            image.initramfs(micro),
            tmp_path / "console",
            *options,
            append=f"pyvirt.root=/dev/vda{mode}",
        ) as guest:
            guest.agent.wait_ready(SECONDS)
            assert guest.run("busybox ls /").stdout.split() == (
                b"bin dev lost+found proc run sys tmp".split()
            )
            assert guest.run(">/bin/new").code == created
            assert guest.run("busybox test -c /dev/null && >/tmp/x").code == 0
            power_off(guest)
        subprocess.run(["e2fsck", "-fn", disk], timeout=SECONDS, check=True)


def test_a_root_that_is_none_is_told(micro: kernel.Kernel, tmp_path: Path) -> None:
    with (
        Guest(
            micro.image,
            image.initramfs(micro),
            tmp_path / "console",
            append="pyvirt.root=/dev/null",
        ) as guest,
        pytest.raises(AgentError, match=r"gave up: pyvirt.root=/dev/null: Block device"),
    ):
        guest.agent.wait_ready(SECONDS)


def test_an_init_of_the_users_starts_it(micro: kernel.Kernel, tmp_path: Path) -> None:
    init = """#!/bin/sh
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
/bin/pyvirt-agent &
exec sleep 1000
"""
    initrd = initramfs.build(micro, init=init, files={"/bin/pyvirt-agent": image.agent()})
    with Guest(micro.image, initrd, tmp_path / "console") as guest:
        guest.agent.wait_ready(SECONDS)
        assert guest.lines("cat /proc/1/comm /proc/$PPID/comm") == ["sleep", "pyvirt-agent"]
        guest.agent.power("off")
        assert guest.process.wait(SECONDS) == 0


def test_without_its_port_it_gives_a_shell(micro: kernel.Kernel) -> None:
    with Running(micro.image, "-initrd", str(image.initramfs(micro))) as running:
        running.expect("# ")
        running.type("echo got $((40 + 2)); exit\n")
        assert running.end() == 0
        assert "got 42" in running.console
