"""Making one snapshot of a layer and all that it goes on from; no machine is needed."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from functools import partial

from ...errors import StateError
from ..memory import GuestMemory
from . import folder, overlays, shape, state_file
from .layers import IDENTITY_BYTES, open_layers
from .memory_file import Writer, copy_sparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def flatten(path: str, new: str, tell: Callable[[str], None] = lambda _: None) -> int:
    """Write the snapshot in a folder to another, whole; return the bytes of memory written.

    It is the same snapshot, with the same number: what goes on from the one can go on from the
    other. `tell` gets a line each second. StateError, BackendError: nothing is left of it.
    """
    target = folder.Folder(new)
    target.check()
    values, fields = state_file.read_both(os.path.join(path, folder.STATE))
    try:
        identity = fields.data("snapshot", IDENTITY_BYTES)
        size = shape.read(fields.section("machine")).memory
    except StateError as error:
        raise StateError(f"{path}: {error}") from None
    with ExitStack() as stack:
        content = open_layers(path, fields, size, identity)
        with closing(content):
            memory = stack.enter_context(closing(GuestMemory(size, content=content)))
        for slot, (fd,) in overlays.open_files(path, fields, identity).items():
            stack.callback(os.close, fd)
            target.overlays[slot] = partial(copy_sparse, fd)
        writer = Writer(memory, identity, tell)
        values.pop("parent", None)
        target.write(writer.write, lambda: state_file.encode(values))
        return writer.written
