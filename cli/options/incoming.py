"""The option that restores a guest from a snapshot: `-incoming`."""

from __future__ import annotations

from ...errors import ConfigError
from ...vmm.config import DEMAND, PREPARED
from ...vmm.memory import MIB
from ...vmm.snapshot import shape as shapes
from ...vmm.snapshot.restore import Incoming, open_folder
from .members import file_name, pairs, switch
from .parsed import IncomingConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...vmm.numa import Numa
    from .parsed import Options

_FILE = "file:"


def read(text: str) -> IncomingConfig:
    """Read the option's value; ConfigError."""
    given = dict(pairs("-incoming", text, "uri"))
    uri = given.pop("uri", "")
    if not uri.startswith(_FILE):
        raise ConfigError(
            f"-incoming {text}: a guest comes from a folder only; give file:DIR[,mapped=on|off]"
        )
    mapped = given.pop("mapped", None)
    for key in given:
        raise ConfigError(f"-incoming {key}: not understood here; accepted is mapped")
    path = file_name("-incoming file:", uri.removeprefix(_FILE))
    return IncomingConfig(
        path, mapped=None if mapped is None else switch("-incoming mapped", mapped)
    )


def open_snapshot(options: Options) -> Incoming:
    """Open what is named, and let the machine have its shape, where `options` say nothing else.

    StateError, ConfigError.
    """
    config = options.incoming
    assert config is not None
    can_map = _can_map(options)
    if config.mapped and not can_map:
        raise ConfigError(
            "-incoming mapped=on: not with memory that others see or that has a place of its own "
            "(-machine mem-share, memory-backend, -mem-path, vhost-user); give mapped=off"
        )
    is_mapped = can_map if config.mapped is None else config.mapped
    incoming = open_folder(config.path, mapped=is_mapped)
    try:
        _take_layers(options, incoming, "-incoming")
        _take_shape(options, incoming)
    except BaseException:
        incoming.close()
        raise
    if is_mapped:
        options.content = incoming
    return incoming


def _can_map(options: Options) -> bool:
    is_shared = options.share or any(
        getattr(one, "needs_shared_memory", False) for one in options.devices
    )
    return not is_shared and not options.memdevs


def take_template(options: Options, incoming: Incoming) -> None:
    """Let a fork have the shape of its template, and its memory; ConfigError."""
    if options.incoming is not None:
        raise ConfigError("-incoming: a fork goes on from where its template stands; leave it out")
    if not _can_map(options):
        raise ConfigError(
            "fork: its memory is a private mapping of the template's, which cannot be shared or "
            "have a place of its own; leave -machine mem-share, memory-backend, -mem-path and "
            "vhost-user devices out, or restore from a folder"
        )
    if options.daemonize:
        raise ConfigError(
            "-daemonize: a fork ends with the command that it belongs to; leave it out, and put "
            "that command into the background"
        )
    if options.accel == "lab":
        raise ConfigError("-accel lab: a fork runs where its template is; leave it out")
    _take_layers(options, incoming, "fork")
    _take_shape(options, incoming)
    options.content = incoming


def _take_layers(options: Options, incoming: Incoming, option: str) -> None:
    """Let disks begin with what the guest has written to their overlays; ConfigError."""
    for slot, layers in incoming.layers.items():
        if slot >= len(options.disks):
            raise ConfigError(
                f"{option}: {incoming.name} has a disk with an overlay in slot {slot}; give the "
                "same by -disk or -drive, with overlay=memory or overlay=FOLDER"
            )
        disk = options.disks[slot]
        if not disk.overlay:
            raise ConfigError(
                f"{disk.option}: the disk of {incoming.name} has an overlay, and this one none; "
                "give overlay=memory or overlay=FOLDER"
            )
        disk.layers = layers


def _take_shape(options: Options, incoming: Incoming) -> None:
    shape, given = incoming.shape, {name for name, _ in options.given}
    where = incoming.name
    if options.memory != shape.memory and ("m" in given or options.memory_backend):
        raise ConfigError(
            f"-m {options.memory // MIB}M: {where} has {shape.memory // MIB} MiB; give that, or "
            "leave it out"
        )
    if "smp" in given and options.smp != shape.topology.vcpus:
        raise ConfigError(
            f"-smp {options.smp}: {where} has {shape.topology.vcpus} vCPUs; give that, or leave it "
            "out"
        )
    if shape.pit and not options.pit:
        raise ConfigError(f"-machine pit=off: {where} has one; leave pit=off out")
    if shape.knows_numa:
        _take_nodes(options, shape.numa, where, is_given="numa" in given)
    options.memory = shape.memory
    options.smp, options.topology, options.pit = shape.topology.vcpus, shape.topology, shape.pit
    if options.slots == DEMAND and shape.places is None:
        raise ConfigError(f"-machine slots=demand: {where} has prepared ones; leave it out")
    options.slots = PREPARED if shape.places is None else DEMAND
    options.places = shape.places or ()
    options.hotplug = shape.hotplug
    options.discovery = "acpi" if shape.acpi else "cmdline"


def _take_nodes(options: Options, numa: Numa | None, where: str, *, is_given: bool) -> None:
    """Let the machine have the nodes that its guest knows of; they may be given again."""
    if is_given and shapes.numa_fields(options.numa) != shapes.numa_fields(numa):
        has = f"{len(numa.nodes)} nodes, not like these" if numa is not None else "no nodes"
        raise ConfigError(f"-numa: {where} has {has}; give the same, or leave -numa out")
    options.numa = numa
