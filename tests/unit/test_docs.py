"""What the documentation tells people to type."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from pyvirt.cli.options.table import TABLE

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
# The word after the options, as the shell takes it: quoted, or not.
INSTALL = re.compile(r"^\S*pip3? install (?:-\S+ )*(\"[^\"]*\"|'[^']*'|\S+)", re.MULTILINE)


def commands(page: Path) -> str:
    """Return all that a page shows as input of a shell."""
    blocks = re.findall(
        r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return "".join(blocks)


def test_pyvirt_is_installed_from_a_checkout_or_a_wheel() -> None:
    """No index of packages has it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = settings["project"]["optional-dependencies"]
    found = [word for page in PAGES for word in INSTALL.findall(commands(page))]
    assert found, "the pattern finds none"
    for word in found:
        place, _, extra = word.strip("\"'").removesuffix("]").partition("[")
        assert place == "." or place.endswith(".whl)"), word
        assert not extra or extra in extras, word


def test_every_target_of_make_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+(?: [\w-]+)*):", makefile, re.MULTILINE))
    targets |= set(re.findall(r"[\w-]+", makefile.partition(".PHONY:")[2].partition("\n\n")[0]))
    for page in PAGES:
        for target in re.findall(r"^(?:sudo )?make ([a-z][\w-]*)", commands(page), re.MULTILINE):
            assert target in targets, (page.name, target)


# As written in prose: `vmm/layout.py`, or a link.
NAMED = re.compile(r"`((?:benches|cli|devices|docs|harness|native|qmp|tests|vmm)/[\w./-]*)`")
LINKED = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
EXAMPLES = re.compile(r"foo|NAME")


def test_every_file_that_is_named_is_there() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in NAMED.findall(text):
            assert EXAMPLES.search(name) or (ROOT / name).exists(), (page.name, name)
        for name in LINKED.findall(text):
            assert (page.parent / name).exists(), (page.name, name)


def test_every_option_is_in_the_manual() -> None:
    page = (ROOT / "docs/running.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`-([\w-]+)", page))
    assert [option.name for option in TABLE if option.name not in told] == []


def test_every_test_that_is_named_is_there() -> None:
    page = (ROOT / "docs/stratovirt.md").read_text(encoding="utf-8")
    named = re.findall(r"\b((?:unit|kvm|guest|compat)/[\w/]+\.py)(?:::(\w+))?", page)
    assert len(named) > 50
    for file, test in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {test}" in text, (file, test)


def test_what_works_has_a_test() -> None:
    page = (ROOT / "docs/stratovirt.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row[1].startswith("works") and ".py" not in row[-1]] == []
