"""The option that describes the guest's processor: `-cpu`. Imported only when it is given."""

from __future__ import annotations

from ...errors import ConfigError
from ...vmm.cpu_model import FEATURES, VENDORS, CpuModel
from .members import FALSE, TRUE, one_of, pairs

_MODELS = ("host", "max")  # the same here: all that KVM can do


def parse(text: str) -> CpuModel:
    """Return what the value of `-cpu` says; ConfigError."""
    vendor = ""
    switched: dict[str, bool] = {}
    for key, value in pairs("-cpu", text, "model"):
        if key == "model":
            if value not in _MODELS:
                raise ConfigError(
                    f"-cpu {text}: {value} is none of {', '.join(_MODELS)}; give host"
                )
        elif key == "vendor":
            vendor = one_of("-cpu vendor", value, VENDORS)
        else:
            name, is_on = _feature(key, value)
            if name not in FEATURES:
                raise ConfigError(f"-cpu {text}: {key}: no feature of that name is known here")
            switched[name] = is_on
    on = [name for name, is_on in switched.items() if is_on]
    return CpuModel(vendor, on, [name for name in switched if name not in on])


def _feature(key: str, value: str) -> tuple[str, bool]:
    """Return the name in `+name`, `-name` or `name=on|off`, and which."""
    name = key.replace("_", "-")
    if name[:1] in ("+", "-"):
        return name[1:], name[0] == "+"
    return name, one_of(f"-cpu {key}", value, TRUE + FALSE) in TRUE
