"""Virtio devices written in Python: what a user's class can do, and all that it can do wrong."""

from __future__ import annotations

import os
import re
import select
import sys
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.cli.options.parse import parse
from pyvirt.cli.options.python_devices import PythonDeviceConfig
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio import turn
from pyvirt.devices.virtio.python import LATER, PythonDevice, Request, described
from pyvirt.devices.virtio.python_file import load
from pyvirt.native import lib
from pyvirt.vmm.memory import MIB, GuestMemory

from ...refusal import refusal
from .bench import NEGOTIATED, RING_STEP, RINGS, RUNNING, DeviceBench, take
from .mock_driver import Driver, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 16
DATA = 0x20_0000
PATIENCE = 30.0
PAGE = Path(__file__).resolve().parents[4] / "docs/python-devices.md"


class Upper(PythonDevice):
    """Answers in capitals; what it does otherwise is a test's."""

    device_id = 42
    queue_sizes = (SIZE, SIZE)
    features = 1 << 3
    config_space: bytes | bytearray = b"0123"

    def __init__(self) -> None:
        self.action: Callable[[int, Request], object] = self.answer
        self.seen: list[tuple[int, bytes]] = []

    def handle(self, queue: int, request: Request) -> object:
        self.seen.append((queue, request.read()))
        return self.action(queue, request)

    def answer(self, _queue: int, request: Request) -> int:
        return request.write(request.read().upper())

    def config_written(self, offset: int, data: bytes) -> None:
        if data == b"!":
            raise ValueError("not\nthat")
        space = bytearray(self.config_space)
        space[offset : offset + len(data)] = data
        self.config_space = space


class Bench(DeviceBench):
    """A Python device and an honest driver of its queues."""

    def __init__(self, memory: GuestMemory, device: PythonDevice, name: str = "up") -> None:
        device.prepare(name)
        super().__init__(memory, device)
        self.memory = memory
        self.drivers: list[Driver] = []

    def bind(self) -> None:
        self.set(r.STATUS, 0)
        assert self.negotiate(r.VERSION_1) == NEGOTIATED
        self.memory.write(RINGS, bytes(0x4_0000))
        self.drivers.clear()
        for index in range(len(self.device.queue_sizes)):
            size = self.device.queue_sizes[index]
            self.set_queue(index, size)
            base = RINGS + index * RING_STEP
            layout = Layout(base, base + 0x4000, base + 0x8000, size)
            self.drivers.append(Driver(self.memory, layout))  # type: ignore[arg-type]
        assert self.set_status(r.DRIVER_OK) == RUNNING
        take(self.irq_fd)

    def send(self, data: bytes, room: int, queue: int = 0) -> int:
        """Offer a chain; return where its answer will be."""
        driver = self.drivers[queue]
        place = DATA + (driver.position % SIZE) * 0x1000 + queue * 0x10_000
        self.memory.write(place, data)
        self.memory.write(place + 0x800, bytes(room))
        readable = [(place, len(data))] if data else []
        driver.add(readable, [(place + 0x800, room)] if room else [])
        if driver.publish():
            os.eventfd_write(self.kicks[queue], 1)
        return place + 0x800

    def collect(self, count: int = 1, queue: int = 0) -> list[int]:
        """Return the lengths of `count` answers, which an interrupt tells of."""
        patience = time.monotonic() + PATIENCE
        found: list[int] = []
        while len(found) < count:
            found += [length for _, length in self.drivers[queue].collect()]
            if len(found) < count:
                select.select([self.irq_fd], [], [], 0.1)
                take(self.irq_fd)
                assert time.monotonic() < patience
        return found

    def ask(self, data: bytes, room: int = 64, queue: int = 0) -> bytes:
        place = self.send(data, room, queue)
        (length,) = self.collect(1, queue)
        return self.memory.read(place, length)

    def wait_broken(self) -> str:
        """Return the one line of the log when the device needs a reset."""
        assert select.select([self.broken_fd], [], [], PATIENCE)[0]
        take(self.broken_fd)
        self.transport.report()
        assert self.get(r.STATUS) & r.NEEDS_RESET
        (line,) = self.log
        assert "\n" not in line
        self.log.clear()
        return line

    def close(self) -> None:
        self.drivers.clear()
        super().close()


@pytest.fixture
def up() -> Upper:
    return Upper()


@pytest.fixture
def bench(memory: GuestMemory, up: Upper) -> Iterator[Bench]:
    bench = Bench(memory, up)
    bench.bind()
    yield bench
    bench.close()


def test_chains_of_both_queues_are_answered(bench: Bench, up: Upper) -> None:
    assert bench.ask(b"hello") == b"HELLO"
    assert bench.ask(b"there", queue=1) == b"THERE"
    assert bench.ask(b"too long", room=3) == b"TOO"
    assert bench.ask(b"", room=8) == b""
    assert up.seen == [(0, b"hello"), (1, b"there"), (0, b"too long"), (0, b"")]
    assert up.negotiated == r.VERSION_1
    assert bench.log == []


def test_a_queue_that_never_ends_leaves_the_other_its_turns(bench: Bench, up: Upper) -> None:
    def offer_again(queue: int, request: Request) -> object:
        if queue == 0 and len(up.seen) < 100_000 and (1, b"me") not in up.seen:
            bench.drivers[0].collect()
            bench.send(b"again", 8)
        return up.answer(queue, request)

    up.action = offer_again
    bench.send(b"me", 8, queue=1)
    bench.send(b"again", 8)
    bench.collect(1, queue=1)
    assert len(up.seen) < 100_000


def test_code_that_takes_a_write_for_ever_is_left_alone(
    bench: Bench, up: Upper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "LIMIT_S", 0.1)
    go_on = threading.Event()
    monkeypatch.setattr(up, "config_written", lambda *_: go_on.wait(PATIENCE), raising=False)
    bench.set(r.CONFIG, 0, 4)
    assert bench.wait_broken() == (
        "up: config_written takes more than 0.1 s; it is left alone; it needs a reset"
    )
    bench.set(r.CONFIG, 0, 4)
    go_on.set()
    bench.bind()
    assert bench.ask(b"again") == b"AGAIN"


def test_what_was_offered_before_the_thread_is_answered(memory: GuestMemory, up: Upper) -> None:
    bench = Bench(memory, up)
    assert bench.negotiate(r.VERSION_1) == NEGOTIATED
    memory.write(RINGS, bytes(0x4_0000))
    bench.set_queue(0, SIZE)
    layout = Layout(RINGS, RINGS + 0x4000, RINGS + 0x8000, SIZE)
    driver = Driver(memory, layout)  # type: ignore[arg-type]
    driver.add([], [(DATA, 8)])
    driver.publish()
    bench.set_status(r.DRIVER_OK)
    bench.drivers.append(driver)
    bench.collect()
    del driver
    bench.close()


def test_many_chains(bench: Bench) -> None:
    for round_ in range(50):
        places = [bench.send(b"%d-%d" % (round_, i), 16) for i in range(5)]
        lengths = bench.collect(5)
        answers = [bench.memory.read(place, 16).rstrip(b"\0") for place in places]
        assert answers == [b"%d-%d" % (round_, i) for i in range(5)]
        assert sorted(lengths) == sorted(map(len, answers))


def test_answers_may_come_later_in_any_order(bench: Bench, up: Upper) -> None:
    kept: list[Request] = []

    def keep(_: int, request: Request) -> object:
        kept.append(request)
        return LATER

    up.action = keep
    first, second = bench.send(b"a", 4), bench.send(b"b", 4)
    wait_until(lambda: len(kept) == 2)
    assert kept[1].write(b"2nd") == 3
    up.complete(kept[1], 3)
    assert bench.collect() == [3]
    assert (bench.memory.read(first, 4), bench.memory.read(second, 3)) == (bytes(4), b"2nd")
    # Complete is complete, and its memory is the driver's.
    up.complete(kept[1], 3)
    with pytest.raises(ValueError, match="released"):
        kept[1].write(b"3rd")
    up.complete(kept[0])
    assert bench.collect() == [0]


def wait_until(holds: Callable[[], bool]) -> None:
    patience = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.001)


def test_a_reset_takes_what_is_put_off(bench: Bench, up: Upper) -> None:
    kept: list[Request] = []

    def keep(_: int, request: Request) -> object:
        kept.append(request)
        return LATER

    up.action = keep
    bench.send(b"a", 4)
    wait_until(lambda: len(kept) == 1)
    up.action = up.answer
    bench.bind()
    up.complete(kept[0], 4)
    with pytest.raises(ValueError, match="released"):
        kept[0].write(b"late")
    assert bench.ask(b"again") == b"AGAIN"
    assert bench.drivers[0].collect() == []


WRONG: list[tuple[Callable[[int, Request], object], str]] = [
    (lambda _q, _r: 1 // 0, r"ZeroDivisionError: .* \(test_python.py:\d+\)"),
    (lambda _q, _r: None,
     "TypeError: handle returned None, not how many bytes it wrote, or LATER"),
    (lambda _q, _r: True, "TypeError: handle returned True, .*"),
    (lambda _q, _r: -1, "ValueError: -1 bytes written to a chain of 4"),
    (lambda _q, _r: 5, "ValueError: 5 bytes written to a chain of 4"),
    (lambda _q, _r: sys.exit(3), r"SystemExit: 3 \(test_python.py:\d+\)"),
    (lambda _q, r: r.readable[0].__setitem__(0, 1), r"TypeError: .*read-only memory.*"),
]  # fmt: skip


@pytest.mark.parametrize(("action", "line"), WRONG)
def test_an_error_is_a_line_and_a_reset(
    bench: Bench, up: Upper, action: Callable[[int, Request], object], line: str
) -> None:
    up.action = action
    bench.send(b"a", 4)
    found = bench.wait_broken()
    assert re.fullmatch(f"up: {line}; it needs a reset", found), found
    bench.send(b"b", 4)
    time.sleep(0.02)
    assert bench.drivers[0].collect() == []
    up.action = up.answer
    bench.bind()
    assert bench.ask(b"again") == b"AGAIN"


class UnspeakableError(Exception):
    """An exception that fails at its own text."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("shift", range(3))
def test_an_error_in_any_language(bench: Bench, up: Upper, shift: int) -> None:
    """However long it is, no character is cut."""
    text = "x" * shift + "仮想機械が壊れました" * 50

    def fail(_queue: int, _request: Request) -> int:
        raise type("失敗" * 40, (Exception,), {})(text)

    up.action = fail
    bench.send(b"a", 4)
    line = bench.wait_broken()
    assert line.startswith(f"up: {'失敗' * 40}: {text[:30]}")
    assert "\ufffd" not in line


def test_an_error_that_has_no_text(bench: Bench, up: Upper) -> None:
    def fail(_queue: int, _request: Request) -> int:
        raise UnspeakableError

    up.action = fail
    bench.send(b"a", 4)
    assert bench.wait_broken().startswith("up: UnspeakableError: no message (test_python.py:")


def test_a_reason_of_any_bytes_is_told(bench: Bench) -> None:
    lib.pv_virtio_irq_broken(bench.transport._irq, b"\xe3\x81")
    assert bench.wait_broken() == "up: \ufffd; it needs a reset"
    bench.bind()
    lib.pv_virtio_irq_broken(bench.transport._irq, "あ".encode() * 1000)
    assert bench.wait_broken() == f"up: {'あ' * 170}; it needs a reset"


def test_a_configuration_space_that_is_none_any_more(bench: Bench, up: Upper) -> None:
    up.config_space = cast("Any", None)
    up.update_config()
    bench.transport.report()
    assert bytes(bench.map[r.CONFIG : r.CONFIG + 4]) == bytes(4)
    assert bench.wait_broken().startswith("up: TypeError: 'NoneType' object is not subscriptable")


def test_code_that_would_end_the_thread_of_a_vcpu(
    bench: Bench, up: Upper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(_offset: int, _data: bytes) -> None:
        sys.exit(3)

    monkeypatch.setattr(up, "config_written", leave)
    bench.set(r.CONFIG, 1, 1)
    assert bench.wait_broken().startswith("up: SystemExit: 3 (test_python.py:")


def test_a_driver_that_breaks_the_rules(bench: Bench) -> None:
    bench.drivers[0].ring.offer(0, 99)
    bench.drivers[0].ring.avail_idx = 1
    os.eventfd_write(bench.kicks[0], 1)
    assert bench.wait_broken() == "up: head 99 in a queue of 16; it needs a reset"
    bench.bind()
    assert bench.ask(b"again") == b"AGAIN"


def test_the_configuration_space(bench: Bench, up: Upper) -> None:
    assert bytes(bench.map[r.CONFIG : r.CONFIG + 4]) == b"0123"
    bench.set(r.CONFIG + 1, ord("x"), 1)
    assert bytes(bench.map[r.CONFIG : r.CONFIG + 4]) == b"0x23"
    # Its length stays, whatever becomes of it.
    generation = bench.get(r.CONFIG_GENERATION)
    up.config_space = b"new and longer"
    up.update_config()
    assert select.select([bench.broken_fd], [], [], PATIENCE)[0]
    bench.transport.report()
    assert bytes(bench.map[r.CONFIG : r.CONFIG + 8]) == b"new \0\0\0\0"
    assert bench.get(r.CONFIG_GENERATION) == generation + 1
    assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
    up.config_space = b"s"
    bench.set(r.CONFIG, ord("!"), 1)
    assert bytes(bench.map[r.CONFIG : r.CONFIG + 4]) == b"s\0\0\0"
    expected = r"up: ValueError: not that \(test_python.py:\d+\); it needs a reset"
    assert re.fullmatch(expected, bench.wait_broken())


def test_code_that_does_not_return_is_left_alone(
    bench: Bench, up: Upper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "LIMIT_S", 0.1)
    go_on, gone = threading.Event(), threading.Event()

    def wait(_: int, request: Request) -> object:
        go_on.wait(PATIENCE)
        try:
            return request.write(b"late")
        finally:
            gone.set()

    up.action = wait
    bench.send(b"a", 4)
    wait_until(lambda: len(up.seen) == 1)
    bench.set(r.STATUS, 0)
    bench.transport.report()
    assert bench.log == ["up: handle takes more than 0.1 s; it is left alone; it needs a reset"]
    up.action = up.answer
    bench.bind()
    go_on.set()
    assert gone.wait(PATIENCE)
    assert bench.ask(b"again") == b"AGAIN"


def test_nothing_is_left_behind(memory: GuestMemory) -> None:
    def usage() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    before = usage()
    bench = Bench(memory, Upper())
    for _ in range(20):
        bench.bind()
        bench.ask(b"x")
    bench.close()
    wait_until(lambda: usage() == before)


@given(st.binary(max_size=200), st.integers(0, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_any_chain(data: bytes, room: int, draw: st.DataObject) -> None:
    """Cut into any segments, it is read and written in their order."""
    readable, writable = (_cuts(draw, length) for length in (len(data), room))
    if not readable + writable:
        return
    memory = GuestMemory(128 * MIB)
    bench = Bench(memory, Upper())
    bench.bind()
    memory.write(DATA, data)
    bench.drivers[0].add(
        [(DATA + at, size) for at, size in readable],
        [(DATA + 0x1000 + at, size) for at, size in writable],
    )
    bench.drivers[0].publish()
    os.eventfd_write(bench.kicks[0], 1)
    (length,) = bench.collect()
    assert memory.read(DATA + 0x1000, length) == data.upper()[:room]
    bench.close()
    memory.close()


def _cuts(draw: st.DataObject, length: int) -> list[tuple[int, int]]:
    at = sorted(draw.draw(st.sets(st.integers(1, max(1, length)), max_size=4)) | {0, length})
    return [(a, b - a) for a, b in pairwise(at) if b <= length]


# The class


def attributes(**values: Any) -> PythonDevice:
    device: PythonDevice = type("Mine", (PythonDevice,), {"device_id": 5, **values})()
    return device


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device_id": 0}, "Mine.device_id is 0; give a virtio device ID, from 1"),
        ({"device_id": "4"}, "Mine.device_id is '4'; give a virtio device ID, from 1"),
        ({"queue_sizes": ()}, "Mine.queue_sizes is (); give the size of each queue"),
        ({"queue_sizes": 4}, "Mine.queue_sizes is 4; give the size of each queue"),
        ({"queue_sizes": (4, 3)}, "Mine.queue_sizes has 3; give powers of two, to 1024"),
        ({"queue_sizes": (2048,)}, "Mine.queue_sizes has 2048; give powers of two, to 1024"),
        ({"features": 1 << 32}, f"Mine.features is {1 << 32}; give the device's own bits"),
        ({"features": -1}, "Mine.features is -1; give the device's own bits"),
        ({"config_space": "x"}, "Mine.config_space is 'x'; give bytes"),
        ({"config_space": bytes(4000)}, "Mine.config_space has 4000 bytes; 3840 is the most"),
    ],
)
def test_classes_that_cannot_be_devices(values: dict[str, Any], message: str) -> None:
    assert refusal(lambda: attributes(**values).prepare("x")) == message


def test_a_class_without_handle(memory: GuestMemory) -> None:
    bench = Bench(memory, attributes(queue_sizes=(SIZE,)), "mine")
    bench.bind()
    bench.send(b"x", 4)
    assert bench.wait_broken() == "mine: NotImplementedError: no message; it needs a reset"
    bench.close()


# The file


def write(folder: Path, text: str) -> str:
    path = folder / "my_device.py"
    path.write_text(text)
    return str(path)


HEAD = "from pyvirt.devices.virtio.python import PythonDevice\n"
GOOD = HEAD + "class A(PythonDevice):\n    device_id = 4\n"


def test_a_file_with_a_class(tmp_path: Path) -> None:
    device = load(write(tmp_path, GOOD), "rng0", "", {})
    assert (device.name, device.device_type, device.queue_sizes) == ("rng0", 4, (64,))
    both = GOOD + "class B(A):\n    def __init__(self, x='1'): self.device_id = int(x)\n"
    assert load(write(tmp_path, both), "b", "B", {"x": "7"}).device_type == 7


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "its_neighbour_9.py").write_text("ID = 77\n")
    text = (
        HEAD
        + "import its_neighbour_9\nclass A(PythonDevice):\n    device_id = its_neighbour_9.ID\n"
    )
    assert load(write(tmp_path, text), "a", "", {}).device_type == 77


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("", {}, ": has none: a class derived from PythonDevice is needed"),
        (HEAD, {}, ": has none: a class derived from PythonDevice is needed"),
        (GOOD + "class B(A): pass\n", {},
         ": has several (A, B); give class=NAME: a class derived from PythonDevice is needed"),
        (GOOD, {"class_name": "C"}, ",class=C: no such class of a PythonDevice; there are A"),
        ("", {"class_name": "C"}, ",class=C: no such class of a PythonDevice; there is none"),
        ("\n1 // 0\n", {},
         ": ZeroDivisionError: integer division or modulo by zero (my_device.py:2); mend it there"),
        ("def f(:\n", {}, ": SyntaxError: invalid syntax (my_device.py:1); mend it there"),
        ("import no_such_module_9\n", {},
         ": ModuleNotFoundError: No module named 'no_such_module_9' (my_device.py:1); mend it "),
        ("raise SystemExit\n", {}, ": SystemExit: no message (my_device.py:1); mend it there"),
        (GOOD, {"options": {"x": "1"}},
         ": TypeError: PythonDevice.__init__() got an unexpected keyword argument 'x'; mend it "),
        (HEAD + "class A(PythonDevice): pass\n", {},
         ": A.device_id is 0; give a virtio device ID, from 1"),
    ],
)  # fmt: skip
def test_files_that_are_no_device(
    tmp_path: Path, text: str, more: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, text)
    arguments = {"class_name": "", "options": {}, **more}
    found = refusal(lambda: load(path, "a", **arguments))
    assert found.startswith(f"-device python,file={path}{message}")


def test_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 40)
    for path, reason in (
        (tmp_path / "none.py", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "fifo", "Not a regular file"),
        (Path("/dev/zero"), "Not a regular file"),
        (tmp_path / "large", "Larger than 16 MiB"),
    ):
        found = refusal(partial(load, str(path), "a", "", {}))
        assert found == f"-device python,file={path}: {reason}; name a file of Python"


def test_a_long_error_is_cut() -> None:
    line = described(ValueError("x\n" * 1000))
    assert len(line) < 150
    assert "\n" not in line


# The option


def test_options() -> None:
    words = ["-device", "python,file=a.py,class=C,id=rng,some-key=1", "-device=python,file=b,,c.py"]
    first, second = parse(words).devices
    assert isinstance(first, PythonDeviceConfig)
    assert isinstance(second, PythonDeviceConfig)
    assert (first.path, first.class_name, first.id, first.options) == (
        "a.py", "C", "rng", {"some_key": "1"}
    )  # fmt: skip
    assert (second.path, second.class_name, second.id, second.options) == (
        "b,c.py", "", "python1", {}
    )  # fmt: skip
    assert parse([]).devices == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("python", "-device python: names no file; give python,file=FILE"),
        ("python,class=A", "-device python,class=A: names no file; give python,file=FILE"),
        ("python,file=", "-device python,file=: names no file; give python,file=FILE"),
        ("python,file=a,id=", "-device id: 0 characters, an id has 1 to 255"),
        ("python,file=a,4=5", "-device python,file=a,4=5: 4 is no name"),
        ("python,file=a,=5", "-device python,file=a,=5: an empty member is no name"),
        ("python,file=a,file=b", "-device file=a,file=b: file is given twice; give it once"),
    ],
)
def test_options_that_are_refused(text: str, message: str) -> None:
    assert refusal(lambda: parse(["-device", text])) == message


def test_two_of_a_name() -> None:
    words = ["-device", "python,file=a,id=x"] * 2
    assert refusal(lambda: parse(words)) == (
        "-device id=x: there is one of that name; give another"
    )


# The page


def example() -> str:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_example_of_the_page(memory: GuestMemory, tmp_path: Path) -> None:
    text = example()
    assert len(text.splitlines()) <= 30
    path = tmp_path / "entropy.py"
    path.write_text(text)
    device = load(str(path), "rng", "", {"most": "64"})
    assert device.device_id == 4
    bench = Bench(memory, device, "rng")
    bench.bind()
    first, second = bench.ask(b"", 200), bench.ask(b"", 200)
    assert len(first) == len(second) == 64
    assert first != second
    assert bench.ask(b"", 7).strip(b"\0")
    bench.close()
