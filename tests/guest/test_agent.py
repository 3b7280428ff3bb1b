"""The agent as process 1 of a guest whose monitor gives it no port."""

from __future__ import annotations

from pyvirt.harness.agent import image
from pyvirt.harness.guest import kernel

from .conftest import Running


def test_without_its_port_it_gives_a_shell(micro: kernel.Kernel) -> None:
    with Running(micro.image, "-initrd", str(image.initramfs(micro))) as running:
        running.expect("# ")
        running.type("echo got $((40 + 2)); exit\n")
        assert running.end() == 0
        assert "got 42" in running.console
