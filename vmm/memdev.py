"""Guest memory made of pieces: memory backends of `-object`, `-mem-path`, a memfd to be shared.

Imported only when an option or a device asks for one of them. Pieces lie side by side in one
range of this process's addresses, so that all but who needs their files see one memory. Sources:
mmap(2), mbind(2), Documentation/admin-guide/mm/numa_memory_policy.rst.
"""

from __future__ import annotations

import os

from ..errors import ConfigError
from ..native import ffi, lib
from .backing import MIB, Backing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .backing import File

# As QEMU names them, and linux/mempolicy.h's numbers.
POLICIES = {"default": 0, "preferred": 1, "bind": 2, "interleave": 3}
_NODES = "/sys/devices/system/node/has_memory"
_WORD = 64


class Memdev:
    """A piece of guest memory: how large, what it is made of, and from which nodes of the host."""

    __slots__ = ("backing", "host_nodes", "id", "option", "policy", "prealloc", "shared", "size")

    def __init__(
        self,
        option: str,
        size: int,
        *,
        name: str = "",
        backing: Backing | None = None,
        shared: bool = False,
        prealloc: bool = False,
        policy: str = "default",
        host_nodes: tuple[int, ...] = (),
    ) -> None:
        """`option` is how messages call it, `name` its id; `size` in bytes, whole MiB.

        Without `backing` it is anonymous memory, or a memfd when `shared`. `host_nodes` are empty
        with the policy `default`, and only then.
        """
        self.option = option
        self.size = size
        self.id = name
        self.backing = backing
        self.shared = shared
        self.prealloc = prealloc
        self.policy = policy
        self.host_nodes = host_nodes


class Pieces:
    """The pieces of one guest's memory, opened; owns their files until `close`."""

    __slots__ = ("_files", "_memdevs", "alignment")

    def __init__(self, memdevs: Sequence[Memdev], *, shared: bool) -> None:
        """Open the files of all; `shared`: other processes are to see what the guest writes.

        `alignment` is the largest page among them, in bytes, 0 without any. ConfigError; nothing
        stays then.
        """
        self._memdevs = memdevs
        self._files: list[File | None] = []
        self.alignment = 0
        try:
            at = 0
            for memdev in memdevs:
                file = _open(memdev, shared=shared)
                self._files.append(file)
                if file is not None:
                    self.alignment = max(self.alignment, file.page)
                    if at % file.page:
                        raise ConfigError(
                            f"{memdev.option}: begins {at // MIB} MiB into the memory, which is no "
                            f"multiple of its pages of {file.page // MIB} MiB; give the nodes "
                            "before it such a size"
                        )
                at += memdev.size
        except BaseException:
            self.close()
            raise

    def map(self, base: int) -> None:
        """Map all from the address `base` on, in place of what is there; ConfigError.

        A file that no other process is to see is closed.
        """
        at = base
        for index, (memdev, file) in enumerate(zip(self._memdevs, self._files, strict=True)):
            if file is not None:
                file.map(at)
                if not file.is_shared:
                    file.close()
                    self._files[index] = None
            if memdev.host_nodes:
                _bind(memdev, at)
            at += memdev.size

    @property
    def files(self) -> list[tuple[int, int, int]]:
        """Return (offset in the memory, size, descriptor) of what other processes can map."""
        found, at = [], 0
        for memdev, file in zip(self._memdevs, self._files, strict=True):
            if file is not None:
                found.append((at, memdev.size, file.fd))
            at += memdev.size
        return found

    def close(self) -> None:
        """Close the files; what is mapped stays."""
        for file in self._files:
            if file is not None:
                file.close()
        self._files = []


def _open(memdev: Memdev, *, shared: bool) -> File | None:
    shared = shared or memdev.shared
    backing = memdev.backing
    if backing is None:
        if not shared:
            return None
        backing = Backing(memdev.option, shared=True)
    return backing.open(memdev.size, shared=shared)


def _bind(memdev: Memdev, at: int) -> None:
    there = _host_nodes()
    for node in memdev.host_nodes:
        if node not in there:
            listed = ", ".join(map(str, there)) or "none"
            raise ConfigError(
                f"{memdev.option},host-nodes: {node} is no node of this host that has memory "
                f"(there is {listed}); name others, or leave it out"
            )
    words = ffi.new("uint64_t[]", max(memdev.host_nodes) // _WORD + 1)
    for node in memdev.host_nodes:
        words[node // _WORD] |= 1 << node % _WORD
    policy = POLICIES[memdev.policy]
    start = ffi.cast("void *", at)
    result = lib.pv_memory_bind(start, memdev.size, policy, words, len(words))
    if result < 0:
        raise ConfigError(
            f"{memdev.option},policy={memdev.policy}: {os.strerror(-result)}; leave it out"
        )


def _host_nodes() -> list[int]:
    """Return the nodes of this host that have memory."""
    try:
        with open(_NODES, encoding="ascii") as file:
            pieces = [piece.partition("-") for piece in file.read().strip().split(",")]
    except OSError:
        return []
    return [
        node
        for first, dash, last in pieces
        if first
        for node in range(int(first), int(last if dash else first) + 1)
    ]
