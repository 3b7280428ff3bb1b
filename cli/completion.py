"""`pyvirt completion`: the script by which a shell completes pyvirt's words.

A script is a fixed part beside this file and a table of words, which is cli/grammar.py's; it
starts no Python when somebody presses Tab.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import ConfigError
from . import grammar, usage

USAGE = """\
usage: pyvirt completion bash|zsh|fish

Prints a script that completes commands, options, their members and values:

  bash   eval "$(pyvirt completion bash)"        in ~/.bashrc
  zsh    eval "$(pyvirt completion zsh)"         in ~/.zshrc, after compinit
  fish   pyvirt completion fish | source         in ~/.config/fish/config.fish
"""
_PLACE = "@ROWS@"


def script(shell: str) -> str:
    """Return the script for one of `grammar.SHELLS`."""
    text = Path(__file__).with_suffix(f".{shell}").read_text(encoding="utf-8")
    lines = ["\t".join(row) for row in grammar.rows()]
    if shell == "fish":
        quoted = (line.replace("\\", "\\\\").replace("'", "\\'") for line in lines)
        return text.replace(_PLACE, " \\\n".join(f"    '{line}'" for line in quoted))
    return text.replace(_PLACE, "\n".join(lines).replace("'", "'\\''"))


def main(argv: list[str]) -> int:
    """Print a script; return the exit status."""
    if usage.shown(USAGE, argv):
        return 0
    if len(argv) != 1 or argv[0] not in grammar.SHELLS:
        words = " ".join(["completion", *argv])
        raise ConfigError(f"{words}: name one shell, {', '.join(grammar.SHELLS)}")
    sys.stdout.write(script(argv[0]))
    return 0
