"""What people read of the options of `pyvirt run`: the help, and what it shares with the manual.

Imported only when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .syntax import texts
from .table import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .option import Option

# A group begins with an option of the table, and goes on to the next.
_GROUPS = {
    "kernel": "Kernel",
    "smp": "Processors, memory and board",
    "disk": "Devices",
    "qmp": "Monitors, and the host's ends of devices",
    "config": "Options in files",
    "accel": "The run",
}
STATUSES = {
    "0": "the guest ended or was told to",
    "1": "the monitor failed, or the guest triple-faulted",
    "2": "wrong usage: an option, its value, or the file that it names",
    "any other": "what the guest wrote to port 0xf4",
}


def groups() -> Iterator[tuple[str, list[Option]]]:
    """Yield the options in groups, each with its title."""
    options: list[Option] = []
    title = ""
    for option in TABLE:
        if option.name in _GROUPS:
            if options:
                yield title, options
            title, options = _GROUPS[option.name], []
        options.append(option)
    yield title, options


def heads(option: Option) -> list[str]:
    """Return the option with each form of its value."""
    gap = "" if option.value.startswith("[=") else " "
    return [f"-{option.name}{gap}{form}".rstrip() for form in texts(option.value)]


def usage() -> str:
    """Return the help text, made from the table."""
    lines = ["usage: pyvirt run [OPTIONS]", "", "Without -kernel, a small Debian guest to a shell."]
    for title, options in groups():
        lines += ["", f"{title}:"]
        for option in options:
            lines += [f"  {head}" for head in heads(option)]
            lines.append(f"      {option.doc}")
    lines += ["", "exit status:", *(f"  {name}: {text}" for name, text in STATUSES.items()), ""]
    return "\n".join(lines)
