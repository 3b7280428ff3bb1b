"""What the sub-commands share of their usage: the ways to ask for help, and one kind of error."""

from __future__ import annotations

import sys

from ..errors import ConfigError

HELP = ("-h", "-help", "--help", "help")


def shown(text: str, argv: list[str]) -> bool:
    """Print a command's usage if that is what its first word asks for; return whether it did."""
    if not argv or argv[0] not in HELP:
        return False
    sys.stdout.write(text)
    return True


def no_arguments(command: str, argv: list[str]) -> None:
    """Raise ConfigError when a command that takes no words has some."""
    if argv:
        raise ConfigError(f"{command} {argv[0]}: takes no arguments; leave them out")
