"""QEMU's own Python clients against our server: `qemu.qmp`, its older interface, and qmp-shell."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient
from qemu.qmp.legacy import QEMUMonitorProtocol

from ..unit.qmp.fake_machine import TIMEOUT, Running, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as server:
        yield server


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return str(path)


def session(server: Running, talk: Callable[[QMPClient], Awaitable[None]]) -> None:
    """Connect, talk, disconnect; an exception of the client's is the test's failure."""

    async def whole() -> None:
        client = QMPClient("test")
        await client.connect(server.path)
        try:
            await talk(client)
        finally:
            await client.disconnect()

    asyncio.run(asyncio.wait_for(whole(), TIMEOUT))


def blockdev(image: str) -> dict[str, Any]:
    return {
        "node-name": "drive-0",
        "file": {"driver": "file", "filename": image},
        "read-only": False,
    }


def test_client_sees_the_version(server: Running) -> None:
    async def talk(client: QMPClient) -> None:
        assert client.greeting is not None
        version: Any = client.greeting.QMP.version
        assert await client.execute("query-version") == version
        assert version["qemu"]["major"] == 5
        commands: Any = await client.execute("query-commands")
        assert {"name": "device_add"} in commands

    session(server, talk)


def test_client_plugs_a_disk(server: Running, image: str) -> None:
    async def talk(client: QMPClient) -> None:
        with client.listener("DEVICE_DELETED") as deleted:
            await client.execute("blockdev-add", blockdev(image))
            given: dict[str, object] = {"id": "drive-0", "driver": "virtio-blk-mmio"}
            await client.execute("device_add", given | {"addr": "0x1"})
            assert server.host.plugged()["blk"] == {1: "drive-0"}
            assert await client.execute("device_del", {"id": "drive-0"}) == {}
            event = await deleted.get()
            assert event["data"] == {"device": "drive-0", "path": "drive-0"}

    session(server, talk)


def test_client_gets_errors_and_goes_on(server: Running) -> None:
    """An error without the id of its request would end this client's connection."""

    async def talk(client: QMPClient) -> None:
        for name, arguments, kind in (
            ("frobnicate", {}, "CommandNotFound"),
            ("device_del", {"id": "x"}, "GenericError"),
            ("device_del", {}, "GenericError"),
            ("stop", {"x": 1}, "GenericError"),
            ("query-balloon", {}, "DeviceNotActive"),
        ):
            with pytest.raises(ExecuteError) as info:
                await client.execute(name, arguments)
            assert info.value.error_class == kind
        status: Any = await client.execute("query-status")
        assert status["running"]

    session(server, talk)


def test_client_is_throttled_and_goes_on(server: Running) -> None:
    async def talk(client: QMPClient) -> None:
        refused, kinds = 0, set()
        for _ in range(300):
            try:
                await client.execute("query-name")
            except ExecuteError as error:
                kinds.add(error.error_class)
                refused += 1
        assert kinds <= {"OperationThrottled"}
        assert refused < 300

    session(server, talk)


def test_client_many_at_once(server: Running) -> None:
    async def talk(client: QMPClient) -> None:
        found = await asyncio.gather(*(client.execute("query-name") for _ in range(50)))
        assert found == [{"name": "guest"}] * 50

    session(server, talk)


def test_client_sees_events(server: Running) -> None:
    async def talk(client: QMPClient) -> None:
        events = EventListener()
        with client.listen(events):
            await client.execute("stop")
            await client.execute("cont")
            await client.execute("system_powerdown")
            names = [(await events.get())["event"] for _ in range(3)]
        assert names == ["STOP", "RESUME", "POWERDOWN"]

    session(server, talk)


def test_client_sends_a_descriptor(server: Running) -> None:
    reader, writer = os.pipe()

    async def talk(client: QMPClient) -> None:
        client.send_fd_scm(writer)
        await client.execute("getfd", {"fdname": "tap"})
        await client.execute("netdev_add", {"id": "net-0", "fd": "tap"})
        (tap,) = server.host.inventory.backends("net")
        os.write(tap.resource.fds[0], b"x")  # type: ignore[attr-defined]
        assert os.read(reader, 9) == b"x"

    session(server, talk)
    os.close(reader)
    os.close(writer)


def test_client_sees_the_end(server: Running) -> None:
    async def talk(client: QMPClient) -> None:
        with client.listener("SHUTDOWN") as shutdown:
            await client.execute("quit")
            assert (await shutdown.get())["data"] == {"guest": False, "reason": "host-qmp-quit"}

    session(server, talk)


def test_older_interface(server: Running) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        with QEMUMonitorProtocol(server.path) as monitor:
            monitor.settimeout(TIMEOUT)
            monitor.connect()
            assert monitor.cmd("query-name") == {"name": "guest"}
            answer = monitor.cmd_obj({"execute": "device_del", "arguments": {"id": "x"}})
            assert answer == {"error": {"class": "GenericError", "desc": "Device x not found"}}
            monitor.cmd("stop")
            assert [event["event"] for event in monitor.get_events()] == ["STOP"]
    finally:
        asyncio.set_event_loop(None)
        loop.close()


SHELL = str(Path(sys.executable).parent / "qmp-shell")


def shell(server: Running, folder: Path, *lines: str) -> str:
    """Type lines into qmp-shell, return what it prints."""
    result = subprocess.run(
        [SHELL, server.path],
        input="\n".join([*lines, ""]),
        capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"HOME": str(folder)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_shell(server: Running, tmp_path: Path, image: str) -> None:
    told = shell(
        server,
        tmp_path,
        "query-status",
        f'blockdev-add node-name=drive-0 file={{"driver":"file","filename":"{image}"}}',
        "device_add id=drive-0 driver=virtio-blk-mmio addr=0x1",
        "device_add id=drive-0 driver=virtio-blk-mmio addr=0x2",
        "device_del id=drive-0",
        "frobnicate",
    )
    assert "Connected to QEMU 5.0.1" in told
    assert '"running": true' in told
    assert told.count('"return": {}') == 3
    assert "Device drive-0 is plugged already; send device_del first" in told
    assert "The command frobnicate has not been found" in told
    assert server.host.plugged() == {"blk": {}, "net": {}}
