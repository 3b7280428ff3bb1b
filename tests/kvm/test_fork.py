"""Forks of tiny guests: from where a template stands, each with memory of its own, in no order."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from pyvirt.devices.virtio.block import BlockConfig
from pyvirt.errors import BackendError, PyvirtError
from pyvirt.harness.vm.fork_server import ForkServer, Process, Template
from pyvirt.qmp.client import Client, CommandError
from pyvirt.vmm import bus, kvm, layout
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.cpu_model import CpuModel
from pyvirt.vmm.execution import PAUSED, RUNNING
from pyvirt.vmm.log import Log
from pyvirt.vmm.snapshot import template as templates
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.save import Saver

from ..unit.fork_server import held, read_all, telling_of_imports
from .conftest import Make
from .support import MAILBOX, MEMORY, PATIENCE, PORT, Guest
from .test_life import Face, Ledger, counting_on_all, wait_until, wait_until_all_run
from .test_qmp_run import Monitored
from .test_run import PYVIRT
from .test_snapshot import COUNT, FLAG, at_work

Kernel = Callable[[str], Path]

WORDS = ("-accel", "kvm", "-serial", "none", "-qmp", "fd:3,throttle=off")
STREAMS = {"qmp": (3,), "messages": (2,)}
KEPT = 42
FORKS = 100
LEFT = 16  # calls of KVM


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with telling_of_imports() as server:
        yield server


class Counting:
    """A monitor of the server, of a guest that counts in its mailbox, and a client of it."""

    def __init__(self, server: ForkServer, *words: str, of: Template | None = None) -> None:
        self.process = Process(server.path, [*WORDS, *words], STREAMS, template=of)
        try:
            self.events: list[str] = []
            stream = self.process.streams["qmp"].dup()
            stream.settimeout(PATIENCE)
            self.client = Client(stream, lambda event: self.events.append(event["event"]))
        except BaseException:
            self.process.close()
            raise

    def count(self) -> int:
        return int(self.client.execute("query-mem-gpa", {"gpa": hex(MAILBOX)}), 16)

    def goes_on(self) -> None:
        before = self.count()
        wait_until(lambda: self.count() > before, "the guest goes on")

    def become(self, template: Template) -> None:
        self.client.execute("migrate", {"uri": template.uri})
        template.wait(PATIENCE)
        wait_until(self._is_completed, "the monitor knows it, too")

    def _is_completed(self) -> bool:
        status = self.client.execute("query-migrate")["status"]
        assert status in {"active", "completed"}
        return bool(status == "completed")

    def close(self) -> None:
        self.client.close()
        self.process.close()


class Family:
    """Monitors of one server, all of which end with the test."""

    def __init__(self, server: ForkServer, kernel: Kernel) -> None:
        self._stack = ExitStack()
        self._server = server
        self._kernel = kernel

    def first(self, *words: str) -> Counting:
        kernel = str(self._kernel("spin"))
        return self._monitor(Counting(self._server, "-kernel", kernel, "-m", "128", *words))

    def template(self, of: Counting) -> Template:
        template = Template(self._server.path)
        self._stack.callback(template.close)
        of.become(template)
        return template

    def fork(self, of: Template, *words: str) -> Counting:
        return self._monitor(Counting(self._server, *words, of=of))

    def _monitor(self, one: Counting) -> Counting:
        self._stack.callback(one.close)
        return one

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def family(server: ForkServer, kernel: Kernel) -> Iterator[Family]:
    with closing(Family(server, kernel)) as family:
        yield family


@pytest.mark.any_kvm
def test_forks_go_on_from_there_with_memory_of_their_own(family: Family) -> None:
    first = family.first()
    first.goes_on()
    template = family.template(first)
    assert first.events == ["STOP"]
    stands = first.count()
    forks = [family.fork(template) for _ in range(3)]
    for fork in forks:
        fork.goes_on()
        assert fork.count() > stands
    assert first.count() == stands
    first.client.execute("cont")
    first.goes_on()
    # None of them is seen by one that comes later.
    late = family.fork(template, "-S")
    assert late.count() == stands
    assert late.client.execute("query-status")["status"] == "paused"
    late.client.execute("cont")
    late.goes_on()
    for one in (late, *forks):
        said = one.process.streams["messages"]
        one.client.execute("quit")
        # And nothing is imported for it: a monitor tells of each module, as it is asked to.
        assert read_all(said) == ""


@pytest.mark.any_kvm
def test_forks_of_forks_of_forks(family: Family) -> None:
    one = family.first()
    for _ in range(3):
        one.goes_on()
        template = family.template(one)
        stands = one.count()
        one.client.execute("quit")
        one = family.fork(template, "-S")
        assert one.count() == stands
        one.client.execute("cont")
        one.goes_on()
        template.close()


@pytest.mark.long
@pytest.mark.any_kvm
def test_a_hundred_at_once(family: Family) -> None:
    template = family.template(family.first())
    forks = [family.fork(template, "-S") for _ in range(FORKS)]
    counts = {fork.count() for fork in forks}
    assert len(counts) == 1
    forks[50].client.execute("cont")
    forks[50].goes_on()
    assert {fork.count() for fork in forks[51:]} == counts


@pytest.mark.any_kvm
def test_what_becomes_of_one_is_nothing_to_the_others(family: Family) -> None:
    template = family.template(family.first())
    killed, other = family.fork(template), family.fork(template)
    killed.process.take()
    os.kill(killed.process.pid or 0, signal.SIGSEGV)
    assert killed.process.wait(PATIENCE)
    assert killed.process.status == -signal.SIGSEGV
    other.goes_on()
    family.fork(template).goes_on()
    template.close()
    other.goes_on()


@pytest.mark.any_kvm
def test_with_the_server_all_end(kernel: Kernel) -> None:
    with closing(ForkServer()) as server, closing(Family(server, kernel)) as family:
        template = family.template(family.first())
        fork = family.fork(template)
        fork.goes_on()
        server.close()
        assert fork.process.wait(PATIENCE)
        with pytest.raises(OSError, match="No such process"):
            os.kill(fork.process.pid or 0, 0)


@pytest.mark.any_kvm
def test_another_machine_is_refused_by_the_fork_alone(family: Family, server: ForkServer) -> None:
    template = family.template(family.first())
    shape = "the template has"
    for words, message in (
        (("-m", "256"), f"-m 256M: {shape} 128 MiB; give that, or leave it out"),
        (("-smp", "2"), f"-smp 2: {shape} 1 vCPUs; give that, or leave it out"),
        (("-disk", "/dev/null"), "/dev/null"),
        (("-device", "virtio-balloon-device"), "the guest had 8 virtio devices, and here are 9"),
        (("-machine", "mem-share=on"), "its memory is a private mapping of the template's"),
        (("-mem-path", "/dev/shm"), "its memory is a private mapping of the template's"),
        (("-daemonize",), "-daemonize: a fork ends with the command that it belongs to"),
        (("-incoming", "file:/tmp"), "-incoming: a fork goes on from where its template stands"),
        (("-accel", "lab"), "given twice"),
        (("-nonsense",), "no such option"),
    ):
        with closing(Process(server.path, [*WORDS, *words], STREAMS, template=template)) as fork:
            lines = read_all(fork.streams["messages"]).splitlines()
            (told,) = (line for line in lines if not line.startswith("import time:"))
            assert message in told
            assert fork.wait(PATIENCE)
            assert fork.status not in {None, 0}
    family.fork(template, "-cpu", "host").goes_on()


@pytest.mark.any_kvm
def test_a_template_that_is_not_there(family: Family, server: ForkServer) -> None:
    first = family.first()
    with closing(Template(server.path)) as gone:
        uri = gone.uri
        with closing(Process(server.path, WORDS, {"qmp": (3,)}, template=gone)) as fork:
            assert fork.wait(PATIENCE)
            assert fork.error.endswith("has nothing in it yet; migrate a machine there first")
    wait_until(lambda: not is_there(server, gone), "the server has let it go")
    with closing(Process(server.path, WORDS, {"qmp": (3,)}, template=gone)) as fork:
        assert fork.wait(PATIENCE)
        assert fork.error == f"template {gone.name}: is not there; make it again"
    for bad, message in (
        (uri, "there is no template of the name"),
        ("template:/nowhere/at/all", "No such file or directory; name the socket of a pyvirt"),
        ("template:" + "x" * 200, "path too long"),
    ):
        with pytest.raises(CommandError, match=message):
            first.client.execute("migrate", {"uri": bad})
    assert first.events == []
    first.goes_on()


def is_there(server: ForkServer, template: Template) -> bool:
    with closing(Process(server.path, WORDS, {"qmp": (3,)}, template=template)) as fork:
        assert fork.wait(PATIENCE)
        return "nothing in it" in fork.error


@pytest.mark.any_kvm
def test_one_template_for_each_place(family: Family, server: ForkServer) -> None:
    first = family.first()
    template = family.template(first)
    with pytest.raises(CommandError, match="there is a template already; make another"):
        first.client.execute("migrate", {"uri": template.uri})


class Listening:
    """What a template's process is to a machine that becomes one."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()

    def take(self) -> templates.Template:
        client, _ = self._listener.accept()
        with client:
            assert client.recv(4096) == b'{"give": ""}\n'
            client.sendall(b"{}\n")
            line, fds, _, _ = socket.recv_fds(client, 4096, 8)
            assert line == b'{"given": true}\n'
            client.sendall(b"{}\n")
        return templates.take(*fds)

    def answer(self, answers: list[bytes]) -> None:
        client, _ = self._listener.accept()
        with client:
            for answer in answers:
                client.recv(4096)
                client.sendall(answer)

    def close(self) -> None:
        self._listener.close()


def taken(guest: Guest) -> templates.Template:
    """Return the template that a machine of this process becomes."""
    found: list[templates.Template] = []
    with TemporaryDirectory() as folder, closing(Listening(f"{folder}/socket")) as there:
        thread = threading.Thread(target=lambda: found.append(there.take()))
        thread.start()
        saver = Saver(guest, Log())
        saver.start(templates.Handover(there.path))
        saver.wait()
        thread.join()
        assert (saver.status, saver.error) == ("completed", "")
    return found[0]


class Ahead:
    """Forks in this process, what does not depend on their devices made ahead; all are closed."""

    def __init__(self, kernel: Kernel, logs: Path) -> None:
        self._kernel = kernel
        self._logs = logs
        self._stack = ExitStack()
        self._count = 0

    def template(self, guest: Guest) -> templates.Template:
        return self._stack.enter_context(closing(taken(guest)))

    def make(
        self, name: str, template: templates.Template, made: Callable[[], object] = lambda: None
    ) -> Guest:
        """Return a fork; `made` is called when nothing is left but what it is asked for."""
        incoming = template.incoming()
        core = incoming.prepare(Log())
        made()
        config = MachineConfig(
            str(self._kernel(name)),
            memory=incoming.shape.memory,
            vcpus=incoming.shape.topology.vcpus,
            topology=incoming.shape.topology,
            content=incoming,
            hotplug=incoming.shape.hotplug,
        )
        assert core.suits(config)
        self._count += 1
        guest = Guest(config, self._logs / f"fork{self._count}", core=core)
        self._stack.enter_context(closing(guest))
        incoming.restore(guest, Log())
        return guest

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def ahead(kernel: Kernel, tmp_path: Path) -> Iterator[Ahead]:
    with closing(Ahead(kernel, tmp_path)) as ahead:
        yield ahead


def test_every_register_is_kept(machine: Make, ahead: Ahead) -> None:
    guest = at_work(machine)
    guest.pause()
    guest.write_words(FLAG, 1)
    template = ahead.template(guest)
    guest.write_words(FLAG, 0)  # which is not theirs
    # What is KVM's is read once for all.
    assert template.incoming().kvm_state is template.incoming().kvm_state is not None
    forks = [ahead.make("keep", template) for _ in range(2)]
    ids = {fork.read(layout.GENERATION_ID, layout.GENERATION_ID_SIZE) for fork in forks}
    assert len(ids) == 2
    second = ahead.template(forks[1])
    for fork in (forks[0], ahead.make("keep", second), ahead.make("keep", second)):
        assert fork.read_words(COUNT, 1) == guest.read_words(COUNT, 1)
        assert fork.run() == ("debug-exit", KEPT)


def test_four_vcpus_go_on_where_each_of_them_was(machine: Make, ahead: Ahead) -> None:
    guest, ledgers = counting_on_all(machine)
    guest.start()
    wait_until_all_run(ledgers)
    fork = ahead.make("count_smp", ahead.template(guest))
    reached = [ledger.accesses for ledger in ledgers]
    for index, accesses in enumerate(reached):
        ledgers[index] = ledger = Ledger(2)
        ledger.accesses = accesses
        fork.bus.add(bus.PIO, PORT + 8 * index, 8, Face(ledger, "port "))
    fork.start()
    wait_until(
        lambda: all(now.accesses > then for now, then in zip(ledgers, reached, strict=True)),
        "all vCPUs go on",
    )
    fork.close()
    assert [ledger.wrong for ledger in ledgers] == [[]] * len(ledgers)


@pytest.mark.any_kvm
def test_what_is_left_for_who_asks_does_not_grow(
    make: Make, ahead: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight empty slots and a VM nothing is made then: the calls are counted, and no time."""
    called: list[str] = []
    before: set[str] = set()
    real = kvm.Ioctl.__call__

    def count(self: kvm.Ioctl, fd: int, argument: Any = 0) -> int:
        called.append(self.name.removeprefix("KVM_"))
        return real(self, fd, argument)

    monkeypatch.setattr(kvm.Ioctl, "__call__", count)

    def forget() -> None:
        before.update(called)
        called.clear()

    template = ahead.template(make("keep"))
    fork = ahead.make("keep", template, made=forget)
    once = {"CREATE_VM", "CREATE_VCPU", "SET_USER_MEMORY_REGION", "IOEVENTFD"}
    assert once <= before
    assert not once & set(called)
    # The lines of the event device, and what goes on with the time.
    assert len(called) <= LEFT, called
    assert fork.slots is not None
    assert len(fork.slots.transports) == 8


@pytest.mark.any_kvm
def test_a_fork_with_other_empty_slots_is_made_anew(make: Make, ahead: Ahead) -> None:
    incoming = ahead.template(make("keep")).incoming()
    with closing(incoming.prepare(Log())) as core:
        same: dict[str, Any] = {"memory": MEMORY, "content": incoming, "hotplug": True}
        assert core.suits(MachineConfig("", **same))
        disk = BlockConfig("disk", "/dev/null")
        for other in ({"disks": (disk,)}, {"name": "other"}, {"hotplug": False}):
            assert not core.suits(MachineConfig("", **(same | other))), other


@pytest.mark.any_kvm
def test_what_was_made_ahead_suits_no_other_machine(machine: Make, ahead: Ahead) -> None:
    incoming = ahead.template(at_work(machine)).incoming()
    with closing(incoming.prepare(Log())) as core:
        same: dict[str, Any] = {"memory": MEMORY, "content": incoming}
        assert core.suits(MachineConfig("", **same))
        others: tuple[dict[str, Any], ...] = (
            {"content": None},
            {"vcpus": 2},
            {"cpu": CpuModel(off=("avx",))},
            {"share": True},
            {"prealloc": True},
            {"pit": False},
            {"dump_guest_core": True},
            {"read_exits": True},
            {"hotplug": True},
        )
        for other in others:
            assert not core.suits(MachineConfig("", **(same | other))), other


def test_from_a_folder_which_may_go(machine: Make, ahead: Ahead, tmp_path: Path) -> None:
    guest = at_work(machine)
    guest.pause()
    guest.write_words(FLAG, 1)
    saver = Saver(guest, Log())
    saver.start(Folder(str(tmp_path / "snapshot")))
    saver.wait()
    with closing(templates.read_folder(str(tmp_path / "snapshot"))) as template:
        shutil.rmtree(tmp_path / "snapshot")
        assert ahead.make("keep", template).run() == ("debug-exit", KEPT)


@pytest.mark.any_kvm
@pytest.mark.parametrize("answers", [[], [b"{}\n"], [b"not JSON\n"], [b"[]\n"], [b"x" * 5000]])
def test_who_is_no_template_leaves_the_guest_as_it_was(machine: Make, answers: list[bytes]) -> None:
    """It fails, and nothing stays; where it is refused before it is asked, the guest runs on."""
    guest = at_work(machine)
    saver = Saver(guest, Log())
    with TemporaryDirectory() as folder, closing(Listening(f"{folder}/socket")) as there:
        thread = threading.Thread(target=there.answer, args=(answers,))
        thread.start()
        if answers == [b"{}\n"]:
            saver.start(templates.Handover(there.path))
            saver.wait()
            assert saver.status == "failed"
            assert saver.error.startswith(f"template:{there.path}: ")
            assert guest.state == PAUSED
            guest.resume()
        else:
            with pytest.raises(BackendError, match=r"is it pyvirt template|reset by peer; name"):
                saver.start(templates.Handover(there.path))
            assert guest.state == RUNNING
        thread.join()
    stands = guest.read_words(COUNT, 1)
    wait_until(lambda: guest.read_words(COUNT, 1) != stands, "the guest goes on")


def by_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYVIRT, *words], check=False, capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.mark.any_kvm
def test_by_commands_from_a_folder(machine: Make, tmp_path: Path) -> None:
    guest = at_work(machine)
    guest.pause()
    guest.write_words(FLAG, 1)
    saver = Saver(guest, Log())
    saver.start(Folder(str(tmp_path / "snapshot")))
    saver.wait()
    with held(str(tmp_path / "snapshot"), "-spares=2", seconds=PATIENCE) as path:
        for _ in range(2):
            done = by_command("fork", path, "-serial", "none")
            assert (done.returncode, done.stdout, done.stderr) == (KEPT, "", "")
        done = by_command("fork", path, "-m", "1G")
        assert done.returncode == 2
        assert (
            done.stderr
            == "pyvirt: -m 1024M: the template has 128 MiB; give that, or leave it out\n"
        )
        (tmp_path / "log").touch()
        # Relative to where the command is, and with what it has inherited.
        reader, writer = os.pipe()
        words = ["fork", path, "-D", "log", "-nonsense"]
        done = subprocess.run(
            [PYVIRT, *words], check=False, stderr=writer, cwd=tmp_path, text=True, timeout=PATIENCE
        )
        os.close(writer)
        with open(reader, encoding="utf-8") as stream:
            assert "no such option" in stream.read()
        assert done.returncode == 2
        other = by_command("template", str(tmp_path / "snapshot"), path)
        assert "Address already in use; name a new file" in other.stderr
    assert "-spares 99: give a number" in by_command("template", "-spares", "99", ".", path).stderr
    gone = by_command("fork", path)
    assert gone.returncode == 1
    assert "No such file or directory; name the socket of a pyvirt template" in gone.stderr
    for source, message in (
        (str(tmp_path), "state: No such file or directory; name a folder"),
        (str(tmp_path / "none"), "No such file or directory; name a monitor's socket"),
    ):
        refused = by_command("template", source, str(tmp_path / "socket"))
        assert refused.returncode in {1, 2}
        assert message in refused.stderr
        assert refused.stderr.count("\n") == 1


@pytest.mark.any_kvm
def test_several_wait_to_be_forks(family: Family, server: ForkServer) -> None:
    first = family.first()
    with closing(Template(server.path, spares=3)) as template:
        first.become(template)
        first.process.take()
        wait_until(lambda: len(children(server) - {first.process.pid}) == 3, "three wait")
        waiting = children(server)
        forks = [family.fork(template, "-S") for _ in range(3)]
        for fork in forks:
            fork.process.take()
        # These were there before.
        assert {fork.process.pid for fork in forks} <= waiting
        assert len({fork.count() for fork in forks}) == 1
        wait_until(lambda: len(children(server) - waiting) == 3, "three more wait")
    wait_until(lambda: not children(server) - waiting, "they go with the template")


def children(server: ForkServer) -> set[int | None]:
    """Return the processes that a fork server has made."""
    pid = server._process.pid
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(word) for word in text.split()}


@pytest.mark.any_kvm
def test_by_commands_from_a_monitor(kernel: Kernel) -> None:
    with (
        Monitored(kernel("spin")) as guest,
        held(guest.path, "-cont", seconds=PATIENCE) as path,
        TemporaryDirectory() as folder,
    ):
        assert guest.client.execute("query-status")["status"] == "running"
        assert "STOP" in guest.names()
        qmp = f"unix:{folder}/qmp,server,nowait"
        command = [str(PYVIRT), "fork", path, "-serial", "none", "-qmp", qmp]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as fork:
            # Before it runs, a signal may come too early for an orderly end.
            wait_until(lambda: runs(f"{folder}/qmp"), "the fork runs")
            monitor = listener(f"{folder}/qmp")
            fork.send_signal(signal.SIGTSTP)
            wait_until(lambda: stands(fork.pid), "the command stands")
            assert stands(monitor)
            fork.send_signal(signal.SIGCONT)
            wait_until(lambda: not stands(monitor), "the guest goes on")
            assert runs(f"{folder}/qmp")
            fork.send_signal(signal.SIGTERM)
            assert fork.wait(PATIENCE) == 0
        again = by_command("template", guest.path, "/nowhere/socket")
        assert again.returncode == 2
        assert "No such file or directory; name a new file in a writable folder" in again.stderr


def listener(path: str) -> int:
    """Return the process that listens at a socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(data[:4], sys.byteorder)


def stands(pid: int) -> bool:
    """Say whether a process is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def runs(path: str) -> bool:
    """Say whether the machine of a monitor, which may not be there yet, runs."""
    try:
        client = Client(path, lambda _: None)
    except PyvirtError:
        return False
    with closing(client):
        return bool(client.execute("query-status")["status"] == "running")
