"""The option that shares a folder of the host with the guest: `-share`.

Imported only when it is given.
"""

from __future__ import annotations

import os
import re

from ...devices.vhost_user.fs import TAG_BYTES, FsConfig
from ...devices.vhost_user.virtiofsd import Virtiofsd
from ...errors import ConfigError
from . import members
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable

_TAG = re.compile(rf"[A-Za-z0-9_-][A-Za-z0-9._-]{{0,{TAG_BYTES - 1}}}")


def _folder(text: str) -> str:
    if not os.path.isdir(text):
        what = "not a folder" if os.path.exists(text) else "no such folder"
        raise ConfigError(f"-share {text}: {what}; name one that is there")
    return os.path.abspath(text)


def _path(_option: str, text: str) -> str:
    return text  # looked at when all members are known to be some


def _tag(option: str, text: str) -> str:
    # It is a folder's name in the guest, and a word of the kernel's command line.
    if not _TAG.fullmatch(text):
        raise ConfigError(
            f"{option} {text}: not a tag; give 1 to {TAG_BYTES} letters, digits, dots, _ and -"
        )
    return text


_SHARE: tuple[members.Member, ...] = (
    ("path", "path", _path),
    ("tag", "tag", _tag),
    ("readonly", "readonly", members.switch),
)


def read(texts: Iterable[str], taken: Container[bytes]) -> tuple[FsConfig, ...]:
    """Return a file system for each; ConfigError.

    `taken` are the tags of others. One without a tag gets the first of share0, share1, ... that is
    free.
    """
    found: list[FsConfig] = []
    given = [members.read("-share", pairs("-share", text, "path"), _SHARE) for text in texts]
    tags = [fields["tag"] for fields in given if "tag" in fields]
    for tag in tags:
        if tags.count(tag) > 1 or tag.encode() in taken:
            raise ConfigError(f"-share tag={tag}: two have it; give each its own")
    free = (name for number in range(len(given) * 2 + 1) if (name := f"share{number}") not in tags)
    for fields in given:
        if "path" not in fields:
            raise ConfigError("-share: names no folder; give -share DIR")
        tag = fields.get("tag") or next(name for name in free if name.encode() not in taken)
        back_end = Virtiofsd(_folder(fields["path"]), readonly=fields.get("readonly", False))
        found.append(FsConfig(tag, tag.encode(), back_end))
    return tuple(found)
