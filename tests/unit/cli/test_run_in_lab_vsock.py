"""Socket devices of a guest that runs in the lab: the host's socket is forwarded."""

from __future__ import annotations

from typing import Any

import pytest

from ..refusal import refusal
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


@pytest.mark.parametrize("driver", ["vhost-vsock-device", "vsock"])
def test_what_the_labs_kernel_would_serve_is_refused_before_it_boots(
    monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    def lab(_command: list[str], **_: object) -> int:
        raise AssertionError("the lab was started")

    argv = ["-device", f"{driver},guest-cid=3"]
    assert refusal(lambda: run(monkeypatch, argv, lab)) == (
        f"-device {driver},guest-cid=3: this host's kernel does not serve the nested lab, in which "
        "the guest would run; give vsock-device,guest-cid=N,uds=PATH"
    )
