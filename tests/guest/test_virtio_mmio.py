"""Linux's own virtio-mmio driver on a disk: found, used, unbound and bound, exits counted."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.serial import Serial
from pyvirt.devices.virtio.block import BlockConfig
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.native import ffi, lib
from pyvirt.vmm import layout
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.log import Log
from pyvirt.vmm.machine import Machine

from ..kvm.support import wait_readable

MIB = 1 << 20
PATTERN = bytes(range(256)) * (MIB // 256)
REQUESTS = 300
LIVES = 12
# Writes of registers from probing to DRIVER_OK, and a reset; Linux makes about 21.
CONTROL_WRITES_MAX = 40


@dataclass(frozen=True)
class Ran:
    """What a guest left: its console, the monitor's log, and what its disk cost."""

    console: str
    log: str
    mmio_exits: int
    reads: int
    writes: int
    interrupts: int
    requests: int


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(PATTERN * 2)
    return path


def run(micro: kernel.Kernel, disk: Path, script: str, *, queues: int = 1, **words: object) -> Ran:
    """Run a guest with one disk to its end, in this process, for its counters."""
    console, messages = disk.with_suffix(".console"), disk.with_suffix(".log")
    config = MachineConfig(
        str(micro.image),
        initrd=str(initramfs.build(micro, script=script)),
        cmdline="console=ttyS0 quiet panic=-1",
        disks=(BlockConfig("disk0", str(disk), queues=queues),),
        **words,  # type: ignore[arg-type]
    )
    log = Log()
    log.open(str(messages))
    machine = Machine(config, log, lambda _: None)
    try:
        machine.load()
        irq_fd = machine.interrupt_line(layout.COM1_IRQ).fd
        with Serial(ChardevConfig("serial0", "file", path=str(console)), irq_fd=irq_fd) as serial:
            serial.attach(machine.bus, layout.COM1)
            serial.start()
            machine.start()
            wait_readable(machine.ended_fd, "the guest's end")
            machine.stop()
            serial.flush(1000)
            assert machine.slots
            transport = machine.slots.transports[0]
            stats = ffi.new("struct pv_vcpu_stats *")
            exits = 0
            for vcpu in machine.vcpus:
                lib.pv_vcpu_read_stats(vcpu.handle, stats)
                exits += stats.exits[lib.KVM_EXIT_MMIO]
            counters = transport.device.stats()  # type: ignore[attr-defined]
            cost = (exits, transport.reads, transport.writes, transport.interrupts())
            machine.close()
    finally:
        machine.close()
        os.close(log.fd)
    return Ran(
        console.read_text(errors="replace").replace("\r\n", "\n"),
        messages.read_text(),
        *cost,
        counters.reads + counters.writes,
    )


@pytest.mark.parametrize("read_exits", [False, True])
def test_a_disk_is_found_and_its_requests_cost_no_exit(
    micro: kernel.Kernel, disk: Path, read_exits: bool
) -> None:
    script = f"""
        dd if=/dev/vda bs=1M count=1 2>/dev/null | sha256sum
        dd if=/dev/vda of=/dev/null bs=4k count={REQUESTS} iflag=direct 2>&1
        dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=256 oflag=direct 2>/dev/null
    """
    ran = run(micro, disk, script, read_exits=read_exits)
    assert f"{REQUESTS}+0 records in" in ran.console
    assert hashlib.sha256(PATTERN).hexdigest() in ran.console
    assert disk.read_bytes() == PATTERN + bytes(4096) + PATTERN[4096:]
    assert ran.log == ""
    assert ran.requests > REQUESTS
    assert ran.mmio_exits == ran.reads + ran.writes
    if read_exits:
        # The status is read and acknowledged for each interrupt that got through.
        assert REQUESTS < ran.reads <= ran.interrupts + CONTROL_WRITES_MAX
        assert REQUESTS < ran.writes <= ran.interrupts + CONTROL_WRITES_MAX
    else:
        assert ran.reads == 0
        assert ran.writes <= CONTROL_WRITES_MAX


def test_the_driver_lets_go_and_takes_hold_again_and_again(
    micro: kernel.Kernel, disk: Path
) -> None:
    """Of a disk that it has found by the command line."""
    script = f"""
        cd /sys/bus/virtio/drivers/virtio_blk
        for life in $(seq {LIVES}); do
            echo virtio0 >unbind && echo virtio0 >bind && [ -b /dev/vda ] || echo lost
        done
        dd if=/dev/vda of=/dev/null bs=4k iflag=direct 2>/dev/null &
        sleep 0.1
        echo virtio0 >unbind
        wait
        echo virtio0 >bind
        echo "reads: $(dd if=/dev/vda bs=4k count=10 iflag=direct 2>/dev/null | wc -c)"
        dmesg -l err,warn | grep -i "virt\\|vda"
    """
    ran = run(micro, disk, script, queues=2, vcpus=2, discovery="cmdline")
    assert "lost" not in ran.console
    assert "reads: 40960" in ran.console
    assert "vda" not in ran.console.replace("[vda]", "")
    assert ran.log == ""
    assert LIVES * 15 < ran.writes == ran.mmio_exits < (LIVES + 2) * CONTROL_WRITES_MAX
