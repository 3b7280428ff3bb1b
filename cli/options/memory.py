"""The options that say what guest memory is made of: `-mem-path`, `-mem-prealloc`, `-object`.

Imported only when one of them is given.
"""

from __future__ import annotations

from ...errors import ConfigError
from ...vmm.backing import HUGE_PAGES, MIB, Backing
from .sizes import memory_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .gather import Parts
    from .parsed import Options

_KINDS = ("memory-backend-ram", "memory-backend-file", "memory-backend-memfd")
_SIZES = dict(zip(("2M", "1G"), HUGE_PAGES, strict=True))
_MEMFD = "memory-backend-memfd"


def read(options: Options, parts: Parts) -> None:
    """Store what is asked for; ConfigError."""
    found = [(kind, fields) for kind in _KINDS for fields in parts.objects.of(kind)]
    name = options.memory_backend
    if options.mem_path:
        if name:
            raise ConfigError(
                f"-machine memory-backend={name}: not with -mem-path {options.mem_path}; "
                "give one of the two"
            )
        options.backing = Backing("-mem-path", path=options.mem_path, shared=options.share)
    for kind, fields in found:
        if fields["id"] != name:
            raise ConfigError(
                f"-object {kind},id={fields['id']}: nothing uses it; "
                f"add -machine memory-backend={fields['id']}"
            )
        _store(options, kind, fields)
    if name and not found:
        raise ConfigError(
            f"-machine memory-backend={name}: there is no such object; "
            f"add -object {_MEMFD},id={name},size=SIZE"
        )


def _store(options: Options, kind: str, fields: dict[str, Any]) -> None:
    option = f"-object {kind},id={fields['id']}"
    if "size" not in fields:
        raise ConfigError(f"{option}: has no size; give size=SIZE")
    size = memory_size(f"{option},size", fields["size"])
    if size != options.memory and any(name == "m" for name, _ in options.given):
        raise ConfigError(
            f"{option}: its size is {size // MIB} MiB, and -m says {options.memory // MIB}; "
            "give the same, or leave -m out"
        )
    options.memory = size
    options.prealloc |= fields.get("prealloc", False)
    if kind == "memory-backend-file":
        if "path" not in fields:
            raise ConfigError(f"{option}: has no mem-path; give mem-path=FOLDER|FILE")
        options.backing = Backing(option, path=fields["path"], shared=fields.get("shared", False))
        return
    if kind != _MEMFD:
        for key in ("hugetlb", "hugetlbsize", "seal"):
            if key in fields:
                raise ConfigError(f"{option},{key}: is of {_MEMFD}; use that")
        options.share |= fields.get("shared", False)
        return
    huge = fields.get("hugetlb", False)
    if "hugetlbsize" in fields and not huge:
        raise ConfigError(f"{option},hugetlbsize: goes with hugetlb=on; give both")
    page = _SIZES[fields.get("hugetlbsize", "2M")] if huge else 0
    options.backing = Backing(
        option,
        huge_page=page,
        shared=fields.get("shared", True),
        seal=fields.get("seal", True),
    )
