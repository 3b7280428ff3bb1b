"""A kernel's build configuration: from the image itself, or from a file beside it.

A kernel built with CONFIG_IKCONFIG holds its .config, gzipped between two marks (kernel source,
kernel/configs.c). Distributions leave that out and install boot/config-RELEASE.
"""

from __future__ import annotations

import functools
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import PyvirtError
from . import vmlinux

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_START = b"IKCFG_ST"
_SIZE_MAX = 16 << 20
_LINE = re.compile(r"(CONFIG_\w+)=(.*)")


def parse(text: str) -> dict[str, str]:
    """Return the options that are set, with their values as written: y, m, 17, "text"."""
    found = (_LINE.fullmatch(line.strip()) for line in text.splitlines())
    return {match[1]: match[2] for match in found if match}


@functools.lru_cache(maxsize=16)
def read(
    release: str, image: Path, modules: Path | None, elf: Path | None
) -> Mapping[str, str] | None:
    """Return the configuration of a kernel; None where nothing tells it.

    `modules` is its lib/modules/RELEASE, `elf` its vmlinux; None where they are not known.
    """
    named = f"config-{release}"
    beside = image.resolve().parent
    installed = [beside / named, Path("/boot", named)]
    if modules is not None:
        installed += [modules / "config", modules.parents[2] / "boot" / named]
    text = _first(installed)
    if text is None:
        try:
            text = embedded(vmlinux.read(elf or vmlinux.cached(image)))
        except (PyvirtError, OSError):
            text = None
    if text is None and len(beside.parents) > 2:
        text = _first([beside.parents[2] / ".config"])  # of arch/x86/boot in a build tree
    return None if text is None else parse(text)


def _first(paths: Sequence[Path]) -> str | None:
    """Return the text of the first file that is there."""
    path = next((path for path in paths if path.is_file()), None)
    return None if path is None else path.read_text(errors="replace")


def embedded(elf: bytes) -> str | None:
    """Return the .config inside of a kernel that is not compressed; None if there is none."""
    at = elf.find(_START)
    if at < 0:
        return None
    unpacker = zlib.decompressobj(wbits=31)
    try:
        return unpacker.decompress(elf[at + len(_START) :], _SIZE_MAX).decode(errors="replace")
    except zlib.error:
        return None
