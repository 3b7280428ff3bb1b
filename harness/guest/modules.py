"""Which modules of a kernel to load, in which order.

Read from the files that depmod and the kernel's build leave in lib/modules/RELEASE:
modules.dep, modules.builtin, modules.softdep and modules.alias (see modules.dep(5), depmod(8)).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from ...errors import ConfigError


@dataclass(frozen=True, slots=True)
class Module:
    """One module to load: its path below lib/modules/RELEASE.

    A `soft` one is loaded for another's sake where the machine allows it (a faster checksum,
    say); it is no error when the kernel refuses it.
    """

    path: PurePosixPath
    soft: bool = False


def order(directory: Path, wanted: Sequence[str]) -> list[Module]:
    """Return the modules to load for `wanted`, each after those that it depends on.

    `directory` is lib/modules/RELEASE. Names may be written with - or _; what is built into
    the kernel is left out. Raises ConfigError for a name that this kernel does not have.
    """
    tree = _Tree(directory)
    chosen: dict[str, Module] = {}
    for name in wanted:
        if not tree.has(_key(name)):
            raise ConfigError(
                f"module {name}: the kernel {directory.name} has no such module; "
                f"{directory}/modules.dep lists those it has"
            )
    for name in wanted:
        _choose(tree, _key(name), chosen, soft=False, above=frozenset())
    return list(chosen.values())


def known(directory: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the names that a kernel has, as modules or built in."""
    tree = _Tree(directory)
    return tuple(name for name in names if tree.has(_key(name)))


def _choose(
    tree: _Tree, key: str, chosen: dict[str, Module], *, soft: bool, above: frozenset[str]
) -> None:
    """Add module `key` to `chosen`, after what it needs; `above` are those that need it."""
    if key in above or key not in tree.paths:
        return
    above |= {key}
    for other in tree.preferred(key):
        _choose(tree, other, chosen, soft=True, above=above)
    for other in tree.needed(key):
        _choose(tree, other, chosen, soft=soft, above=above)
    held = chosen.get(key)
    if held is None or (held.soft and not soft):
        # Assignment to a key already there keeps its place.
        chosen[key] = Module(PurePosixPath(tree.paths[key]), soft)


class _Tree:
    """The index files of one lib/modules/RELEASE, by module name with underscores."""

    def __init__(self, directory: Path) -> None:
        # Plain text: there are thousands, of which a few are wanted.
        self.paths: dict[str, str] = {}
        self._dependencies: dict[str, list[str]] = {}
        for words in _lines(directory / "modules.dep", required=True):
            path = words[0].removesuffix(":")
            key = _key_of(path)
            self.paths[key] = path
            self._dependencies[key] = words[1:]
        self._builtin = {_key_of(words[0]) for words in _lines(directory / "modules.builtin")}
        self._soft: dict[str, list[str]] = {}
        for words in _lines(directory / "modules.softdep"):
            self._soft.setdefault(_key(words[1]), []).extend(_before(words[2:]))
        self._directory = directory

    @cached_property
    def _aliases(self) -> dict[str, list[str]]:
        """Who bears a name that is no module's: the largest of the files, which few need."""
        found: dict[str, list[str]] = {}
        for words in _lines(self._directory / "modules.alias"):
            found.setdefault(_key(words[1]), []).append(_key(words[2]))
        return found

    def has(self, key: str) -> bool:
        return key in self.paths or key in self._builtin

    def needed(self, key: str) -> list[str]:
        """Return what must be loaded before `key`, what others of it need first.

        modules.dep lists all of them, those needed last first.
        """
        return [_key_of(path) for path in reversed(self._dependencies[key])]

    def preferred(self, key: str) -> list[str]:
        """Return what is better loaded before `key`; an alias stands for all who bear it."""
        found = []
        for name in self._soft.get(key, []):
            found += [name] if name in self.paths else self._aliases.get(name, [])
        return found


def _before(words: list[str]) -> Iterator[str]:
    """Yield the names after "pre:" of a softdep line."""
    before = False
    for word in words:
        if word.endswith(":"):
            before = word == "pre:"
        elif before:
            yield _key(word)


def _lines(path: Path, *, required: bool = False) -> Iterator[list[str]]:
    """Yield the words of each line that is not empty and no comment."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        if required:
            raise ConfigError(
                f"{path} is missing; run: depmod -b {path.parents[3]} {path.parent.name}"
            ) from None
        return
    for line in text.splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            yield words


def _key(name: str) -> str:
    return name.replace("-", "_")


def _key_of(path: str) -> str:
    return _key(path.rpartition("/")[2].partition(".ko")[0])
