"""`make bench`: runs all parts or those named, keeps their rounds, and writes the report anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pyvirt.errors import PyvirtError

from . import parts, report, results, runner

ROUNDS_MOST = 1000
INTERRUPTED = 130  # as a shell has it


class UsageError(PyvirtError):
    """PART or RUNS is none that there is."""


def chosen(words: str) -> list[str]:
    """Return the names of the parts that PART has, all if it is empty; UsageError."""
    names = words.replace(",", " ").split()
    for name in names:
        if name not in parts.NAMES:
            raise UsageError(f"PART={name}: no such part; there are {', '.join(parts.NAMES)}")
    return names or list(parts.NAMES)


def how_many(word: str) -> int | None:
    """Return RUNS, None if it is empty; UsageError."""
    if not word:
        return None
    if not word.isascii() or not word.isdecimal() or not 1 <= int(word) <= ROUNDS_MOST:
        raise UsageError(
            f"RUNS={word}: give a number of rounds from 1 to {ROUNDS_MOST}, or leave it out"
        )
    return int(word)


def run(names: Sequence[str], rounds: int | None) -> int:
    """Run parts in turn; one that fails is said, and its last results stay. Return the status."""
    failed = []
    for name in names:
        part = parts.load(name)
        try:
            found = runner.measure(part, rounds or part.rounds)
        except PyvirtError as error:
            print(f"bench: {error}; its last results stay", file=sys.stderr)
            failed.append(name)
            continue
        except KeyboardInterrupt:
            print(f"\nbench: {name} was interrupted; its last results stay", file=sys.stderr)
            return INTERRUPTED
        results.save(found)
        # Here, so that a later part that is interrupted leaves a report of what there is.
        report.write()
        print("\n".join(report.section(part, report.shown(part, found))), flush=True)
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def main(argv: Sequence[str]) -> int:
    """Do what the command line says; return the status."""
    parser = argparse.ArgumentParser(prog="bench", allow_abbrev=False)
    parser.add_argument("--part", default="", metavar="NAMES")
    parser.add_argument("--runs", default="", metavar="N")
    parser.add_argument("--report", action="store_true", help="only write the report anew")
    parser.add_argument("--rounds", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rounds:
        name, *span, place = arguments.rounds
        runner.run_span(name, runner.Span(*map(int, span)), Path(place))
        return 0
    if arguments.report:
        report.write()
        return 0
    return run(chosen(arguments.part), how_many(arguments.runs))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except PyvirtError as failure:
        sys.exit(f"bench: {failure}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
