"""The option that describes an entropy device: `-device virtio-rng-device`.

Imported only when it is given.
"""

from __future__ import annotations

from ...devices.virtio.rng import RATE_MAX, RATE_MIN, RngConfig
from ...errors import ConfigError
from . import members
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .gather import Parts

_DRIVER, _OBJECT = "virtio-rng-device", "rng-random"
_SOURCE = "/dev/urandom"
_MS_PER_S = 1000
_MOST = (1 << 63) - 1
_MEMBERS: tuple[members.Member, ...] = (
    ("rng", "rng", members.name),
    ("id", "id", members.name),
    ("max-bytes", "bytes", members.number(1, _MOST)),
    ("period", "period", members.number(1, _MOST)),
)


def read(texts: Iterable[str], parts: Parts) -> tuple[RngConfig, ...]:
    """Return what the values of `-device` say, in their order; ConfigError."""
    devices: dict[str, RngConfig] = {}
    for text in texts:
        rest = text.partition(",")[2]
        fields = members.read("-device", pairs("-device", rest, "") if rest else [], _MEMBERS)
        if "rng" not in fields:
            raise ConfigError(
                f"-device {text}: names no source; give rng=ID and -object {_OBJECT},id=ID"
            )
        name = fields.get("id", f"rng{len(devices)}")
        if name in devices:
            raise ConfigError(f"-device id={name}: there is one of that name; give another")
        source = parts.objects.find(
            f"-device {_DRIVER},rng={fields['rng']}", _OBJECT, fields["rng"]
        )
        filename = source.get("filename", _SOURCE)
        devices[name] = RngConfig(name, source["id"], filename, _rate(text, fields))
    return tuple(devices.values())


def _rate(text: str, fields: dict[str, Any]) -> int:
    """Return the limit in bytes a second; 0: none."""
    if ("bytes" in fields) != ("period" in fields):
        missing = "period=MS" if "bytes" in fields else "max-bytes=N"
        raise ConfigError(
            f"-device {text}: a limit is max-bytes in a period; give {missing} as well"
        )
    if "bytes" not in fields:
        return 0
    rate: int = fields["bytes"] * _MS_PER_S // fields["period"]
    if not RATE_MIN <= rate <= RATE_MAX:
        raise ConfigError(
            f"-device {text}: max-bytes in period ms is {rate} bytes a second; "
            f"make it {RATE_MIN} to {RATE_MAX}"
        )
    return rate
