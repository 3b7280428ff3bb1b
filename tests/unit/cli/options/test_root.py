"""A folder of the host as the guest's root: what the option makes of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyvirt.cli import run_in_lab
from pyvirt.cli.options import root
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import _with_root, config
from pyvirt.devices.vhost_user.fs import FsConfig
from pyvirt.devices.vhost_user.virtiofsd import Virtiofsd
from pyvirt.harness.guest import hostboot, kernel
from pyvirt.harness.guest.kernel import Kernel

from ...refusal import refusal

CONFIG = "CONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_FS=y\nCONFIG_OVERLAY_FS=y\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with as much of a system in it as a look from outside tells."""
    (tmp_path / "tree/bin").mkdir(parents=True)
    (tmp_path / "tree/bin/sh").symlink_to("/bin/busybox")
    return tmp_path / "tree"


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel with all that it needs built in, and an initramfs that nobody makes."""
    image = tmp_path / "boot/bzImage"
    image.parent.mkdir()
    image.write_text("Linux version 6.1.7-fake (me)")
    (image.parent / "config-6.1.7-fake").write_text(CONFIG)
    monkeypatch.setattr(hostboot, "build", lambda _kernel: Path("/initramfs"))
    return image


def test_a_root_is_a_file_system_that_nobody_writes(tree: Path) -> None:
    (one,) = config(parse(["-root", str(tree)])).devices
    assert isinstance(one, FsConfig)
    assert isinstance(one.back_end, Virtiofsd)
    assert (one.tag, one.back_end.where) == (b"pyvirt-root", f"-root {tree}")
    assert one.back_end._readonly
    assert "/sys/share" in " ".join(one.back_end._words())


def test_what_it_brings_along(tree: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "src").mkdir()
    monkeypatch.chdir(tree / "src")
    monkeypatch.setenv("TERM", "xterm")
    argv = ["-root", str(tree), "-kernel", str(image), "-append", "nokaslr", "-share", "."]
    completed = _with_root(argv, parse(argv))
    assert completed.initrd == "/initramfs"
    assert completed.append == (
        "console=ttyS0 quiet panic=-1 nokaslr pyvirt.overlay=pyvirt-root pyvirt.cwd=/src "
        "pyvirt.share=share0"
    )
    assert [one.id for one in completed.devices] == ["pyvirt-root", "share0"]
    # In the lab nothing is made anew.
    words = run_in_lab._words(completed, [])
    assert f"-root={tree}" in words
    assert root.is_complete(parse(words))


def test_modules_that_are_not_in_the_root_are_a_file_system_too(tree: Path, image: Path) -> None:
    modules = image.parent / "lib/modules/6.1.7-fake"
    modules.mkdir(parents=True)
    (modules / "modules.dep").touch()
    argv = ["-root", str(tree), "-kernel", str(image)]
    completed = _with_root(argv, parse(argv))
    assert completed.append is not None
    assert "pyvirt.modules=pyvirt-modules" in completed.append
    assert "pyvirt.share" not in completed.append
    assert [one.id for one in completed.devices] == ["pyvirt-root", "pyvirt-modules"]
    argv[1] = "/"
    completed = _with_root(argv, parse(argv))
    assert f"pyvirt.modules={modules} " in (completed.append or "")
    assert [one.id for one in completed.devices] == ["pyvirt-root"]


def test_without_a_kernel_it_is_that_of_the_default_guest(
    tree: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def find(name: str) -> Kernel:
        asked.append(name)
        return Kernel(name, image, "6.1.7-fake", None, None)

    monkeypatch.setattr(kernel, "find", find)
    argv = ["-root", str(tree)]
    assert _with_root(argv, parse(argv)).kernel == str(image)
    assert asked == ["cloud"]


def test_a_command_keeps_every_character(tree: Path, image: Path) -> None:
    argv = ["-root", str(tree), "-kernel", str(image), "-exec", "echo 'a\\nb' \"$X\" | wc"]
    completed = _with_root(argv, parse(argv))
    (told,) = (w for w in (completed.append or "").split() if w.startswith("pyvirt.exec="))
    assert told == (
        r"pyvirt.exec=echo\0040\0047a\0134nb\0047\0040\0042\0044X\0042\0040\0174\0040wc"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-root", "/nowhere"], "-root /nowhere: no such folder; name one with a system in it"),
        (["-root", "/etc/passwd"], "-root /etc/passwd: not a folder"),
        (["-root", "/proc"], "-root /proc: it has no /bin/sh"),
        (["-root="], "-root: names no folder"),
        (["-root", "/", "-root", "/"], "-root: given twice"),
        (["-exec", "true"], "-exec true: only with -root; add -root /"),
        (["-root", "/", "-initrd", "i"], "leave -initrd i out"),
        (["-root", "/", "-append", "quiet root=/dev/vda"], "leave root=/dev/vda out of -append"),
        (["-root", "/", "-exec", " "], "-exec: names no command"),
        (["-root", "/", "-exec", "x" * 3000], "too long; put it into a script"),
        (["-root", "/", "-share", "/,tag=pyvirt-root"], "-share tag=pyvirt-root: two have it"),
        (
            [
                *("-root", "/", "-serial", "none", "-chardev", "stdio,id=c"),
                *("-device", "virtio-serial-device", "-device", "virtconsole,chardev=c"),
            ],
            "the guest of -root is on its serial port; give -serial chardev:c",
        ),
    ],
)
def test_what_cannot_be(words: list[str], said: str) -> None:
    assert said in refusal(lambda: _with_root(words, parse(words)))


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("CONFIG_VIRTIO_FS=y", "was built without CONFIG_VIRTIO_FS; take another"),
        ("CONFIG_OVERLAY_FS=y", "was built without CONFIG_OVERLAY_FS; take another"),
    ],
)
def test_a_kernel_that_cannot(tree: Path, image: Path, lacking: str, said: str) -> None:
    config_file = image.parent / "config-6.1.7-fake"
    config_file.write_text(CONFIG.replace(lacking, ""))
    argv = ["-root", str(tree), "-kernel", str(image)]
    message = refusal(lambda: _with_root(argv, parse(argv)))
    assert message.startswith(f"-root {tree}: the kernel {image} ")
    assert said in message


def test_a_kernel_whose_modules_are_nowhere(tree: Path, image: Path) -> None:
    (image.parent / "config-6.1.7-fake").write_text(CONFIG.replace("OVERLAY_FS=y", "OVERLAY_FS=m"))
    argv = ["-root", str(tree), "-kernel", str(image)]
    message = refusal(lambda: _with_root(argv, parse(argv)))
    assert "has overlay as a module, and no lib/modules/6.1.7-fake is beside it" in message
