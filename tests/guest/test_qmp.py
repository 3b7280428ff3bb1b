"""The requests that operators send, byte for byte, against a running Linux."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.qmp.listener import UNIX, ListenerConfig
from pyvirt.qmp.machine import MachineHost
from pyvirt.qmp.server import Server
from pyvirt.vmm.log import Log

from .live import Live
from .test_hotplug import MIB, folder, guest, make, saved, sizes, wait_for_sizes

__all__ = ["folder", "guest", "saved"]  # fixtures

OWN = 16 * MIB // 512
ADD = (
    '{"execute": "blockdev-add", "arguments": {"node-name": "drive-0", "file": '
    '{"driver": "file", "filename": "PATH"}, "cache": {"direct": true}, "read-only": false}}'
)
PLUG = (
    '{"execute": "device_add", "arguments": '
    '{"id": "drive-0", "driver": "virtio-blk-mmio", "addr": "0x1"}}'
)
UNPLUG = '{"execute": "device_del", "arguments": {"id": "drive-0"}}'
DELETED = re.compile(
    r'\{"event":"DEVICE_DELETED","data":\{"device":"drive-0","path":"drive-0"\},'
    r'"timestamp":\{"seconds":[0-9]+,"microseconds":[0-9]+\}\}'
)


class Operator:
    """A connection of somebody who types; each answer is taken as the text that it is."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._lines = self._socket.makefile("r", newline="")
        assert self.line().startswith('{"QMP":')

    def line(self, *, filters: bool = False) -> str:
        """Return the next line; those on what NICs receive come when the guest likes."""
        self.skipped = 0
        while True:
            line = self._lines.readline()
            assert line.endswith("\r\n")
            if filters or "NIC_RX_FILTER_CHANGED" not in line:
                return line[:-2]
            self.skipped += 1

    def says(self, request: str) -> str:
        self._socket.sendall(request.encode())
        return self.line()

    def sends(self, request: str, fd: int) -> str:
        """Send a descriptor along."""
        socket.send_fds(self._socket, [request.encode()], [fd])
        return self.line()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture
def operator(guest: Live, folder: Path) -> Iterator[Operator]:
    path = str(folder / "qmp.sock")
    host = MachineHost(guest.machine)
    server = Server(host, [ListenerConfig("-qmp", UNIX, path=path)], Log())
    host.tell(server.emit)
    server.start()
    operator = Operator(path)
    yield operator
    operator.close()
    server.close()
    guest.machine.close()
    host.close()


def test_disk_by_the_book(guest: Live, operator: Operator, folder: Path) -> None:
    config = make(folder / "disk", 8, b"plugged")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        # A file system of memory may not know direct I/O; everything else is as in the book.
        add = ADD.replace("PATH", config.path).replace('"direct": true', '"direct": false')
        assert operator.says(add) == '{"return":{}}'
        assert sizes(guest) == [OWN, 0, 0, 0, 0, 0]
        assert operator.says(PLUG) == '{"return":{}}'
        wait_for_sizes(guest, [OWN, 8 * MIB // 512, 0, 0, 0, 0])
        assert guest.run("dd if=/dev/vdb bs=7 count=1 2>/dev/null") == "plugged"
        assert DELETED.fullmatch(operator.says(UNPLUG))
        assert operator.line() == '{"return":{}}'
        wait_for_sizes(guest, [OWN, 0, 0, 0, 0, 0])
        assert guest.run("dd if=/dev/vdb bs=512 count=1 2>/dev/null | wc -c") == "0"
    assert len(os.listdir("/proc/self/fd")) == before


def test_lun_and_refusals(guest: Live, operator: Operator, folder: Path) -> None:
    def refused(request: str) -> str:
        answer: dict[str, Any] = json.loads(operator.says(request))
        assert sizes(guest) == [OWN, 0, 0, 0, 0, 0]
        text: str = answer["error"]["desc"]
        return text

    config = make(folder / "disk", 8)
    add = ADD.replace("PATH", config.path).replace('"direct": true', '"direct": false')
    boots = add.replace(config.path, str(folder / "own"))
    assert "file can only be shared with read_only" in refused(boots)
    assert refused(PLUG) == "Failed to find device configuration."
    assert operator.says(add) == '{"return":{}}'
    assert refused(PLUG.replace("0x1", "0x0")) == "The slot 0 is occupied already."
    assert refused(PLUG.replace("blk", "net")).startswith("The device type is net")
    by_lun = PLUG.replace('"addr": "0x1"', '"lun": 0')
    assert operator.says(by_lun) == '{"return":{}}'
    wait_for_sizes(guest, [OWN, 8 * MIB // 512, 0, 0, 0, 0])


def test_reader_where_the_driver_knows_a_writable_disk(
    guest: Live, operator: Operator, folder: Path
) -> None:
    config = make(folder / "disk", 8)
    add = ADD.replace("PATH", config.path).replace('"direct": true', '"direct": false')
    assert operator.says(add.replace('"read-only": false', '"read-only": true')) == '{"return":{}}'
    answer = json.loads(operator.says(PLUG))
    assert "read-only, and the guest's driver took its slot" in answer["error"]["desc"]
    assert json.loads(operator.says('{"execute":"query-block"}'))["return"][0]["device"] == "own"
    removed = '{"execute":"blockdev-del","arguments":{"node-name":"drive-0"}}'
    assert operator.says(removed) == '{"return":{}}'
    assert operator.says(add) == '{"return":{}}'
    assert operator.says(PLUG) == '{"return":{}}'
    wait_for_sizes(guest, [OWN, 8 * MIB // 512, 0, 0, 0, 0])


def test_plug_while_paused(guest: Live, operator: Operator, folder: Path) -> None:
    config = make(folder / "disk", 8)
    add = ADD.replace("PATH", config.path).replace('"direct": true', '"direct": false')
    assert '"STOP"' in operator.says('{"execute":"stop"}')
    assert operator.line() == '{"return":{}}'
    assert operator.says(add) == '{"return":{}}'
    assert operator.says(PLUG) == '{"return":{}}'
    assert '"RESUME"' in operator.says('{"execute":"cont"}')
    assert operator.line() == '{"return":{}}'
    wait_for_sizes(guest, [OWN, 8 * MIB // 512, 0, 0, 0, 0])


def test_unplug_under_load(guest: Live, operator: Operator, folder: Path) -> None:
    config = make(folder / "disk", 64)
    add = ADD.replace("PATH", config.path).replace('"direct": true', '"direct": false')
    guest.run("dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null")
    for _ in range(2):
        assert operator.says(add) == '{"return":{}}'
        assert operator.says(PLUG) == '{"return":{}}'
        wait_for_sizes(guest, [OWN, 64 * MIB // 512, 0, 0, 0, 0])
        guest.begin("while dd if=/dev/zero of=/dev/vdb bs=64k 2>/dev/null; do :; done; true")
        time.sleep(0.3)
        assert DELETED.fullmatch(operator.says(UNPLUG))
        assert operator.line() == '{"return":{}}'
        assert guest.finish()[1] == 0
    guest.run("dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null")


def test_power_button_and_the_end(guest: Live, operator: Operator) -> None:
    answer = operator.says('{"execute":"system_powerdown"}')
    assert answer == '{"return":{}}'
    assert '"POWERDOWN"' in operator.line()
    guest.machine.stop()
    assert '"SHUTDOWN"' in operator.line()
