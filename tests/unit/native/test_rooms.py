"""The C files use one another downward: what a file needs lies below it, in its room or under it.

Read from the text: what a file includes, and which file defines what it names.
"""

from __future__ import annotations

import graphlib
import re
from pathlib import Path

import pytest
from pyvirt.native.build import HEADERS_ALL, HERE, SOURCES

# Each room uses those of the lines before its own; "": beside the rooms.
LAYERS = (
    ("sandbox",),
    ("",),
    ("vcpu", "console", "iothread"),
    ("virtio",),
    ("balloon", "block", "net", "port", "rng", "vsock"),
)

COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
DEFINED = re.compile(
    r"^(?!static\b|typedef\b|extern\b)\w[^;{}=()]*?\b(pv_\w+)"
    r"(?:\([^;{}]*\)\n\{|(?:\[[^\]\n]*\])?\s*=)",
    re.MULTILINE,
)
DECLARED = re.compile(
    r"^(?!static\b|typedef\b|\t)\w[^;{}=()]*?\b(pv_\w+)\([^;{}]*?\)"
    r"(?:\s*__attribute__\(\(.*?\)\))?;",
    re.MULTILINE | re.DOTALL,
)

Graph = dict[str, set[str]]


def code(path: Path) -> str:
    return COMMENT_OR_STRING.sub("", path.read_text(encoding="utf-8"))


def includes(folder: Path, names: list[str]) -> Graph:
    return {name: set(INCLUDE.findall((folder / name).read_text("utf-8"))) for name in names}


def definitions(folder: Path, sources: list[str]) -> dict[str, str]:
    return {match[1]: name for name in sources for match in DEFINED.finditer(code(folder / name))}


def uses(folder: Path, sources: list[str]) -> Graph:
    """Return for each C file the others that define what it names."""
    home = definitions(folder, sources)
    return {
        name: {home[word] for word in re.findall(r"\bpv_\w+", code(folder / name)) if word in home}
        - {name}
        for name in sources
    }


def room(name: str) -> str:
    return name.rpartition("/")[0]


def circle(graph: Graph) -> list[str]:
    """Return the names along a circle, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        names: list[str] = error.args[1]
        return names[::-1]
    return []


def upward(graph: Graph) -> list[str]:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    return [
        f"{name} uses {other}"
        for name, others in graph.items()
        for other in sorted(others)
        if room(name) != room(other) and layer[room(name)] <= layer[room(other)]
    ]


def test_every_room_has_its_layer() -> None:
    assert {room(name) for name in (*SOURCES, *HEADERS_ALL)} == {
        name for names in LAYERS for name in names
    }


def test_every_declared_function_is_found() -> None:
    declared = {match[1] for name in HEADERS_ALL for match in DECLARED.finditer(code(HERE / name))}
    assert len(declared) > 100
    assert declared <= set(definitions(HERE, SOURCES))


def test_no_circle_of_files() -> None:
    assert circle(uses(HERE, SOURCES)) == []


def test_no_circle_of_headers() -> None:
    assert circle(includes(HERE, HEADERS_ALL)) == []


@pytest.mark.parametrize("graph", [uses(HERE, SOURCES), includes(HERE, SOURCES + HEADERS_ALL)])
def test_nothing_points_upward(graph: Graph) -> None:
    assert any(graph.values())
    assert upward(graph) == []


def test_a_circle_is_seen(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/a.c").write_text("int pv_a(void)\n{\n\treturn pv_b();\n}\n")
    (tmp_path / "net/b.c").write_text("struct pv_x *pv_b(int x,\n  int y)\n{\n\treturn pv_c;\n}\n")
    (tmp_path / "net/c.c").write_text("const int pv_c[] = {\n\t(int)pv_a };\n")
    found = circle(uses(tmp_path, ["net/a.c", "net/b.c", "net/c.c"]))
    assert set(found) == {"net/a.c", "net/b.c", "net/c.c"}
    assert found[0] == found[-1]


def test_what_a_comment_names_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text('/* pv_b */\nint pv_a(void)\n{\n\treturn *"pv_b";\n}\n')
    (tmp_path / "b.c").write_text("int pv_b(void)\n{\n\treturn pv_a();\n}\n")
    assert uses(tmp_path, ["a.c", "b.c"]) == {"a.c": set(), "b.c": {"a.c"}}


def test_an_upward_arrow_is_seen() -> None:
    assert upward({"virtio/irq.c": {"vcpu/memory.c", "net/net.c"}, "thread.c": {"vcpu/bus.c"}}) == [
        "virtio/irq.c uses net/net.c",
        "thread.c uses vcpu/bus.c",
    ]
    assert upward({"net/net.c": {"net/rx.c", "port/port.c"}}) == ["net/net.c uses port/port.c"]
