"""What StratoVirt's first versions (20.09 to 0.3) took, in today's options.

That is their JSON file, whose sizes are in bytes, and options that have other names now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .entry import FIRST, Entry

if TYPE_CHECKING:
    from .entry import Source

MIB = 1 << 20
_BOOT, _MACHINE = "boot-source", "machine-config"


class Field(NamedTuple):
    """One member: the option's member that it is now, and the type of its value.

    `member` "" has no use any more.
    """

    member: str
    type: type


# Of the sections that are an option each: its name, its first word, what there has to be in one,
# and what there may be.
_SECTIONS: dict[str, tuple[str, str, tuple[str, ...], dict[str, Field]]] = {
    "drive": (
        "disk",
        "",
        ("drive_id", "path_on_host"),
        {
            "path_on_host": Field("file", str),
            "drive_id": Field("id", str),
            "read_only": Field("readonly", bool),
            "direct": Field("direct", bool),
            "serial_num": Field("serial", str),
            "iothread": Field("iothread", str),
            "iops": Field("throttling.iops-total", int),
        },
    ),
    "net": (
        "netdev",
        "",
        ("iface_id", "host_dev_name"),
        {
            "iface_id": Field("id", str),
            "host_dev_name": Field("netdev", str),
            "mac": Field("mac", str),
            "tap_fd": Field("fds", int),
            "vhost_type": Field("vhost", str),
            "vhost_fd": Field("vhostfds", int),
            "iothread": Field("iothread", str),
        },
    ),
    "console": (
        "chardev",
        "",
        ("console_id", "socket_path"),
        {"console_id": Field("id", str), "socket_path": Field("path", str)},
    ),
    "vsock": (
        "device",
        "vsock",
        ("guest_cid",),
        {
            "vsock_id": Field("id", str),
            "guest_cid": Field("guest-cid", int),
            "vhost_fd": Field("vhostfd", int),
        },
    ),
    "iothread": ("object", "iothread", ("id",), {"id": Field("id", str)}),
    "balloon": (
        "device",
        "virtio-balloon-device",
        (),
        {"deflate_on_oom": Field("deflate-on-oom", bool)},
    ),
    "rng": (
        "rng",
        "",
        ("random_file",),
        {"random_file": Field("random_file", str), "bytes_per_sec": Field("bytes_per_sec", int)},
    ),
    "serial": ("serial", "", (), {"stdio": Field("stdio", bool)}),
    _BOOT: (
        "",
        "",
        ("kernel_image_path",),
        {
            "kernel_image_path": Field("kernel", str),
            "boot_args": Field("append", str),
            "initrd_fs_path": Field("initrd", str),
        },
    ),
    _MACHINE: (
        "",
        "",
        (),
        {
            "name": Field("name", str),
            "vcpu_count": Field("smp", int),
            "mem_size": Field("m", int),
            "mem_path": Field("mem-path", str),
            "type": Field("type", str),
            "omit_vm_memory": Field("", bool),
            "dump_guest_core": Field("dump-guest-core", bool),
            "mem-share": Field("mem-share", bool),
            "mem_share": Field("mem-share", bool),
        },
    ),
}
_OF_MACHINE = ("type", "dump-guest-core", "mem-share")  # members of -machine
_WORDS = {str: "text", int: "a number", bool: "true or false"}


def is_one(content: dict[str, Any]) -> bool:
    """Say whether a file is StratoVirt's."""
    return _BOOT in content or _MACHINE in content


def entries(content: dict[str, Any], source: Source) -> list[Entry]:
    """Return the options that a file of StratoVirt's stands for; ConfigError."""
    found: list[Entry] = []
    for name, value in content.items():
        if name not in _SECTIONS:
            known = ", ".join(_SECTIONS)
            raise source.error(f"{name}: not understood; there are {known}", name)
        values = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, one in values:
            way = (name,) if index is None else (name, index)
            found += _section(name, _members(name, one, source, way), source, way)
    return found


def _members(
    name: str, given: Any, source: Source, way: tuple[str | int, ...]
) -> dict[str, tuple[str, Any]]:
    """Return by today's names what stands for each member, and its value."""
    _, _, needed, known = _SECTIONS[name]
    if not isinstance(given, dict):
        raise source.error(f"{name}: not an object; give one", *way)
    for key in needed:
        if key not in given:
            raise source.error(f"{name}: has no {key}; give it", *way)
    found = {}
    for key, value in given.items():
        if key not in known:
            accepted = ", ".join(known)
            raise source.error(f"{key}: not understood here; accepted are {accepted}", *way, key)
        if type(value) is not known[key].type:
            raise source.error(f"{key}: not {_WORDS[known[key].type]}; give that", *way, key)
        found[known[key].member] = (key, value)
    found.pop("", None)
    return found


def _section(
    name: str, members: dict[str, tuple[str, Any]], source: Source, way: tuple[str | int, ...]
) -> list[Entry]:
    option, first, _, _ = _SECTIONS[name]
    if not option:
        return _whole(members, source, way)
    if option == "serial":
        wanted = members.get("stdio", ("", False))[1]
        return [Entry("serial", "stdio" if wanted else "none", source.places(*way))]
    words = {key: _word(key, value) for key, (_, value) in members.items()}
    places = {key: source.place(*way, old) for key, (old, _) in members.items()}
    if option in FIRST and first:
        words = {FIRST[option]: first} | words
    return [Entry(option, words, places | {"": source.place(*way)})]


def _whole(
    members: dict[str, tuple[str, Any]], source: Source, way: tuple[str | int, ...]
) -> list[Entry]:
    """Return the entries of a section whose members are options."""
    found, machine, places = [], {}, {"": source.place(*way)}
    for key, (old, value) in members.items():
        if key in _OF_MACHINE:
            machine[key] = _word(key, value)
            places[key] = source.place(*way, old)
            continue
        text = str(value)
        if key == "m":
            if value % MIB:
                raise source.error(f"{old}: {value} is not a multiple of 1 MiB", *way, old)
            text = f"{value // MIB}M"
        found.append(Entry(key, text, source.places(*way, old)))
    if machine:
        found.append(Entry("machine", machine, places))
    return found


def _word(key: str, value: Any) -> str:
    if key == "vhost":
        return "on" if value == "vhost-kernel" else str(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
