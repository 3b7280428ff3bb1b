"""A client in Go against our server: go-qemu's monitor, which sends what Kata's govmm sends.

Collected where `go` is on the PATH; the first build on a machine fetches go-qemu's modules.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ..unit.qmp.fake_machine import running

SOURCE = Path(__file__).with_name("go_qemu")
BUILD_S, RUN_S = 300, 60
HINT = "go build failed in tests/compat/go_qemu; its first run needs the network, for the modules"
UUID = "b8a3f3c2-9f1e-4a55-8d0e-0f6a3c1f2b7d"

TOLD = """\
connected to 5.0.1
query-status: {"return":{"running":true,"singlestep":false,"status":"running"}}
query-uuid: {"return":{"UUID":"b8a3f3c2-9f1e-4a55-8d0e-0f6a3c1f2b7d"}}
stop: {"return":{}}
event STOP: {}
query-status: {"return":{"running":false,"singlestep":false,"status":"paused"}}
cont: {"return":{}}
event RESUME: {}
system_reset: {"return":{}}
event RESET: {"guest":false,"reason":"host-qmp-system-reset"}
frobnicate: error: The command frobnicate has not been found; query-commands lists them
connected to 5.0.1
blockdev-add: {"return":{}}
device_add: {"return":{}}
device_del: {"return":{}}
event DEVICE_DELETED: {"device":"virtio-drive-0","path":"virtio-drive-0"}
blockdev-del: {"return":{}}
blockdev-del: error: Block backend drive-0 not found
connected to 5.0.1
netdev_add: {"return":{}}
device_add: {"return":{}}
device_del: {"return":{}}
event DEVICE_DELETED: {"device":"virtio-net-0","path":"virtio-net-0"}
netdev_del: {"return":{}}
netdev_del: error: Net backend net-0 not found
connected to 5.0.1
quit: {"return":{}}
event SHUTDOWN: {"guest":false,"reason":"host-qmp-quit"}
"""


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """Build the client; where its modules can be neither found nor fetched, say so."""
    program = tmp_path / "go_qemu"
    command = ["go", "build", "-buildvcs=false", "-o", str(program), "."]
    try:
        built = subprocess.run(
            command,
            cwd=SOURCE,
            env=os.environ | {"CGO_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{HINT}\n{error}", pytrace=False)
    if built.returncode:
        pytest.fail(f"{HINT}\n{built.stdout}", pytrace=False)
    return program


def test_go_qemu(client: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    with running(tmp_path) as server:
        server.host.uuid = UUID
        result = subprocess.run(
            [client, server.path, image],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert result.stdout + result.stderr == TOLD
        assert result.returncode == 0
        assert server.host.calls == ["stop", "cont", "reset", "quit"]
        assert server.host.plugged() == {"blk": {}, "net": {}}
