"""Where VMs run: one server a session, and what replaces a lost one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from pyvirt.errors import BackendError
from pyvirt.harness.vm import fork_server, place
from pyvirt.harness.vm.place import Broker, Remote, Session

FAKE = Path(__file__).resolve().parents[2] / "fake_monitor.py"


class Lab:
    """Stands in for ForkServer; counts."""

    made: list[Lab] = []  # noqa: RUF012  (emptied for each test)

    def __init__(self, *, lab_mib: int = 0) -> None:
        self.lab_mib = lab_mib
        self.path = f"/lab/{len(self.made)}"
        self.is_alive = True
        self.is_closed = False
        self.made.append(self)

    def why(self) -> str:
        return "it broke"

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user is told; labs are fake ones."""
    Lab.made = []
    monkeypatch.setattr(place, "ForkServer", Lab)
    monkeypatch.setattr(place, "kvm_failure", lambda: "it is emulated")
    return []


def test_nothing_is_started_before_it_is_asked_for(said: list[str]) -> None:
    Session(said.append).close()
    assert Lab.made == []


def test_host_that_can_needs_no_lab(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "kvm_failure", lambda: "")
    session = Session(said.append)
    assert session.server() == session.server() == "/lab/0"
    assert (Lab.made[0].lab_mib, said) == (0, [])
    session.close()
    assert Lab.made[0].is_closed


def test_lab_is_booted_once_and_its_reason_told(said: list[str]) -> None:
    session = Session(said.append)
    assert session.server() == session.server() == "/lab/0"
    assert Lab.made[0].lab_mib == place.LAB_MIB
    assert said == ["the VMs run in the nested lab, because: it is emulated"]
    session.close()
    assert Lab.made[0].is_closed


@pytest.mark.parametrize(
    ("alive", "why"), [(True, "the nested lab has stopped"), (False, "it broke")]
)
def test_lost_lab_is_replaced(alive: bool, why: str, said: list[str]) -> None:
    session = Session(said.append)
    lost = session.server()
    Lab.made[0].is_alive = alive
    assert [session.why(lost) for _ in range(2)] == [why, why]
    assert Lab.made[0].is_closed
    assert session.server() == "/lab/1"
    assert session.why(lost) == why  # and the new one stays
    assert session.server() == "/lab/1"
    session.close()


def test_server_that_has_ended_is_replaced_unasked(said: list[str]) -> None:
    session = Session(said.append)
    session.server()
    Lab.made[0].is_alive = False
    assert session.server() == "/lab/1"
    session.close()


def broker_of(said: list[str]) -> Broker:
    def make() -> Session:
        return Session(said.append)

    return Broker(make(), make)


@pytest.mark.parametrize("cores", [1, 2])
def test_workers_have_a_lab_for_each_core(
    cores: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    broker = broker_of(said)
    try:
        workers = [Remote(broker.path, number) for number in range(4)]
        assert [worker.server() for worker in workers] == ["/lab/0", f"/lab/{cores - 1}"] * 2
        assert len(Lab.made) == cores
        assert workers[0].why("/lab/0") == "the nested lab has stopped"
        assert workers[0].server() == workers[2].server() == f"/lab/{cores}"
        assert workers[2].why("/lab/0") == "the nested lab has stopped"
        assert workers[2].server() == f"/lab/{cores}"
    finally:
        broker.close()
    assert all(lab.is_closed for lab in Lab.made)


def test_workers_share_a_server_of_this_host(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "kvm_failure", lambda: "")
    monkeypatch.delenv("PYVIRT_LAB", raising=False)
    broker = broker_of(said)
    try:
        assert {Remote(broker.path, number).server() for number in range(3)} == {"/lab/0"}
    finally:
        broker.close()


def test_workers_are_told_of_errors(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: int) -> None:
        raise BackendError("lab: QEMU ended early")

    monkeypatch.setattr(place, "ForkServer", fail)
    broker = broker_of(said)
    try:
        with pytest.raises(BackendError, match="lab: QEMU ended early"):
            Remote(broker.path, 0).server()
    finally:
        broker.close()
    assert not os.path.exists(broker.path)
    with pytest.raises(BackendError, match="the session of pytest's controller"):
        Remote(broker.path, 0).server()


def test_lab_that_stops_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is stopped, as by a lab, does not answer."""
    monkeypatch.setattr(place, "kvm_failure", lambda: "")
    monkeypatch.setattr(place, "_ALIVE_S", 0.5)
    words = [sys.executable, "-P", str(FAKE)]
    monkeypatch.setattr(fork_server, "command", lambda *given: [*words, *given[1:]])
    session = Session(print)
    try:
        server = session.server()
        assert session.is_alive(server)
        assert session._server is not None
        session._server._process.send_signal(19)
        assert not session.is_alive(server)
        monkeypatch.setattr(fork_server, "_STOP_S", 0.5)
        assert session.why(server) == "the nested lab has stopped"
        assert session.server() != server
    finally:
        session.close()
