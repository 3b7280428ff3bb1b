"""The hostile guest as tests use it: its kernel, its rules, and what it says (docs/hostile.md)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from pyvirt.harness.plugin.ktap import FAILED, PASSED, SKIPPED, Parser

HERE = Path(__file__).parent
BUILD_SECONDS = 120
_RULE = re.compile(r'^\t\{"([a-z0-9-]+)",', re.MULTILINE)


class Verdict(NamedTuple):
    """One rule on one device: `answer` is what the device did, or why it was skipped or failed."""

    device: str
    rule: str
    outcome: str
    answer: str


# What it is built as, beside the ELF file for PVH.
FORMS = ("hostile.elf32", "hostile.bzImage")


def build(folder: Path, compiler: str = "gcc") -> Path:
    """Compile the guest; return its ELF file, which the other forms are beside."""
    command = ["make", "-s", "-C", str(HERE), f"BUILD={folder}", f"CC={compiler}"]
    subprocess.run(command, check=True, timeout=BUILD_SECONDS)
    return folder / "hostile.elf"


def rules(*tables: str) -> list[str]:
    """Return the names of the rules of these tables, or of all; in the order that they have."""
    tables = tables or tuple(
        re.findall(r"\b(\w+)_rules\b", (HERE / "main.c").read_text(encoding="utf-8"))
    )
    texts = [(HERE / f"rules_{table}.c").read_text(encoding="utf-8") for table in tables]
    return [name for text in texts for name in _RULE.findall(text)]


def read(text: str) -> list[Verdict]:
    """Return the verdicts of a report; AssertionError when it is not whole."""
    parser = Parser()
    for line in text.splitlines():
        parser.feed(line)
    verdicts = []
    for point in parser.finish():
        assert point.outcome in (PASSED, FAILED, SKIPPED), point
        assert point.name, f"not a whole report: {point.reason}\n{text[-2000:]}"
        device, rule = point.name.split()
        verdicts.append(Verdict(device, rule, point.outcome, point.reason))
    return verdicts
