"""Plugging a disk or NIC where slots come on demand: the device is made of what is behind it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from ..devices import mac
from ..devices.disk import SECTOR
from ..devices.virtio.block import Block, Image
from ..devices.virtio.net import Net, NetConfig
from ..errors import ConfigError, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from ..devices.virtio.device import Device as VirtioDevice
    from ..devices.virtio.device import DeviceConfig, Pluggable
    from ..vmm.hotplug import Device
    from ..vmm.machine import Machine
    from ..vmm.steps import Steps


def plug(machine: Machine, kind: str, device: Device, options: Mapping[str, Any]) -> Steps[None]:
    """Give the guest a device; PyvirtError, and nothing has changed.

    `options` are what `Pluggable.attach` takes beside the backend.
    """
    assert machine.demand is not None
    backend: Any = device.backend.resource
    if machine.demand.refill(
        kind,
        device.slot,
        lambda empty: empty.attach(backend, **options),
    ):
        return
    before = backend.config if isinstance(backend, Image) else None
    try:
        made, prepare = (_disk if kind == Block.KIND else _nic)(machine, device, backend, options)
        try:
            yield from machine.demand.plug(made, kind, device.slot, prepare)
        except BaseException:
            made.detach()
            made.close()
            raise
    except BaseException:
        if before is not None:
            backend.config = before
        raise


def check_other(machine: Machine, config: DeviceConfig) -> None:
    """Refuse a device, neither disk nor NIC, that this machine cannot have."""
    if getattr(config, "needs_shared_memory", False) and not machine.config.share:
        raise QmpError(
            f"Device {config.id}: guest memory is this process's alone, and a back end has to see "
            "it; start the machine with -machine mem-share=on"
        )


def plug_other(machine: Machine, device: VirtioDevice) -> Steps[None]:
    """Give the guest such a device; PyvirtError, and it is closed."""
    assert machine.demand is not None
    try:
        yield from machine.demand.plug(device)
    except BaseException:
        device.close()
        raise


def _nothing() -> None:
    """Nothing is to be done when the slot is there."""


def _disk(
    _machine: Machine, device: Device, backend: Any, options: Mapping[str, Any]
) -> tuple[Pluggable, Callable[[], None]]:
    if not isinstance(backend, Image):
        disk = Block(None, device.slot)
        return disk, lambda: disk.attach(backend)
    config = copy.copy(backend.config)
    for name, value in device.shape.items():
        setattr(config, name, value)
    config.serial = options["serial"] or config.serial
    config.iothread = options["iothread"] or config.iothread
    _check_blocks(device.id, backend, config.logical_block, config.physical_block)
    backend.config = config
    return Block(config, opened=backend), _nothing


def _check_blocks(name: str, image: Image, logical: int, physical: int) -> None:
    if image.disk.sectors * SECTOR % logical:
        raise ConfigError(
            f"Device {name}: `logical_block_size` {logical}: the image's size is no multiple of "
            f"it; run: truncate -s %{logical} {image.config.path}"
        )
    if physical and physical < logical:
        raise ConfigError(
            f"Device {name}: `physical_block_size` {physical} is less than `logical_block_size` "
            f"{logical}; give that much at least"
        )


def _nic(
    machine: Machine, device: Device, backend: Any, options: Mapping[str, Any]
) -> tuple[Pluggable, Callable[[], None]]:
    is_lent = backend.kind == "lent"
    name = "" if is_lent else getattr(backend, "name", "")
    config = NetConfig(
        device.id,
        options["mac"] or mac.made(machine.config.name, device.id, name),
        queue_pairs=1 if is_lent else len(backend.fds),
        iothread=options["iothread"],
        **device.shape,
    )
    if not is_lent:
        return Net(config, backend), _nothing
    nic = Net(config)
    return nic, lambda: nic.attach(backend, id=device.id)
