"""argparse as the commands of pyvirt want it.

An option may be written with one dash or two, and never shortened or run together with its value;
-h, -help and --help show the help; wrong usage is one line, as of every other error.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def seconds(text: str) -> float:
    """Return a time above 0 and not infinite, for the `type` of an option."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: give a number of seconds above 0")
    return found


def _name(word: str) -> str:
    return word.partition("=")[0]


class Parser(argparse.ArgumentParser):
    """A parser of a command's words; raises ConfigError for those that it does not take."""

    def __init__(self, **options: Any) -> None:
        """Take what ArgumentParser takes; its sub-parsers are of this class, too."""
        super().__init__(**options, add_help=False, allow_abbrev=False)
        self.add_argument("-h", "--help", action="help", help="show this and end")
        self._given: tuple[str, ...] = ()

    def actions(self) -> Sequence[argparse.Action]:
        """Return all that it takes, in the order of the help."""
        return self._actions

    def commands(self) -> dict[str, tuple[str, Parser]]:
        """Return its sub-commands, each with what the help says of it, and its parser."""
        if self._subparsers is None:
            return {}
        (action,) = self._subparsers._group_actions  # noqa: SLF001  (argparse's own)
        assert isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
        texts = {one.dest: one.help or "" for one in action._get_subactions()}  # noqa: SLF001
        return {name: (texts[name], child) for name, child in action.choices.items()}

    def help_of_width(self, columns: int) -> str:
        """Return the help as a terminal of that width shows it."""
        self.formatter_class = partial(argparse.HelpFormatter, width=columns)
        return self.format_help()

    # Any is argparse's own answer, which its overloads narrow by the type of the namespace.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse as ArgumentParser does, with each long option under its one-dash name as well."""
        self._given = tuple(args or ())
        for name, action in list(self._option_string_actions.items()):
            twin = name[1:] if name.startswith("--") else f"-{name}"
            self._option_string_actions.setdefault(twin, action)
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Return the options that a word may stand for by its first letters: none."""
        return []

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with argparse's words, and the option as it was written."""
        options = [word for word in self._given if word[:1] == "-" and word != "--"]
        names, colon, problem = message.removeprefix("argument ").partition(": ")
        written = self._as_written(names.split("/"), options)
        message = f"{written or names}{colon}{problem}"
        # What is missing may well be what an unknown option was meant to be.
        unknown = [word for word in options if _name(word) not in self._option_string_actions]
        if unknown and message.startswith("the following arguments are required"):
            message = f"unrecognized arguments: {unknown[0]}"
        raise ConfigError(
            f"{self.prog.removeprefix('pyvirt ')}: {message}; {self.prog} -help tells more"
        )

    def _as_written(self, names: list[str], options: list[str]) -> str:
        """Return the way in which an option that has these names was given, "" when it was not."""
        action = self._option_string_actions.get(names[0])
        found = (_name(word) for word in options)
        return next(
            (name for name in found if action and self._option_string_actions.get(name) is action),
            "",
        )
