"""Disk images: blockdev-add and blockdev-del (vmm/hotplug.py has the rules)."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from ...devices.disk import InUseError
from ...errors import PyvirtError, QmpError
from ...vmm.hotplug import BLOCK
from ..host import DiskRequest
from ..schema import (
    Arguments,
    Boolean,
    Choice,
    Command,
    Departure,
    Field,
    FileName,
    Integer,
    Only,
    Scalar,
    Struct,
    Text,
)

if TYPE_CHECKING:
    from ...vmm.hotplug import Resource
    from ..session import Session

# StratoVirt's sentence.
_IN_USE = (
    "Failed to add drive {}, file can only be shared with read_only. "
    "Is it used more than once or another process using the same file?"
)
# What the command line's words are here.
_MEMBERS = {
    "readonly=on": "`read-only` true",
    "overlay=memory": "`overlay` memory",
    "format=raw": "`driver` raw",
}
_ENGINES = {"io_uring": "io_uring", "native": "io_uring", "threads": "threads", "off": "threads"}


def _check_file(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise QmpError(
            f"Failed to get metadata of file {path}: {error.strerror} (os error {error.errno})"
        ) from None
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise QmpError(f"{path} is not a regular file or block device.")


def _blockdev_add(session: Session, given: Arguments) -> object:
    host = session.monitor.host
    path = given.file.filename
    file = given.file
    discard = given.discard or file.discard
    detect_zeroes = given.detect_zeroes or file.detect_zeroes or "off"
    cache = given.cache or file.cache
    if detect_zeroes == "unmap" and discard != "unmap":
        raise QmpError("`detect-zeroes` unmap goes with `discard` unmap; give both")
    engine = given.aio or file.aio
    request = DiskRequest(
        given.node_name,
        path,
        readonly=given.read_only or file.read_only,
        # What true asks for is had where it can be, as without it.
        direct=False if cache and not cache.direct else None,
        engine=_ENGINES[engine] if engine else "auto",
        iops=given.throttling_iops_total,
        unmap=discard == "unmap",
        detect_zeroes=detect_zeroes,
        raw=given.driver == "raw",
        overlay=file.overlay or "",
    )
    if request.overlay and request.readonly:
        raise QmpError("`overlay`: nothing is written with `read-only` true; leave one of them out")

    def open_it() -> Resource:
        _check_file(path)
        try:
            return host.open_disk(request)
        except QmpError:
            raise
        except InUseError:
            raise QmpError(_IN_USE.format(path)) from None
        except PyvirtError as error:
            # The command line's words for the file and its members are of no use here.
            reason = str(error).partition(f"{path}")[2].partition(": ")[2] or str(error)
            for word, ours in _MEMBERS.items():
                reason = reason.replace(word, ours)
            raise QmpError(f"Failed to add drive {path}: {reason}") from None

    host.inventory.add(BLOCK, given.node_name, open_it)
    return {}


def _blockdev_del(session: Session, given: Arguments) -> object:
    session.monitor.host.inventory.remove(BLOCK, given.node_name)
    return {}


_AIO = Choice(*_ENGINES, empty=True)
_DISCARD = Choice("ignore", "unmap")
_DETECTION = Choice("off", "on", "unmap")
_CACHE = Struct(
    Field(
        "direct",
        Boolean(),
        "past the host's page cache, where the file system can: query-block says whether it is so",
        optional=True,
        default=True,
    ),
    Field("no-flush", Boolean(), "has no effect: flushes flush", optional=True),
)
# What QEMU has for each of its nodes, of which a disk has two there.
_NODE = (
    Field("auto-read-only", Boolean(), "has no effect: `read-only` decides", optional=True),
    Field(
        "force-share",
        Only("who writes an image has it alone; give `read-only` true to all", False),
        "others may read, and only read, what is read-only here",
        optional=True,
    ),
)
_IMAGE = Struct(
    Field("driver", Choice("file", "host_device"), "a file, or a block device: either for both"),
    Field("filename", FileName(), "its name on the host"),
    Field("aio", _AIO, "as `aio` below", optional=True),
    Field("discard", _DISCARD, "as `discard` below", optional=True),
    Field(
        "locking",
        Only("images are locked; give `auto`", "on", "auto"),
        "the image is locked where the file system has locks",
        optional=True,
    ),
    Field("pr-manager", Only("there is no SCSI"), "SCSI's reservations", optional=True),
    Field("read-only", Boolean(), "as `read-only` below", optional=True, default=False),
    Field("detect-zeroes", _DETECTION, "as `detect-zeroes` below", optional=True),
    Field("cache", _CACHE, "as `cache` below", optional=True),
    Field(
        "overlay",
        FileName(),
        "`memory`, or a folder: there goes what the guest writes, until the disk is unplugged, and "
        "the image is only read; an addition to QEMU's",
        optional=True,
    ),
    Field("node-name", Text(), "has no effect: only disks have names", optional=True),
    *_NODE,
    Field("aio-max-batch", Scalar(), "has no effect: what is there is one batch", optional=True),
    Field("drop-cache", Boolean(), "has no effect: there is no migration", optional=True),
    Field("x-check-cache-dropped", Boolean(), "has no effect: as that", optional=True),
)

COMMANDS = (
    Command(
        "blockdev-add",
        "Opens and locks a disk image for a device_add of the same id. The image is raw; one "
        "that begins like an image of another format is refused unless `driver` insists. An image "
        "that this or another machine has open, as that of the root file system, is refused unless "
        "both only read.",
        _blockdev_add,
        Struct(
            Field("node-name", Text(), "the backend's name, and the id of its device"),
            Field("file", _IMAGE, "the image"),
            Field(
                "cache",
                _CACHE,
                "without it that of `file`",
                optional=True,
            ),
            Field(
                "read-only", Boolean(), "whether the guest only reads", optional=True, default=False
            ),
            Field(
                "driver",
                Choice("raw"),
                "the format; insists on it whatever the image looks like",
                optional=True,
            ),
            Field("aio", _AIO, "how requests are made; io_uring where it works", optional=True),
            Field(
                "discard",
                _DISCARD,
                "whether discarded sectors give their room back; without it that of `file`, or "
                "ignore",
                optional=True,
            ),
            Field(
                "detect-zeroes",
                _DETECTION,
                "whether written zeroes become zeroed ranges; without it that of `file`, or off",
                optional=True,
            ),
            Field(
                "throttling.iops-total",
                Integer(0, 1_000_000),
                "the most requests a second, 0 for no limit",
                optional=True,
                default=0,
            ),
            *_NODE,
            Field("offset", Only("an image is a disk as a whole"), "a part of it", optional=True),
            Field("size", Only("an image is a disk as a whole"), "a part of it", optional=True),
        ),
        departures=(
            Departure("arguments.node-name", "always needed: device_add has no other name for it"),
            Departure("arguments.driver", "only `raw`: other formats are not read"),
            Departure("arguments.file", "never the name of a node: a disk is added as a whole"),
            Departure("arguments.file.driver", "only `file` and `host_device`"),
        ),
        example=(
            (
                '{"node-name": "drive-0", "file": {"driver": "file", "filename": "/path/to/block"},'
                ' "cache": {"direct": true}, "read-only": false}'
            ),
            "{}",
        ),
    ),
    Command(
        "blockdev-del",
        "Closes an image that no device has. device_del does it for one that a device has; after "
        "that it is accepted once, and does nothing.",
        _blockdev_del,
        Struct(Field("node-name", Text(), "the backend's name")),
        example=('{"node-name": "drive-0"}', "{}"),
    ),
)
