"""Socket devices of a guest that runs in the lab: the host's socket is forwarded."""

from __future__ import annotations

from typing import Any

import pytest

from .test_run_in_lab import run


def test_the_socket_is_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], Any]] = []

    def lab(command: list[str], **options: Any) -> int:
        calls.append((command, options["forward"]))
        return 0

    argv = ["-device", "vsock-device,guest-cid=3,uds=/host/a,,b,id=v"]
    assert run(monkeypatch, argv, lab) == 0
    ((command, ((path, inside),)),) = calls
    assert path == "/host/a,b"
    assert f"-device=vsock-device,guest-cid=3,uds={inside},id=v" in command
