"""docs/stratovirt.md: all of StratoVirt's microVM has a row there, with a test or a reason.

The names are those of its releases 20.09 (0.1 to 0.3), 2.4 and 2.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.cli.options.parse import parse
from pyvirt.errors import PyvirtError
from pyvirt.qmp.table import BY_NAME

ROOT = Path(__file__).resolve().parents[2]
STATES = ("works", "differs", "left out", "taken")

OPTIONS = """
accel api-channel append balloon boot chardev config cpu daemonize device disable-seccomp display
drive freeze fsdev global h incoming initrd iothread kernel m machine mem-path mem-prealloc mon
msg name netdev no-shutdown no-user-config nodefaults nographic numa object omit_vm_memory
overcommit pidfile qmp realtime rng rtc S sandbox serial smp trace usb uuid V vga D
"""
MEMBERS = """
sockets= dies= clusters= cores= threads= maxcpus= dump-guest-core= mem-share= accel= usb=
host-nodes= policy= file= readonly= direct= serial= throttling.iops-total= aio= discard=
detect-zeroes= format=raw if=none ifname= fd= fds= vhost= vhostfd= queues= mac= iothread=
num-queues= queue-size= drive= rng= max-bytes= period= guest-cid= deflate-on-oom=
free-page-reporting= auto-balloon= membuf-percent= monitor-interval= tag= mapped= dump_guest_core
mem_share random_file= bytes_per_sec=
"""
DEVICES = """
virtio-blk-device virtio-net-device vhost-vsock-device vsock virtio-serial-device virtserialport
virtconsole virtio-rng-device virtio-balloon-device vhost-user-fs-device vhost-user-blk-device
pmem mem input
"""
JSON = """
boot-source kernel_image_path boot_args initrd_fs_path machine-config name vcpu_count mem_size
mem_path type dump_guest_core mem-share mem_share omit_vm_memory drive drive_id path_on_host
read_only direct serial_num iothread iops net iface_id host_dev_name mac tap_fd vhost_type
vhost_fd console console_id socket_path vsock vsock_id guest_cid serial stdio id balloon
deflate_on_oom rng random_file bytes_per_sec
"""
REQUESTS = """
qmp_capabilities quit stop cont query-status query-cpus query-hotpluggable-cpus balloon
query-balloon blockdev-add blockdev-del netdev_add netdev_del device_add device_del getfd migrate
query-migrate migrate_cancel query-version query-commands query-target query-kvm query-machines
query-events qom-list-types device-list-properties query-command-line-options query-tpm-models
query-tpm-types query-migrate-capabilities qom-list qom-get query-block query-named-block-nodes
query-blockstats query-block-jobs query-gic-capabilities query-iothreads query-qmp-schema
query-sev-capabilities query-mem query-chardev chardev-add chardev-remove cameradev_add
cameradev_del query-vnc query-display-image update_region human-monitor-command query_vcpu_reg
query_mem_gpa netdev_replace netlink_set system_reset system_powerdown trace-get-state
trace-set-state set-viomem get-viomem
"""
# Sections of the page, and what is to be found there.
PARTS = {
    "Command line": (*(f"-{name}" for name in OPTIONS.split()), *MEMBERS.split()),
    "Devices": DEVICES.split(),
    "JSON of 20.09 to 0.3": JSON.split(),
    "QMP": REQUESTS.split(),
}


def sections() -> dict[str, str]:
    page = (ROOT / "docs/stratovirt.md").read_text(encoding="utf-8")
    return dict(part.split("\n", 1) for part in page.split("\n## ")[1:])


def rows() -> list[list[str]]:
    """Return the cells of every row but the tables' heads."""
    lines = [line for text in sections().values() for line in text.splitlines()]
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines if line.startswith("| ")]
    return [
        row for row in cells if row[0] not in {"option", "device", "section", "command", "client"}
    ]


@pytest.mark.parametrize("part", PARTS)
def test_all_of_it_is_there(part: str) -> None:
    """Members of options and of devices may stand in either's row."""
    text = sections()[part]
    if part == "Command line":
        text += sections()["Devices"]
    missing = [
        name
        for name in PARTS[part]
        if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)
    ]
    assert missing == []


def test_each_row_says_how_it_is() -> None:
    found = [row for row in rows() if not any(state in " ".join(row[1:]) for state in STATES)]
    assert [row for row in found if row[-1] != "the same"] == []


def test_what_differs_or_is_left_out_says_why() -> None:
    for row in rows():
        for state in ("differs", "left out"):
            _, found, why = " ".join(row[1:]).partition(state)
            assert not found or why.startswith(":"), row


def taken() -> Iterator[str]:
    """Yield the options that are understood, if with no value or another they need not be right."""
    for name in OPTIONS.split():
        try:
            parse([f"-{name}"])
        except PyvirtError as error:
            if str(error).startswith(f"-{name}: no such option"):
                continue
        yield name


def test_what_it_takes_is_taken() -> None:
    elsewhere = {"fsdev", "V"}  # left out; a word of the command itself (test_main.py)
    assert [name for name in OPTIONS.split() if name not in elsewhere | set(taken())] == []
    left_out = {
        name for row in rows() if "differs" in row[1] or "left out" in row[1]
        for name in re.findall(r"`([\w-]+)`", row[0])
    }  # fmt: skip
    assert [name for name in REQUESTS.split() if name not in {*BY_NAME, *left_out}] == []
