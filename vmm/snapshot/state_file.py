"""The file `state`: a line that says what it is, and the machine's fields as JSON.

    pyvirt-state FORMAT BYTES SHA256

FORMAT is this file's version, BYTES the length of what follows the line, and SHA256 the checksum
over "pyvirt-state FORMAT BYTES", a line feed, and that. docs/snapshot.md has the promise that goes
with it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import NoReturn

from ... import __version__, files
from ...errors import StateError
from ...state import Fields

FORMAT = 3
# Those of a snapshot that has less, which older ones read as well: without layers of disks, and
# without a parent.
_LAYER, _WHOLE = 2, 1
_MAGIC = b"pyvirt-state"
_HEAD_MAX = 256
SIZE_MAX = 64 << 20
_VERSION_MAX = 64  # characters


def encode(fields: Mapping[str, object]) -> bytes:
    """Return the file of a machine's fields."""
    values = {"pyvirt": __version__, **fields}
    body = json.dumps(values, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    version = FORMAT if "layers" in values else _LAYER if "parent" in values else _WHOLE
    head = b"%s %d %d" % (_MAGIC, version, len(body))
    return b"%s %s\n%s" % (head, _checksum(head, body), body)


def read(path: str) -> Fields:
    """Return the fields in a file; StateError, which names it."""
    return read_both(path)[1]


def read_both(path: str) -> tuple[dict[str, object], Fields]:
    """Return the values in a file as they are, and the fields to read them by; StateError."""
    try:
        return decode_both(files.read(path, SIZE_MAX))
    except OSError as error:
        raise StateError(
            f"{path}: {error.strerror}; name a folder that a snapshot was written to"
        ) from None
    except StateError as error:
        raise StateError(f"{os.path.dirname(path)}: {error}") from None


def decode(data: bytes) -> Fields:
    """Return the fields that a file has; StateError."""
    return decode_both(data)[1]


def decode_both(data: bytes) -> tuple[dict[str, object], Fields]:
    """Return the values that a file has, and the fields to read them by; StateError."""
    head, _, body = data[:_HEAD_MAX].partition(b"\n")
    words = head.split(b" ")
    if words[0] != _MAGIC:
        raise StateError("state: is no state of pyvirt; name a folder with a snapshot of its own")
    numbers = [word for word in words[1:3] if word.isdigit() and len(word) < 10]
    if len(numbers) == 2 and int(numbers[0]) > FORMAT:
        raise StateError(
            f"state: has format {int(numbers[0])}, and this pyvirt ({__version__}) knows those up "
            f"to {FORMAT}; use a newer pyvirt"
        )
    body = data[len(head) + 1 :]
    if len(numbers) != 2 or len(words) != 4 or len(body) < int(numbers[1]):
        raise StateError("state: is cut off or damaged; write the snapshot again")
    if len(body) > int(numbers[1]) or words[3] != _checksum(b" ".join(words[:3]), body):
        raise StateError("state: is damaged, by its checksum; write the snapshot again")
    values = _parse(body)
    fields = Fields(values)
    fields.text("pyvirt", _VERSION_MAX)
    assert isinstance(values, dict)  # as Fields has seen
    return values, fields


def _checksum(head: bytes, body: bytes) -> bytes:
    return hashlib.sha256(head + b"\n" + body).hexdigest().encode()


def _parse(body: bytes) -> object:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise StateError("state: is not JSON that can be read; write the snapshot again") from None


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError
