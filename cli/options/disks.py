"""The options that describe disks: `-drive` with `-device`, or both in one: `-disk`.

Imported only when one of them is given.
"""

from __future__ import annotations

import os

from ...devices.virtio import block
from ...errors import ConfigError
from . import members
from .members import one_of, pairs
from .pairing import Pairing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ...devices.iothread import IoThread

_DRIVER = "virtio-blk-device"
# io_uring is the native one here; "off" is how others call plain system calls.
_ENGINES = {"io_uring": "io_uring", "native": "io_uring", "threads": "threads", "off": "threads"}


def _path(option: str, text: str) -> str:
    if not text:
        raise ConfigError(f"{option}: an empty file name; name a disk image")
    return text


def _overlay(option: str, text: str) -> str:
    if not text:
        raise ConfigError(f"{option}: an empty name; give memory, or a folder")
    return text


def _engine(option: str, text: str) -> str:
    return _ENGINES[one_of(option, text, tuple(_ENGINES))]


def _unmap(option: str, text: str) -> bool:
    return one_of(option, text, ("ignore", "unmap", "off", "on")) in {"unmap", "on"}


def _detection(option: str, text: str) -> str:
    return one_of(option, text, block.ZERO_DETECTION)


def _serial(option: str, text: str) -> str:
    size = len(os.fsencode(text))
    if size > block.SERIAL_BYTES:
        raise ConfigError(f"{option} {text}: {size} bytes, {block.SERIAL_BYTES} is the most")
    return text


def _raw(option: str, text: str) -> bool:
    if text != "raw":
        raise ConfigError(
            f"{option} {text}: the only format is raw; convert it: qemu-img convert -O raw"
        )
    return True


def _block_size(most: int) -> Callable[[str, str], int]:
    sizes = tuple(str(1 << n) for n in range(9, most.bit_length()))

    def reader(option: str, text: str) -> int:
        return int(one_of(option, text, sizes))

    return reader


_OF_IMAGE: tuple[members.Member, ...] = (
    ("id", "id", members.name),
    ("file", "path", _path),
    ("readonly", "readonly", members.switch),
    ("direct", "direct", members.switch),
    ("aio", "engine", _engine),
    ("throttling.iops-total", "iops", members.number(0, block.IOPS_MAX)),
    ("discard", "unmap", _unmap),
    ("detect-zeroes", "detect_zeroes", _detection),
    ("format", "raw", _raw),
    ("serial", "serial", _serial),
    ("overlay", "overlay", _overlay),
)
_OF_DEVICE: tuple[members.Member, ...] = (
    ("serial", "serial", _serial),
    ("num-queues", "queues", members.number(1, block.QUEUES_MAX)),
    ("queue-size", "queue_size", members.queue_size(block.QUEUE_SIZE_MIN, block.QUEUE_SIZE_MAX)),
    ("iothread", "iothread", members.name),
    ("logical_block_size", "logical_block", _block_size(block.LOGICAL_MAX)),
    ("physical_block_size", "physical_block", _block_size(block.PHYSICAL_MAX)),
)
_DRIVE = (*_OF_IMAGE, ("if", "if", members.only("none")))
_DEVICE = (("drive", "drive", members.name), ("id", "device", members.name), *_OF_DEVICE)
_DISK = (*_OF_IMAGE, *_OF_DEVICE[1:])


class Drives:
    """What the options say so far, in their order."""

    __slots__ = ("_iothreads", "_pairing")

    def __init__(self, iothreads: Iterable[IoThread]) -> None:
        """`iothreads` are those that a disk may name."""
        self._pairing = Pairing("drive", "disk")
        self._iothreads = {thread.id: thread for thread in iothreads}

    def add(self, option: str, text: str) -> None:
        """Take the value of one option: `drive`, `device` or `disk`."""
        if option == "drive":
            self._add_drive(text)
        elif option == "device":
            self._add_device(text)
        else:
            self._add_disk(text)

    def _add_drive(self, text: str) -> None:
        fields = members.read("-drive", pairs("-drive", text, ""), _DRIVE)
        for name, field in (("id", "id"), ("file", "path")):
            if field not in fields:
                raise ConfigError(f"-drive {text}: has no {name}; give id=NAME,file=FILE")
        fields["option"] = f"-drive file={fields['path']}"
        _check("-drive", fields)
        self._pairing.add_backend(fields)

    def _add_disk(self, text: str) -> None:
        fields = members.read("-disk", pairs("-disk", text, "file"), _DISK)
        if "path" not in fields:
            raise ConfigError(f"-disk {text}: names no file; give -disk FILE[,option=value]")
        fields["option"] = f"-disk {fields['path']}"
        _check("-disk", fields)
        self._pairing.add_whole("-disk", fields)

    def _add_device(self, text: str) -> None:
        rest = text.partition(",")[2]
        fields = members.read("-device", pairs("-device", rest, "") if rest else [], _DEVICE)
        self._pairing.add_device(text, fields)

    def disks(self) -> tuple[block.BlockConfig, ...]:
        """Return the disks in the order of their options; ConfigError when they do not match.

        A drive that no device names is a disk by itself, in its own place.
        """
        disks = tuple(self._disk(*sides) for sides in self._pairing.devices())
        _check_engines(disks)
        return disks

    def _disk(self, given: dict[str, Any], drive: dict[str, Any]) -> block.BlockConfig:
        fields = drive | given
        if given.get("serial") and drive.get("serial"):
            raise ConfigError(
                f"-device drive={given['drive']}: the serial is given with the -drive too; "
                "give it once"
            )
        if "if" in given:
            raise ConfigError(
                f"-drive id={given['id']}: no -device names it; "
                f"add -device {_DRIVER},drive={given['id']}, or leave if=none out"
            )
        name = fields.get("iothread")
        if name is not None:
            option = "-device" if "drive" in given else "-disk"
            if name not in self._iothreads:
                raise ConfigError(
                    f"{option} iothread={name}: there is no such thread; "
                    f"add -object iothread,id={name}"
                )
            fields = fields | {"iothread": self._iothreads[name]}
        logical, physical = fields.get("logical_block", 0), fields.get("physical_block", 0)
        if physical and physical < logical:
            option = "-device" if "drive" in given else "-disk"
            raise ConfigError(
                f"{option} physical_block_size={physical}: smaller than "
                f"logical_block_size={logical}; give that much at least"
            )
        return block.BlockConfig(
            **{k: v for k, v in fields.items() if k not in {"drive", "device", "if"}}
        )


def _check(option: str, fields: dict[str, Any]) -> None:
    if fields.get("detect_zeroes") == "unmap" and not fields.get("unmap"):
        where = f"{option} id={fields['id']}" if "id" in fields else fields["option"]
        raise ConfigError(f"{where}: detect-zeroes=unmap goes with discard=unmap; give both")
    if fields.get("overlay") and fields.get("readonly"):
        raise ConfigError(
            f"{fields['option']},overlay={fields['overlay']}: nothing is written to a disk with "
            "readonly=on; leave one of them out"
        )


def _check_engines(disks: tuple[block.BlockConfig, ...]) -> None:
    """Refuse a thread whose disks differ in how they do their I/O: it waits in one way only."""
    plain: dict[IoThread, bool] = {}
    for disk in disks:
        threads = disk.engine == "threads"
        if disk.iothread and plain.setdefault(disk.iothread, threads) != threads:
            raise ConfigError(
                f"iothread={disk.iothread.id}: not for aio=threads and io_uring at once; "
                "give its disks the same aio"
            )
