"""Templates: what a process takes from whoever connects, and what a machine says to it."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.devices.virtio.device import Pluggable
from pyvirt.errors import BackendError, StateError
from pyvirt.vmm.memory import MIB, GuestMemory
from pyvirt.vmm.snapshot import shape, state_file, template
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.memory_file import Writer
from pyvirt.vmm.topology import Topology

IDENTITY = bytes(range(16))
SIZE = 128 * MIB
SECONDS = 30.0
ALL = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def state(**fields: object) -> bytes:
    found = shape.Shape(SIZE, Topology(1), pit=True, hotplug=False, acpi=True)
    return state_file.encode({"snapshot": IDENTITY.hex(), "machine": found.save(), **fields})


def write_memory(fd: int, identity: bytes = IDENTITY) -> None:
    with closing(GuestMemory(SIZE)) as memory:
        memory.write(5 * MIB, b"something")
        Writer(memory, identity).write(fd)


def memfd(fill: Callable[[int], object], seals: int = ALL, flags: int = 0) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    fill(fd)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def a_state(data: bytes | None = None) -> int:
    return memfd(lambda fd: os.write(fd, state() if data is None else data))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_was_given_is_the_templates_and_may_not_change() -> None:
    before = open_files()
    with closing(template.take(a_state(), memfd(write_memory))) as found:
        incoming = found.incoming()
        assert (incoming.shape.memory, incoming.name) == (SIZE, "the template")
        memories = [GuestMemory(SIZE, content=incoming) for _ in range(2)]
        memories[0].write(5 * MIB, b"SOMETHING")
        memories[0].write(90 * MIB, b"more")
        assert [memory.read(5 * MIB, 9) for memory in memories] == [b"SOMETHING", b"something"]
        # What it has nothing of is memory like any other.
        assert memories[0].mapped == [(4 * MIB, 6 * MIB)]
        for memory in memories:
            memory.close()
        with pytest.raises(PermissionError):
            os.pwrite(found.fds[0], b"x", 0)
    assert open_files() == before


@pytest.mark.parametrize(
    ("make_state", "make_memory", "message"),
    [
        (lambda: os.pipe2(os.O_CLOEXEC)[0], None, "is not given as memfds"),
        (lambda: os.open("/dev/zero", os.O_RDONLY), None, "is not given as memfds"),
        (None, lambda: os.open("/dev/null", os.O_RDWR), "is not given as memfds"),
        (None, lambda: memfd(write_memory, 0), "are not sealed"),
        (None, lambda: memfd(write_memory, ALL & ~fcntl.F_SEAL_SHRINK), "are not sealed"),
        (lambda: memfd(lambda fd: os.write(fd, state()), 0), None, "are not sealed"),
        (lambda: a_state(b""), None, "is no state of pyvirt"),
        (lambda: a_state(state()[:-1]), None, "state: is cut off"),
        (lambda: a_state(state().replace(b"true", b"null")), None, "damaged, by its checksum"),
        (
            lambda: memfd(lambda fd: os.ftruncate(fd, state_file.SIZE_MAX + 1)),
            None,
            "state: is larger than 64 MiB",
        ),
        (None, lambda: memfd(lambda _: None), "memory: has 0 bytes"),
        (None, lambda: memfd(lambda fd: os.ftruncate(fd, SIZE)), "is of another snapshot"),
        (None, lambda: memfd(lambda fd: write_memory(fd, bytes(16))), "is of another snapshot"),
    ],
)
def test_what_is_not_taken(
    make_state: Callable[[], int] | None, make_memory: Callable[[], int] | None, message: str
) -> None:
    fds = (make_state or a_state)(), (make_memory or (lambda: memfd(write_memory)))()
    with pytest.raises(StateError, match=message) as info:
        template.take(*fds)
    assert "\n" not in str(info.value)
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def layers(*each: tuple[int, int]) -> list[dict[str, int]]:
    return [{"slot": slot, "count": count} for slot, count in each]


def files(count: int) -> list[int]:
    """Return descriptors that are each something of its own."""
    return [os.memfd_create(f"layer{number}", os.MFD_CLOEXEC) for number in range(count)]


def test_each_disk_gets_its_layers() -> None:
    before, given = open_files(), files(3)
    data = state(layers=layers((4, 1), (0, 2)))
    with closing(template.take(a_state(data), memfd(write_memory), *given)) as found:
        assert found.fds[1:] == given
        assert found.incoming().layers == {4: (given[0],), 0: tuple(given[1:])}
        # A fork in waiting has its own of them, until its disks are there.
        found.incoming().close()
    assert open_files() == before


@pytest.mark.parametrize(
    ("told", "count", "message"),
    [
        (None, 1, "tells of 0 layers of disks, and 1 came with it"),
        (layers((0, 1)), 0, "tells of 1 layers of disks, and 0 came with it"),
        (layers((0, 1)), 2, "tells of 1 layers of disks, and 2 came with it"),
        (layers((0, 1), (0, 1)), 2, "layers.1.slot: 0 comes twice"),
        (layers((0, 0)), 0, "layers.0.count: 0 is not between 1 and 16"),
        (layers((0, 17)), 17, "layers.0.count: 17 is not between 1 and 16"),
        (layers((-1, 1)), 1, "layers.0.slot: -1 is not between 0 and 255"),
        (layers((256, 1)), 1, "layers.0.slot: 256 is not between 0 and 255"),
        ([1], 1, "layers.0: 1 is not a section of fields"),
        ("x", 1, "layers"),
    ],
)
def test_layers_that_are_not_taken(told: object, count: int, message: str) -> None:
    before = open_files()
    data = state() if told is None else state(layers=told)
    with pytest.raises(StateError, match=message):
        template.take(a_state(data), memfd(write_memory), *files(count))
    assert open_files() == before


def test_memory_of_huge_pages_is_not_taken() -> None:
    try:
        memory = memfd(lambda fd: os.ftruncate(fd, 2 * MIB), flags=os.MFD_HUGETLB)
    except OSError:
        pytest.skip("this kernel has no huge pages")
    with pytest.raises(StateError, match="of huge pages"):
        template.take(a_state(), memory)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8))
def test_no_state_does_more_than_be_refused(at: int, bytes_: bytes) -> None:
    data = bytearray(state())
    data[at % len(data) : at % len(data) + len(bytes_)] = bytes_
    with suppress(StateError), closing(template.take(a_state(bytes(data)), memfd(write_memory))):
        pass


def test_a_folder_may_go_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    Folder(str(path)).write(write_memory, state)
    before = open_files()
    with closing(template.read_folder(str(path))) as found:
        os.truncate(path / "memory", 0)
        with closing(GuestMemory(SIZE, content=found.incoming())) as memory:
            assert memory.read(5 * MIB, 9) == b"something"
        assert os.fstat(found.fds[0]).st_blocks * 512 < MIB
    with pytest.raises(StateError, match="memory: has 0 bytes"):
        template.read_folder(str(path))
    (path / "memory").unlink()
    with pytest.raises(StateError, match="No such file or directory; name a folder"):
        template.read_folder(str(path))
    assert open_files() == before


class There:
    """Who answers at a socket."""

    def __init__(self, folder: str, *answers: bytes) -> None:
        self.path = f"{folder}/socket"
        self.said: list[bytes] = []
        self.fds: list[int] = []
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        client.settimeout(SECONDS)
        with client, suppress(OSError):
            for answer in self._answers:
                data, fds, _, _ = socket.recv_fds(client, 4096, 4)
                self.said.append(data)
                self.fds += fds
                client.sendall(answer)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


class Frozen(Pluggable):
    """A disk whose overlay has layers."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = tuple(layers)

    def freeze(self) -> tuple[int, ...]:
        return self._layers


def hand_over(path: str, name: str = "", own: Sequence[int] = ()) -> None:
    target = template.Handover(template.uri(path, name).removeprefix(template.SCHEME))
    target.check()
    with closing(GuestMemory(SIZE)) as memory:
        assert target.take(1, Frozen(own), Writer(memory, IDENTITY)) == len(own)
    target.write(write_memory, lambda: state(layers=layers((1, len(own)))) if own else state())


def test_a_machine_is_handed_over_as_descriptors() -> None:
    before = open_files()
    with TemporaryDirectory() as folder:
        with closing(There(folder, b"{}\n", b"{}\n")) as there:
            hand_over(there.path, "of mine")
        assert there.said == [b'{"give": "of mine"}\n', b'{"given": true}\n']
        with closing(template.take(*there.fds)) as found:
            assert found.incoming().shape.memory == SIZE
    assert open_files() == before


def test_a_disks_layers_go_with_it() -> None:
    before, own = open_files(), files(2)
    with TemporaryDirectory() as folder:
        with closing(There(folder, b"{}\n", b"{}\n")) as there:
            hand_over(there.path, own=own)
        with closing(template.take(*there.fds)) as found:
            same = [os.fstat(fd).st_ino for fd in own]
            assert [os.fstat(fd).st_ino for fd in found.incoming().layers[1]] == same
    own += files(61)
    with (
        TemporaryDirectory() as folder,
        closing(There(folder, b"{}\n", b"{}\n")) as there,
        pytest.raises(BackendError, match="its disks have 63 layers, and 62 are the most"),
    ):
        hand_over(there.path, own=own)
    for fd in own:
        os.close(fd)
    assert open_files() == before


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([b'{"error": "no room"}\n'], "no room"),
        ([b"{}\n", b'{"error": "too late"}\n'], "too late"),
        ([b"{}\n", b"[1]\n"], "is it pyvirt template"),
        ([b"{}\n", b"no JSON\n"], "is it pyvirt template"),
        ([b"{}\n", b"x" * 9000], "is it pyvirt template"),
        ([b"{}\n", b""], "is it pyvirt template|reset by peer; name the socket"),
    ],
)
def test_who_does_not_take_it(answers: list[bytes], message: str) -> None:
    before = open_files()
    with TemporaryDirectory() as folder:
        with closing(There(folder, *answers)) as there:
            with pytest.raises(BackendError, match=message) as info:
                hand_over(there.path)
            assert str(info.value).startswith(f"template:{there.path}: ")
        for fd in there.fds:
            os.close(fd)
        with pytest.raises(BackendError, match="refused; name the socket of a pyvirt template"):
            hand_over(there.path)
    with pytest.raises(BackendError, match="No such file or directory; name the socket"):
        hand_over("/nowhere")
    assert open_files() == before
