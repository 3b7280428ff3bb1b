"""What a guest prints: its lines, and text fit for reports, without escapes and controls."""

from __future__ import annotations

import re
from typing import NamedTuple

# ECMA-48: control sequences, then those with a string (titles of windows), then short ones.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-Z\\`-~]|)"
)
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


class Line(NamedTuple):
    """A line of a console, when its first byte came (time.monotonic), and that byte's position.

    A kernel's stamp stays in `text`.
    """

    at: float
    text: str
    mark: int


def clean(data: bytes) -> str:
    """Return `data` as text; what is no UTF-8 becomes U+FFFD, a carriage return nothing."""
    return _ESCAPES.sub("", data.decode("utf-8", "replace")).translate(_CONTROLS)
