"""The verbs of a test, and the commands that they become."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from pyvirt.errors import BackendError, PyvirtError
from pyvirt.harness.vm.faults import Faults, microseconds, size_in_bytes
from pyvirt.qmp.table import BY_NAME

from ...refusal import refusal


class Qmp:
    """A client that takes notes; what it is sent fits the table."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}
        self.refusal: PyvirtError | None = None

    def execute(self, command: str, arguments: dict[str, Any] | None = None, /) -> Any:
        if self.refusal:
            raise self.refusal
        BY_NAME[command].arguments.read(arguments or {}, "")
        self.sent.append((command, arguments or {}))
        return self.answers.get(command, {})


@pytest.fixture
def qmp() -> Qmp:
    return Qmp()


@pytest.fixture
def faults(qmp: Qmp) -> Faults:
    return Faults(qmp)


def test_a_chain_of_them(faults: Faults, qmp: Qmp) -> None:
    with faults.block("vda").delay("5ms", ops="flush").fail(errno="ENOSPC", after=100) as disk:
        assert disk.device == "vda"
        disk.drop("read, write", count=2, sectors=(8, 15)).corrupt(7, every=3)
    counts = {"after": 0, "every": 1}
    assert qmp.sent == [
        ("x-fault-add",
         {"device": "vda", "kind": "delay", "ops": ["flush"], "delay": 5000, **counts}),
        ("x-fault-add",
         {"device": "vda", "kind": "fail", "errno": "ENOSPC", "after": 100, "every": 1}),
        ("x-fault-add", {"device": "vda", "kind": "drop", "ops": ["read", "write"], "count": 2,
                         "sectors": {"first": 8, "last": 15}, **counts}),
        ("x-fault-add", {"device": "vda", "kind": "corrupt", "offset": 7, "after": 0, "every": 3}),
        ("query-x-faults", {"device": "vda"}),
        ("x-fault-clear", {"device": "vda"}),
    ]  # fmt: skip


def test_hits_are_known_afterwards(faults: Faults, qmp: Qmp) -> None:
    qmp.answers["query-x-faults"] = [{"hits": 2}, {"hits": 3}]
    with faults.block("vda").fail() as disk:
        assert disk.hits == 5
    qmp.answers["query-x-faults"] = []
    assert disk.hits == 5
    qmp.answers["query-x-faults"] = [{"hits": 1}]
    assert disk.fail().hits == 6


def test_interrupts(faults: Faults, qmp: Qmp) -> None:
    faults.block().interrupts.drop(3).interrupts.double()
    faults.device("python0").interrupts.double(2, after=5).break_device()
    base = {"ops": ["interrupt"], "every": 1}
    assert qmp.sent == [
        ("x-fault-add", {"device": "vda", "kind": "drop", "count": 3, "after": 0, **base}),
        ("x-fault-add", {"device": "vda", "kind": "double", "after": 0, **base}),
        ("x-fault-add", {"device": "python0", "kind": "double", "count": 2, "after": 5, **base}),
        ("x-fault-break", {"device": "python0"}),
    ]


def test_a_nic(faults: Faults, qmp: Qmp) -> None:
    with faults.net("eth0").lose(every=10).link("down") as nic:
        nic.link("up").link("down")
    with faults.net().lose("rx"):
        pass
    add = {"device": "eth0", "kind": "drop", "after": 0}
    assert qmp.sent == [
        ("x-fault-add", {**add, "ops": ["rx", "tx"], "every": 10}),
        ("set_link", {"name": "eth0", "up": False}),
        ("set_link", {"name": "eth0", "up": True}),
        ("set_link", {"name": "eth0", "up": False}),
        ("set_link", {"name": "eth0", "up": True}),
        ("query-x-faults", {"device": "eth0"}),
        ("x-fault-clear", {"device": "eth0"}),
        ("x-fault-add", {**add, "ops": ["rx"], "every": 1}),
        ("query-x-faults", {"device": "eth0"}),
        ("x-fault-clear", {"device": "eth0"}),
    ]
    assert refusal(lambda: faults.net().link("sideways")) == (
        "link 'sideways': give 'up' or 'down'"
    )


def test_sizes_and_counts(faults: Faults, qmp: Qmp) -> None:
    qmp.answers["query-x-faults"] = [{"hits": 2}, {"hits": 3}]
    assert faults.block("d").resize("64M").hits == 5
    faults.clear()
    assert qmp.sent == [
        ("block_resize", {"device": "d", "size": 64 << 20}),
        ("query-x-faults", {"device": "d"}),
        ("x-fault-clear", {}),
    ]


def test_the_first_error_is_the_one_that_is_told(faults: Faults, qmp: Qmp) -> None:
    disk = faults.block()
    qmp.refusal = BackendError("gone")
    with pytest.raises(ZeroDivisionError), disk:
        raise ZeroDivisionError
    with pytest.raises(BackendError, match="gone"), disk:
        pass


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("5ms", 5000),
        (0.00001, 10),
        ("1.5s", 1_500_000),
        ("200us", 200),
        (2, 2_000_000),
        (0.001, 1000),
    ],
)
def test_times(time: str | float, expected: int) -> None:
    assert microseconds(time) == expected


@pytest.mark.parametrize(
    "time", ["", "5", "5 ms", "-5ms", "ms", "1e3s", -1, True, None, float("nan")]
)
def test_no_times(time: Any) -> None:
    assert refusal(lambda: microseconds(time)) == (
        f"{time!r} is no time; give one such as '5ms', '1.5s', or seconds"
    )


def test_more_sizes() -> None:
    assert [size_in_bytes(size) for size in ("64M", "1K", "2G", "1T", 512)] == [
        64 << 20, 1 << 10, 2 << 30, 1 << 40, 512
    ]  # fmt: skip
    for size in ("", "64m", "-1", "1.5G", "9" * 16):
        assert refusal(partial(size_in_bytes, size)).endswith("or bytes")
