"""Runs fuzz targets: `make fuzz SECONDS=60 TARGET=block`, or

    python -m tests.fuzz [--seconds N] [--jobs N] [NAME...]
    python -m tests.fuzz --replay NAME FILE...
    python -m tests.fuzz --keep [NAME...]

The second runs a target with inputs out of files, as one that has found something. The third puts
what was found to reach new code into the corpora that are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .corpus import write
from .run import LIMITS, Run, places
from .target import FOLDER, ROOT, Target, environment, targets

_SPENT = FOLDER / "spent.json"  # seconds of processor time and executions of each, here, in all
_TELL_S = 20
_MERGE_S = 1200
_REPLAY = ".venv/bin/python -m tests.fuzz --replay"


def spend(done: list[Run]) -> dict[str, list[float]]:
    """Add what runs have had; return the sums."""
    spent: dict[str, list[float]] = json.loads(_SPENT.read_text()) if _SPENT.exists() else {}
    for run in done:
        seconds, runs = spent.get(run.target.name, [0, 0])
        spent[run.target.name] = [seconds + run.used, runs + run.runs]
    _SPENT.write_text(json.dumps(spent, indent=1))
    return spent


def fuzz(chosen: list[Target], seconds: int, jobs: int) -> list[Run]:
    """Run targets, so many at once; return them when they have ended, or somebody ends this."""
    waiting, done = list(chosen), list[Run]()
    running = selectors.DefaultSelector()
    told = time.monotonic()
    try:
        while waiting or running.get_map():
            while waiting and len(running.get_map()) < jobs:
                run = Run(waiting.pop(0), seconds)
                running.register(run.fd, selectors.EVENT_READ, run)
            for key, _ in running.select(0.5):
                if not key.data.hear():
                    running.unregister(key.fd)
                    key.data.close()
                    done.append(key.data)
                    print(f"{len(done)}/{len(chosen)} {key.data.line()}", flush=True)
            is_due = time.monotonic() - told >= _TELL_S
            for key in running.get_map().values():
                key.data.look()
                if is_due:
                    print(key.data.line(), flush=True)
            told = time.monotonic() if is_due else told
    except KeyboardInterrupt:
        print("ended early", flush=True)
    finally:
        for key in running.get_map().values():
            key.data.close()
            done.append(key.data)
    return done


def report(done: list[Run]) -> int:
    """Print the table of runs, and what they have found; return the status."""
    spent = spend(done)
    print(
        f"{'target':<12}{'CPU s':>8}{'runs':>12}{'edges':>8}{'new':>6}{'found':>7}{'in all s':>10}"
    )
    findings = []
    for run in sorted(done, key=lambda one: one.target.name):
        found = run.findings()
        findings += [(run.target.name, one) for one in found]
        print(
            f"{run.target.name:<12}{run.used:>8.0f}{run.runs:>12}{run.edges:>8}{run.new:>6}"
            f"{len(found):>7}{spent[run.target.name][0]:>10.0f}"
        )
    for name, what in findings:
        print(f"{name}: {_REPLAY} {name} {what}" if os.path.exists(what) else f"{name}: {what}")
    return int(bool(findings))


def keep(target: Target) -> None:
    """Put the inputs that reach all that is reached, as few as there can be, into the corpus."""
    mine, kept, _ = places(target)
    with tempfile.TemporaryDirectory() as folder:
        options = ["-set_cover_merge=1", "-use_counters=0", *LIMITS]
        command = [*target.command(), *options, folder, str(mine), str(kept)]
        subprocess.run(
            command, env=environment(), cwd=ROOT, check=True, capture_output=True, timeout=_MERGE_S
        )
        inputs = [path.read_bytes() for path in Path(folder).iterdir()]
    if not inputs:
        raise SystemExit(f"{target.name}: nothing is left of its inputs; see to the target")
    write(target.corpus, inputs)
    print(f"{target.name}: {len(inputs)} inputs", flush=True)


def main() -> int:
    """Return 0 unless something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="of processor time, each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    known = {one.name: one for one in targets()}
    names = options.names[:1] if options.replay else options.names or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no target {unknown[0]}; there are {', '.join(known)}")
    chosen = [known[name] for name in names]
    if options.replay:
        command = [*chosen[0].command(), *LIMITS, *options.names[1:]]
        return subprocess.run(command, env=environment(), cwd=ROOT, check=False).returncode
    if options.keep:
        for target in chosen:
            keep(target)
        return 0
    return report(fuzz(chosen, options.seconds, options.jobs))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
