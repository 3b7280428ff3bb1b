"""The option that describes the balloon: `-device virtio-balloon-device`.

Imported only when it is given.
"""

from __future__ import annotations

from ...devices.virtio.balloon import Auto, BalloonConfig
from ...errors import ConfigError
from . import members
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .gather import Parts

_ID = "balloon0"


def _no_hints(option: str, text: str) -> None:
    """Refuse QEMU's free page hints (docs/snapshot.md says why)."""
    if members.switch(option, text):
        raise ConfigError(
            f"{option} {text}: this balloon asks for no hints; give free-page-reporting=on, by "
            "which the host, and a snapshot, is rid of more"
        )


_MEMBERS: tuple[members.Member, ...] = (
    ("id", "id", members.name),
    ("deflate-on-oom", "deflate_on_oom", members.switch),
    ("free-page-reporting", "free_page_reporting", members.switch),
    ("free-page-hint", "", _no_hints),
    ("auto-balloon", "auto", members.switch),
    # Ranges and defaults are StratoVirt's.
    ("membuf-percent", "percent", members.number(20, 80)),
    ("monitor-interval", "interval", members.number(5, 300)),
)


def read(texts: Sequence[str], _parts: Parts) -> tuple[BalloonConfig, ...]:
    """Return the one balloon; ConfigError."""
    if len(texts) > 1:
        raise ConfigError(f"-device {texts[1]}: there is one already; a guest has one balloon")
    rest = texts[0].partition(",")[2]
    fields = members.read("-device", pairs("-device", rest, "") if rest else [], _MEMBERS)
    follows = fields.pop("auto", False)
    limits = {name: fields.pop(name) for name in ("percent", "interval") if name in fields}
    auto = Auto(**limits) if follows else None
    return (BalloonConfig(fields.pop("id", _ID), auto=auto, **fields),)
