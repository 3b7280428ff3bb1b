"""Command lines of other monitors, by fakes that say what they were told; who is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyvirt.benches import peers
from pyvirt.benches.part import Turn
from pyvirt.benches.parts import boot
from pyvirt.benches.peers import peer as peer_module
from pyvirt.benches.peers.peer import BZIMAGE, ELF, AbsentError, Disk, Guest, Launch, Peer
from pyvirt.benches.peers.run import guest_lines, lines

GUEST = Guest(
    {BZIMAGE: "/k/bzImage", ELF: "/k/vmlinux"},
    "/initrd",
    512,
    (Disk("/root.img", readonly=True, direct=False), Disk("/dev/nullb0")),
    "tap0",
    append="quiet",
)
OTHERS = [one for one in peers.ALL if one.name not in {peers.PYVIRT, peers.QEMU}]
VARIABLES = {
    "kvmtool": "PYVIRT_BENCH_KVMTOOL",
    "Firecracker": "PYVIRT_BENCH_FIRECRACKER",
    "StratoVirt": "PYVIRT_BENCH_STRATOVIRT",
    "Cloud Hypervisor": "PYVIRT_BENCH_CLOUD_HYPERVISOR",
}
WORDS = {
    "kvmtool": (
        "run --nodefaults --console serial --cpus 1 --mem 512 --kernel /k/bzImage "
        "--initrd /initrd --params quiet_noapic_noacpi --disk /root.img,ro "
        "--disk /dev/nullb0,direct --network mode=tap,tapif=tap0,script=none"
    ),
    "Firecracker": "--no-api --config-file FOLDER/firecracker.json",
    "StratoVirt": (
        "-machine microvm -smp 1 -m 512m -kernel /k/bzImage -initrd /initrd "
        "-append quiet_reboot=t -serial stdio "
        "-drive id=disk0,file=/root.img,readonly=on,direct=off,aio=off "
        "-device virtio-blk-device,drive=disk0,id=disk0 "
        "-drive id=disk1,file=/dev/nullb0,readonly=off,direct=on,aio=io_uring "
        "-device virtio-blk-device,drive=disk1,id=disk1 "
        "-netdev tap,id=net,ifname=tap0 -device virtio-net-device,netdev=net,id=net"
    ),
    "Cloud Hypervisor": (
        "--cpus boot=1 --memory size=512M --kernel /k/vmlinux --initramfs /initrd "
        "--cmdline quiet_last=poweroff --serial tty --console off "
        "--disk path=/root.img,readonly=on,direct=off path=/dev/nullb0,readonly=off,direct=on "
        "--net tap=tap0"
    ),
}


def fake(folder: Path, script: str) -> str:
    program = folder / "fake"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    return str(program)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("one", OTHERS, ids=lambda one: one.name)
def test_a_peer_is_told_all_of_the_guest(
    one: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A space within a word is shown as _."""
    say = 'for word; do echo "$word" | tr " " _; done'
    monkeypatch.setenv(VARIABLES[one.name], fake(tmp_path, say))
    kernel = GUEST.image[one.formats[0]]
    said = " ".join(lines(one.launch(GUEST, kernel, tmp_path), 10))
    assert said.replace(str(tmp_path), "FOLDER") == WORDS[one.name]


def test_firecracker_reads_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVIRT_BENCH_FIRECRACKER", fake(tmp_path, 'cat "$3"'))
    (one,) = (one for one in OTHERS if one.name == "Firecracker")
    config = json.loads("".join(guest_lines(one, GUEST, 10)))
    assert config["boot-source"] == {
        "kernel_image_path": "/k/vmlinux",
        "initrd_path": "/initrd",
        "boot_args": "quiet reboot=k pci=off",
    }
    assert config["machine-config"] == {"vcpu_count": 1, "mem_size_mib": 512}
    root, disk = config["drives"]
    assert (root["path_on_host"], root["is_read_only"], root["io_engine"]) == (
        "/root.img",
        True,
        "Sync",
    )
    assert (disk["path_on_host"], disk["is_read_only"], disk["io_engine"]) == (
        "/dev/nullb0",
        False,
        "Async",
    )
    assert not any(drive["is_root_device"] for drive in config["drives"])
    assert config["network-interfaces"] == [{"iface_id": "net", "host_dev_name": "tap0"}]


def test_stratovirt_has_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVIRT_BENCH_STRATOVIRT", fake(tmp_path, "tty -s && echo terminal"))
    (one,) = (one for one in OTHERS if one.name == "StratoVirt")
    assert list(guest_lines(one, GUEST, 10)) == ["terminal"]


def test_no_other_has_one(tmp_path: Path) -> None:
    assert list(lines(Launch([fake(tmp_path, "tty -s || echo none")]), 10)) == ["none"]


def test_a_guest_that_does_not_end_is_ended(tmp_path: Path) -> None:
    assert list(lines(Launch([fake(tmp_path, "echo begun; exec sleep 600")]), 0.2)) == ["begun"]


def test_who_is_not_named_takes_no_part() -> None:
    turn = Turn(0)
    assert {one.name for one in peers.present(turn)} <= {peers.PYVIRT, peers.QEMU}
    assert "kvmtool" not in turn.absent


def test_who_is_named_and_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVIRT_BENCH_KVMTOOL", "/nowhere/lkvm")
    turn = Turn(0)
    assert "kvmtool" not in {one.name for one in peers.present(turn)}
    assert turn.absent["kvmtool"] == "PYVIRT_BENCH_KVMTOOL=/nowhere/lkvm is no program"


def test_a_program_is_named_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVIRT_BENCH_CLOUD_HYPERVISOR", "/bin/true")
    assert peer_module.named("Cloud Hypervisor") == "/bin/true"
    monkeypatch.setenv("PYVIRT_BENCH_CLOUD_HYPERVISOR", "/etc/passwd")
    with pytest.raises(AbsentError):
        peer_module.named("Cloud Hypervisor")


def test_a_boot_is_the_better_format_s() -> None:
    def one(bzimage: float, elf: float) -> dict[str, list[float]]:
        return {
            "bzImage: whole process": [bzimage],
            "ELF: whole process": [elf],
            "bzImage: init's uptime": [0.1],
            "ELF: init's uptime": [0.2],
        }

    rounds = [{"a": one(2, 1), "b": one(1, 2)}, {"a": one(1, 1.5), "b": one(1, 2)}]
    rounds += [{"a": one(2, 1), "b": one(1, 2)}]
    found = boot.better(rounds)
    assert [each["a"]["whole process"] for each in found] == [[1], [1.5], [1]]
    assert [each["b"]["init's uptime"] for each in found] == [[0.1]] * 3


def test_a_peer_that_does_not_start_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Firecracker where there is no KVM_CAP_XCRS."""
    monkeypatch.setenv(
        "PYVIRT_BENCH_FIRECRACKER", fake(tmp_path, "echo Missing capability; exit 1")
    )
    (one,) = (one for one in OTHERS if one.name == "Firecracker")
    with pytest.raises(RuntimeError, match="Missing capability"):
        boot.boot(one, GUEST, ELF)
