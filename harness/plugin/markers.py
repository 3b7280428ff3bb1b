"""What the marks on a test say of its VMs."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..vm.config import Limits, VmConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from ..guest.kernel import Kernel

MARKERS = (
    "vm(vcpus=, memory=, cmdline=, disks=, nets=, share=, root=, modules=, files=, initrd=, …)",
    "kernel(config=[...], min='5.10'): skip where the kernel lacks an option or is older",
    "expects_panic(regex): the test passes only if the guest panics with words that match",
    "allow_splat(regex): warnings and oopses of the kernel that match are no failure",
    "vm_timeout(boot=, call=, quiet=): limits in seconds",
)
_NUMBERS = re.compile(r"\d+")
_CONFIG = "CONFIG_"


def _merged(item: pytest.Item, name: str, known: Sequence[str]) -> dict[str, Any]:
    """Return the keywords of all marks of a name; ConfigError for one that is not known."""
    found: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers(name))):
        if mark.args:
            raise ConfigError(f"mark {name}: it takes keywords only: {', '.join(known)}")
        found.update(mark.kwargs)
    for key in found:
        if key not in known:
            raise ConfigError(f"mark {name}: no such member as {key}; there are {', '.join(known)}")
    return found


def limits(item: pytest.Item, scale: float) -> Limits:
    """Return the limits for a test's VMs."""
    names = [field.name for field in fields(Limits)]
    given = _merged(item, "vm_timeout", names)
    for name, value in given.items():
        if not isinstance(value, int | float) or value <= 0:
            raise ConfigError(f"mark vm_timeout: {name}={value!r}: give a number of seconds")
    return replace(Limits(), **given).scaled(scale)


def vm_config(item: pytest.Item, scale: float, base: VmConfig, **overrides: Any) -> VmConfig:
    """Return what a VM of a test is to be: `base`, then the marks, then `overrides`."""
    names = [field.name for field in fields(VmConfig) if field.name != "limits"]
    given = _merged(item, "vm", names)
    for name in overrides:
        if name not in names:
            raise ConfigError(f"vm: no such member as {name}; there are {', '.join(names)}")
    return replace(base, **{**given, **overrides, "limits": limits(item, scale)})


def patterns(item: pytest.Item, name: str) -> list[re.Pattern[str]]:
    """Return the regular expressions of all marks of a name; ConfigError."""
    found = []
    for mark in item.iter_markers(name):
        if len(mark.args) != 1 or mark.kwargs:
            raise ConfigError(f"mark {name}: give one regular expression")
        try:
            found.append(re.compile(mark.args[0]))
        except (re.error, TypeError) as error:
            raise ConfigError(f"mark {name}: {mark.args[0]!r}: {error}") from None
    return found


def unfit(item: pytest.Item, kernel: Kernel) -> str:
    """Return why a kernel is not what a test needs, "" if it is."""
    for mark in item.iter_markers("kernel"):
        unknown = mark.kwargs.keys() - {"config", "min"}
        if mark.args or unknown:
            raise ConfigError("mark kernel: give config=['CONFIG_X', ...], min='5.10', or both")
        least = mark.kwargs.get("min")
        if least is not None and _version(kernel.release) < _version(str(least)):
            return f"kernel {kernel.release} is older than {least}"
        options = mark.kwargs.get("config", ())
        for option in (options,) if isinstance(options, str) else options:
            reason = _lacks(kernel, option)
            if reason:
                return reason
    return ""


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBERS.findall(release.partition("-")[0])[:3])


def _lacks(kernel: Kernel, option: str) -> str:
    name, equals, value = option.partition("=")
    name = name if name.startswith(_CONFIG) else _CONFIG + name
    if kernel.config is None:
        return f"kernel {kernel.release} does not tell whether it has {name}"
    has = kernel.config.get(name, "n")
    if (has == value) if equals else (has != "n"):
        return ""
    return (
        f"kernel {kernel.release} has {name}={has}"
        if equals
        else (f"kernel {kernel.release} lacks {name}")
    )
