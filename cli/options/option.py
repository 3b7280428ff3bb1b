"""An option of `pyvirt run`: a row of the table."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Option:
    """One option: its value as the help shows it, "" for none, in brackets when it may miss."""

    __slots__ = ("doc", "name", "repeats", "store", "value")

    def __init__(
        self,
        name: str,
        value: str,
        doc: str,
        store: Callable[[Any, str], None],
        *,
        repeats: bool = False,
    ) -> None:
        """`store` puts a value into the Options; `repeats`: it may be given more than once."""
        self.name = name
        self.value = value
        self.doc = doc
        self.store = store
        self.repeats = repeats

    @property
    def is_bare(self) -> bool:
        """Say whether it may be given without a value."""
        return not self.value or self.value.startswith("[=") or self.value == "[FILE]"
