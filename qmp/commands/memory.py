"""Guest memory, read into an answer or saved to files; the guest stands still meanwhile."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from ...errors import QmpError
from ..schema import Arguments, Boolean, Command, Field, FileName, Integer, Only, Struct

if TYPE_CHECKING:
    from ..host import Host
    from ..session import Session

_ADDRESS = Integer(0, (1 << 64) - 1)
_READ_MAX = 64 << 10  # bytes in one answer
_FILE = "file:"


def _vcpu(host: Host, index: int) -> int:
    count = len(host.vcpu_threads())
    if index >= count:
        raise QmpError(f"`cpu-index` {index}: the machine has {count} vCPUs, counted from 0")
    return index


def _absent(given: Arguments, error: IndexError) -> QmpError:
    return QmpError(f"`val` {given.val:#x} and `size` {given.size}: {error}")


def _read(session: Session, given: Arguments) -> object:
    host = session.monitor.host
    vcpu = _vcpu(host, given.cpu_index)
    try:
        data = host.inspect_memory(given.val, given.size, vcpu if given.virtual else None)
    except IndexError as error:
        raise _absent(given, error) from None
    return {"data": base64.b64encode(data).decode()}


def _save(session: Session, given: Arguments, vcpu: int | None) -> object:
    try:
        session.monitor.host.save_memory(given.filename, given.val, given.size, vcpu)
    except IndexError as error:
        raise _absent(given, error) from None
    return {}


def _save_virtual(session: Session, given: Arguments) -> object:
    return _save(session, given, _vcpu(session.monitor.host, given.cpu_index))


def _save_physical(session: Session, given: Arguments) -> object:
    return _save(session, given, None)


def _dump(session: Session, given: Arguments) -> object:
    path = given.protocol.removeprefix(_FILE)
    if path == given.protocol or not path:
        raise QmpError(f"`protocol` {given.protocol} is not known; give {_FILE}PATH")
    session.monitor.host.save_core(path)
    return {}


def _capability(_: Session, __: Arguments) -> object:
    return {"formats": ["elf"]}


_WHOLE = "all of the memory is saved; pmemsave takes a part"
_VCPU = Field("cpu-index", Integer(0, 253), "whose page tables", optional=True, default=0)
_SIZE = Field("size", Integer(1, (1 << 63) - 1), "how many bytes")
_TARGET = Field("filename", FileName(), "a file of the host, which is replaced")

COMMANDS = (
    Command(
        "x-read-memory",
        "Returns guest memory in base64.",
        _read,
        Struct(
            Field("val", _ADDRESS, "the address"),
            Field("size", Integer(1, _READ_MAX), "how many bytes"),
            Field(
                "virtual",
                Boolean(),
                "whether the address is virtual, not guest-physical",
                optional=True,
                default=False,
            ),
            _VCPU,
        ),
        since="pyvirt",
        example=('{"val": 1048576, "size": 4}', '{"data": "f0VMRg=="}'),
    ),
    Command(
        "memsave",
        "Saves guest memory by virtual address. Pages of zeroes are holes in the file, here as in "
        "the commands below.",
        _save_virtual,
        Struct(Field("val", _ADDRESS, "the virtual address"), _SIZE, _TARGET, _VCPU),
        since="pyvirt",
        example=('{"val": 10, "size": 100, "filename": "/tmp/virtual"}', "{}"),
    ),
    Command(
        "pmemsave",
        "Saves guest memory by guest-physical address.",
        _save_physical,
        Struct(Field("val", _ADDRESS, "the guest-physical address"), _SIZE, _TARGET),
        since="pyvirt",
        example=('{"val": 10, "size": 100, "filename": "/tmp/physical"}', "{}"),
    ),
    Command(
        "dump-guest-memory",
        "Saves all of the guest's memory, and the registers of its vCPUs, as an ELF core.",
        _dump,
        Struct(
            Field(
                "paging",
                Only("readers walk the page tables; give false", False),
                "memory is by guest-physical address",
            ),
            Field("protocol", FileName(), f"`{_FILE}` and the file, which is replaced"),
            Field("format", Only("give `elf`", "elf"), "the file's format", optional=True),
            Field(
                "detach",
                Only("the answer comes when the file is there", False),
                "whether to answer before",
                optional=True,
            ),
            Field("begin", Only(_WHOLE), "the first address", optional=True),
            Field("length", Only(_WHOLE), "how many bytes from there", optional=True),
        ),
        since="pyvirt",
        example=('{"paging": false, "protocol": "file:/tmp/core"}', "{}"),
    ),
    Command(
        "query-dump-guest-memory-capability",
        "Returns the formats that dump-guest-memory knows.",
        _capability,
        since="pyvirt",
        example=("", '{"formats": ["elf"]}'),
    ),
)
