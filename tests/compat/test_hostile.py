"""The hostile guest under QEMU's microvm: what it finds there is what docs/hostile.md says.

So its rules can fail, and a monitor that is not ours keeps to the others.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from pyvirt.harness.plugin.ktap import FAILED, PASSED

from ..hostile import report

PAGE = Path(__file__).parents[2] / "docs" / "hostile.md"
SECONDS = 240
VERSION = "version 7.2."  # Debian 12's
MACHINE = (
    *("-M", "microvm,pit=off,pic=off,rtc=off", "-accel", "tcg", "-m", "128", "-nodefaults"),
    *("-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
    *("-global", "virtio-mmio.force-legacy=false", "-device", "isa-debug-exit,iobase=0xf4"),
    *("-netdev", "user,id=n", "-device", "virtio-net-device,netdev=n"),
    *("-chardev", "null,id=c", "-device", "virtio-serial-device"),
    *("-device", "virtconsole,chardev=c"),
)


def table(heading: str) -> set[str]:
    """Return the rules in the first column of the table under a heading of the page."""
    text = PAGE.read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([a-z0-9-]+)`", cell)}


def test_the_page_has_every_rule() -> None:
    text = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \| `([a-z0-9-]+)`", text, re.MULTILINE)
    assert listed == [(str(number), name) for number, name in enumerate(report.rules(), 1)]
    assert f"[{len(listed)} rules]" in text


def under_qemu(kernel: Path, words: str, *options: str) -> list[report.Verdict]:
    done = subprocess.run(
        [
            *("timeout", "-k", "1", str(SECONDS), "qemu-system-x86_64", *MACHINE),
            *("-kernel", str(kernel), "-append", words, *options),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return report.read(done.stdout.decode())


@pytest.mark.long
def test_qemu(tmp_path: Path) -> None:
    version = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, check=True, timeout=SECONDS
    ).stdout.decode()
    if VERSION not in version:
        pytest.skip(f"docs/hostile.md is about another QEMU than this: {version.splitlines()[0]}")
    disk = tmp_path / "disk"
    disk.write_bytes(b"\0" * (64 << 10))
    ends, fails = table("Rules that QEMU does not live through"), table("Rules that QEMU breaks")
    verdicts = under_qemu(
        report.build(tmp_path / "build"),
        f"hostile.rounds=20 hostile.skip={','.join(sorted(ends))}",
        *("-drive", f"if=none,id=d,format=raw,file={disk}"),
        *("-device", "virtio-blk-device,drive=d"),
    )
    assert {v.device for v in verdicts} == {"block0", "net0", "console0"}
    assert {v.rule for v in verdicts if v.outcome == FAILED} == fails


@pytest.mark.long
def test_qemu_enters_each_form(tmp_path: Path) -> None:
    kernel = report.build(tmp_path / "build")
    for form in report.FORMS:
        verdicts = under_qemu(kernel.with_name(form), "hostile.only=identity")
        assert [v.outcome for v in verdicts] == [PASSED, PASSED]
