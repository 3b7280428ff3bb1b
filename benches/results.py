"""What is kept of a part: every round, and when, where and of what it was."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from .part import Round

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).with_name("results")
UNKNOWN = "unknown"
WRITTEN = ("benches/results", "docs/performance.md", "README.md")  # of each part that is run


@dataclass(frozen=True)
class Results:
    """The rounds of a part.

    `machine` describes where they ran; `host` too, if that was a nested lab on it. `load` is how
    many processes wanted a processor of the host in the minute before. `absent` says for whom
    there are no rounds, and why.
    """

    part: str
    date: str
    commit: str
    machine: dict[str, str]
    host: dict[str, str]
    load: float
    rounds: list[Round]
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def in_lab(self) -> bool:
        """Whether it was the nested lab."""
        return bool(self.host)


def now() -> str:
    """Return the date of today, as results have it."""
    return datetime.now(UTC).date().isoformat()


def commit() -> str:
    """Return the commit of the checkout, with a + where files differ but those that this writes."""
    named = _git("describe", "--always", "--exclude=*")
    others = [f":(exclude,top){path}" for path in WRITTEN]
    is_other = _git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", *others)
    return (named + "+" * bool(is_other)) or UNKNOWN


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, check=False, text=True
    )
    return done.stdout.strip()


def path(part: str, folder: Path = FOLDER) -> Path:
    """Return where a part's results are."""
    return folder / f"{part}.json"


def load(part: str, folder: Path = FOLDER) -> Results | None:
    """Return the results of a part; None if it has not been run."""
    try:
        text = path(part, folder).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return Results(**json.loads(text))


def save(results: Results, folder: Path = FOLDER) -> None:
    """Keep results in place of the last ones, all or nothing."""
    folder.mkdir(exist_ok=True)
    place = path(results.part, folder)
    new = place.with_suffix(f".{os.getpid()}")
    try:
        # A round is a line, so that a difference of two runs can be read.
        head = {name: value for name, value in asdict(results).items() if name != "rounds"}
        rounds = ",\n".join(f"  {json.dumps(one)}" for one in results.rounds)
        text = json.dumps(head, indent=1).removesuffix("\n}")
        new.write_text(f'{text},\n "rounds": [\n{rounds}\n ]\n}}\n', encoding="utf-8")
        new.replace(place)
    finally:
        new.unlink(missing_ok=True)
