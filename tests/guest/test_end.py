"""However a guest ends, pyvirt ends with it and says how."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .conftest import PYVIRT, SECONDS, Boot, make

CMDLINE = "console=ttyS0 quiet panic=-1"


def test_poweroff(boot: Boot) -> None:
    ended = boot("poweroff -f")
    assert (ended.status, ended.messages) == (0, "")


def test_reboot(boot: Boot) -> None:
    ended = boot("reboot -f")
    assert (ended.status, ended.messages) == (0, "")


def test_reboot_by_the_keyboard_controller(boot: Boot) -> None:
    ended = boot("reboot -f", append=f"{CMDLINE} reboot=k")
    assert (ended.status, ended.messages) == (0, "")


def test_reboot_without_acpi(boot: Boot) -> None:
    ended = boot("reboot -f", "-machine", "microvm,discovery=cmdline")
    assert (ended.status, ended.messages) == (0, "")


def test_a_reboot_that_begins_anew(boot: Boot, shm: Path) -> None:
    image = make(shm / "mark", 1 << 20)
    script = """
    echo "mark: $(dd if=/dev/vda bs=4 count=1 2>/dev/null | tr -d '\\0')"
    dd if=/dev/vda bs=4 count=1 2>/dev/null | grep -q been && exit
    printf been | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
    reboot -f
    """
    ended = boot(script, "-disk", str(image), "-action", "reboot=reset")
    marks = [line for line in ended.console.splitlines() if line.startswith("mark:")]
    assert marks == ["mark: ", "mark: been"]
    assert (ended.status, ended.messages) == (0, "")


def test_panic_is_shown_and_ends_the_run(boot: Boot) -> None:
    ended = boot("exec 2>/dev/console; echo c >/proc/sysrq-trigger; sleep 60", append=CMDLINE)
    assert "Kernel panic - not syncing" in ended.console
    assert ended.status == 0


def test_triple_fault_shows_the_registers(boot: Boot) -> None:
    ended = boot("reboot -f", append=f"{CMDLINE} reboot=t")
    assert ended.status == 1
    assert "the guest triple-faulted" in ended.messages
    for name in ("rip", "rsp", "cr3", "efer", "cs"):
        assert name in ended.messages
    assert "Traceback" not in ended.messages


def test_debug_exit_from_a_linux_guest(boot: Boot) -> None:
    ended = boot("printf '\\052' | dd of=/dev/port bs=1 seek=244 count=1 conv=notrunc; sleep 60")
    assert (ended.status, ended.messages) == (42, "")


def test_the_default_guest_heeds_the_power_button(shm: Path) -> None:
    """In its shell, with what runs there; its monitor is found as a user finds it."""
    monitor = shm / "monitor"
    options = ["-accel", "kvm", "-name", shm.name, "-qmp", f"unix:{monitor},server,nowait"]
    with subprocess.Popen(
        ["timeout", "-k", "5", str(SECONDS), PYVIRT, "run", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as guest:
        assert guest.stdout is not None
        while b"poweroff or Ctrl-A X leaves" not in (line := guest.stdout.readline()):
            assert line, "it ended"
        listed = subprocess.run([PYVIRT, "ps"], capture_output=True, check=True, timeout=SECONDS)
        (row,) = [row.split() for row in listed.stdout.decode().splitlines() if shm.name in row]
        assert row[2:] == [shm.name, str(monitor)]
        pressed = [str(PYVIRT), "qmp", row[3], "system_powerdown"]
        subprocess.run(pressed, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)
        guest.stdout.read()
    assert guest.returncode == 0
