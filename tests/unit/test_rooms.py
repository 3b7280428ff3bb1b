"""The rooms of the house: imports run one way, and never in a circle.

Every import counts wherever it stands, for it ties two files together: at the top, in a function,
under TYPE_CHECKING. Three things are no import here:
- a module that is named by a string, as sub-commands are in cli/main.py: what loads it knows
  nothing else of it;
- the package that an import runs on its way to a module: an `__init__` counts where it is imported
  itself, and holds next to nothing;
- the top package, errors.py, files.py and state.py: anybody may import them, and they import
  nothing but one another.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from .test_packaging import NOT_SHIPPED

ROOT = Path(__file__).resolve().parents[2]
# The whole order: a room imports from itself and from those below it. What is in a folder that is
# not listed belongs to the one it is in.
ORDER = (
    "cli",
    "cli/server",
    "cli/jailer",
    "cli/options",
    "harness/collect",
    "harness/plugin",
    "harness/vm",
    "harness/judge",
    "harness/lab",
    "harness/agent",
    "harness/guest",
    "harness",  # what all of its rooms share
    "qmp",
    "vmm",
    "devices",
    "native",
)
SPLIT = ("cli", "harness")  # each folder of these is a room, and listed
FREE = {"errors", "files", "state", ""}

Imports = Mapping[str, Mapping[str, int]]  # of each module: those it imports, and in which line


def modules(root: Path) -> dict[str, Path]:
    """Return the files of the package by the dotted names of their modules within it."""
    found = {name: root / f"{name or '__init__'}.py" for name in FREE}
    for top in (init.parent for init in root.glob("*/__init__.py")):
        if top.name not in NOT_SHIPPED:
            for path in (*top.rglob("*.pyi"), *top.rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def targets(node: ast.ImportFrom | ast.Import, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the names within our package that a statement may import, longest first."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.partition(".")[0] == "pyvirt":
                yield alias.name.partition(".")[2]
        return
    module = node.module.split(".") if node.module else []
    if node.level:
        module = [*package[: len(package) - node.level + 1], *module]
    elif module[:1] == ["pyvirt"]:
        module = module[1:]
    else:
        return
    for alias in node.names:
        yield ".".join([*module, alias.name])


def imports(root: Path) -> Imports:
    """Return what each module imports."""
    known = modules(root)
    found: dict[str, dict[str, int]] = {}
    for name, path in known.items():
        parts = tuple(name.split(".")) if name else ()
        package = parts if path.name == "__init__.py" else parts[:-1]
        found[name] = {}
        for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            for target in targets(node, package):
                module = target if target in known else target.rpartition(".")[0]
                assert module in known, f"{path}:{node.lineno}: {target} is nowhere"
                if module not in {name, *FREE}:
                    found[name].setdefault(module, node.lineno)
    return found


def room(module: str) -> str:
    """Return the room of a module, "" when it is in none."""
    folders = module.replace(".", "/") + "/"
    return max((one for one in ORDER if folders.startswith(one + "/")), key=len, default="")


def upward(graph: Imports) -> list[str]:
    """Return a line for each import of a room above."""
    return [
        f"{module}:{line} imports {target}: {room(target)} is above {room(module)}"
        for module, found in graph.items()
        for target, line in found.items()
        if module not in FREE and ORDER.index(room(target)) < ORDER.index(room(module))
    ]


def circles(graph: Imports) -> list[str]:
    """Return a line for each import that closes a circle, in the order of a walk in depth."""
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            found.append(" > ".join([*way[way.index(module) :], module]))
        if module in done or module in way:
            return
        for target in graph[module]:
            visit(target, [*way, module])
        done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


@pytest.fixture(scope="module")
def graph() -> Imports:
    return imports(ROOT)


def test_every_module_is_in_a_room(graph: Imports) -> None:
    assert [module for module in graph if module not in FREE and not room(module)] == []


def test_every_room_is_listed() -> None:
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for top in SPLIT
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert folders == {one for one in ORDER if one.split("/")[0] in SPLIT}


def test_no_room_imports_from_one_above(graph: Imports) -> None:
    assert upward(graph) == []


def test_no_circle(graph: Imports) -> None:
    """What two files need of each other lives in a third, below both."""
    assert circles(graph) == []


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Return a package in which nothing imports anything."""
    for name in ("", "cli", "cli/options", "harness", "harness/vm", "qmp", "devices"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "__init__.py").touch()
    for name in (
        "errors",
        "files",
        "state",
        "cli/run",
        "cli/options/table",
        "harness/vm/vm",
        "qmp/table",
        "qmp/x",
    ):
        (tmp_path / f"{name}.py").touch()
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "from ..cli import run",
        "from ..cli.run import main",
        "import pyvirt.cli.run",
        "from pyvirt.cli.run import main",
        "def f():\n    from ..cli import run",
        "if TYPE_CHECKING:\n    from ..cli.run import Run",
    ],
)
def test_upward_import_is_found_wherever_it_stands(house: Path, text: str) -> None:
    (house / "qmp/table.py").write_text(text)
    line = text.count("\n") + 1
    assert upward(imports(house)) == [f"qmp.table:{line} imports cli.run: cli is above qmp"]


def test_upward_import_within_a_folder(house: Path) -> None:
    (house / "cli/options/table.py").write_text("from ..run import main\nfrom ...errors import E")
    (house / "harness/vm/vm.py").write_text("from ... import harness\nfrom ...qmp import table")
    expected = ["cli.options.table:1 imports cli.run: cli is above cli/options"]
    assert upward(imports(house)) == expected


def test_circle_is_found_wherever_it_stands(house: Path) -> None:
    (house / "qmp/table.py").write_text("def f():\n    from . import x")
    (house / "qmp/x.py").write_text("if TYPE_CHECKING:\n    from .table import TABLE")
    assert circles(imports(house)) == ["qmp.table > qmp.x > qmp.table"]


def test_import_of_nothing_is_no_import(house: Path) -> None:
    (house / "qmp/table.py").write_text("from ..gone.away import thing")
    with pytest.raises(AssertionError, match=r"table\.py:1: gone\.away\.thing is nowhere"):
        imports(house)
