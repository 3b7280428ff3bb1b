"""Options that StratoVirt's first versions had, in today's words.

Imported only when one of them is given.
"""

from __future__ import annotations

from ...errors import ConfigError
from . import members
from .members import Placed, at_place, pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_RNG_ID = "rng0"
_RNG: tuple[members.Member, ...] = (
    ("random_file", "file", lambda _, text: text),
    ("bytes_per_sec", "rate", members.number(0, 10**9 - 1)),
)


def expand(given: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the options by today's names; ConfigError."""
    for name, text in given:
        places = text.places if isinstance(text, Placed) else {"": ""}
        for new, value in _expand(name, text):
            yield new, Placed(value, places) if places[""] else value


def _expand(name: str, text: str) -> Iterator[tuple[str, str]]:
    if name == "balloon":
        yield "device", f"virtio-balloon-device,{text}"
    elif name == "iothread":
        yield "object", f"iothread,{text}"
    elif name == "rng":
        yield from _rng(text)
    else:
        yield name, text


def _rng(text: str) -> Iterator[tuple[str, str]]:
    try:
        given = members.read("-rng", pairs("-rng", text, ""), _RNG)
    except ConfigError as error:
        raise at_place(error, text) from None
    if not given.get("file"):
        raise at_place(ConfigError(f"-rng {text}: names no file; give random_file=FILE"), text)
    file = given["file"].replace(",", ",,")
    yield "object", f"rng-random,id={_RNG_ID},filename={file}"
    rate = f",max-bytes={given['rate']},period=1000" if "rate" in given else ""
    yield "device", f"virtio-rng-device,rng={_RNG_ID}{rate}"
