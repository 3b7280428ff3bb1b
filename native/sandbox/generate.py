"""Makes programs.c and docs/seccomp.md of the table.

.venv/bin/python -m pyvirt.native.sandbox.generate
"""

from __future__ import annotations

import errno
from pathlib import Path

from .bpf import assemble
from .syscalls import NUMBERS
from .table import APART, LISTS, calls, rules

HERE = Path(__file__).parent
MANUAL = HERE.parents[1] / "docs/seccomp.md"
PROGRAMS = HERE / "programs.c"
_MARK = "<!-- From here on made by python -m pyvirt.native.sandbox.generate -->\n"


def programs() -> str:
    """Return the C file."""
    lines = [
        "/* Made of table.py by generate.py. */",
        '#include "sandbox/internal.h"',
        "",
        "#include <stddef.h>",
        "",
    ]
    for one in LISTS:
        lines.append(f"static const struct sock_filter {one.name}[] = {{")
        code = assemble(rules(one.entries))
        lines += [f"\t{{{i.code:#04x}, {i.jt}, {i.jf}, {i.k:#x}}}," for i in code]
        lines += ["};", ""]
    lines.append("const struct pv_sandbox_program pv_sandbox_programs[PV_SANDBOX_LISTS] = {")
    for one in LISTS:
        size = f"sizeof({one.name}) / sizeof({one.name}[0])"
        lines.append(f'\t[PV_SANDBOX_{one.name}] = {{"{one.name.lower()}", {one.name}, {size}}},')
    lines += ["};", "", "const unsigned short pv_sandbox_apart[] = {"]
    lines += [f"\t{NUMBERS[name]}, /* {name} */" for name in APART]
    lines += ["\t0,", "};", "", "static const char *const NAMES[] = {"]
    lines += [f'\t[{number}] = "{name}",' for name, number in NUMBERS.items()]
    lines += [
        "};",
        "",
        "const char *pv_sandbox_call_name(long number)",
        "{",
        "\tif (number < 0 || (size_t)number >= sizeof(NAMES) / sizeof(NAMES[0]))",
        "\t\treturn NULL;",
        "\treturn NAMES[number];",
        "}",
        "",
    ]
    return "\n".join(lines)


def reference() -> str:
    """Return the chapters about the lists."""
    everything = {call for one in LISTS for call in calls(one)}
    narrow = {call for one in LISTS[1:] for call in calls(one)}
    lines = [
        "## How long they are",
        "",
        f"{len(everything)} calls are on some list, {len(narrow)} on one but control.",
        "",
        "| list | threads | calls | instructions |",
        "|---|---|---|---|",
    ]
    for one in LISTS:
        length = len(assemble(rules(one.entries)))
        name = one.name.lower()
        lines.append(f"| [{name}](#{name}) | {one.who} | {len(calls(one))} | {length} |")
    for one in LISTS:
        lines += ["", f"## {one.name.lower()}", "", "| call | only with | for |", "|---|---|---|"]
        for entry in sorted(one.entries, key=lambda entry: entry.rule.call):
            shown = entry.shown
            if entry.rule.error:
                shown = f"{shown}: fails with {errno.errorcode[entry.rule.error]}".lstrip(": ")
            lines.append(f"| `{entry.rule.call}` | {shown} | {entry.why} |")
    return "\n".join(lines) + "\n"


def renewed(manual: str) -> str:
    """Return the manual with its chapters about the lists made anew."""
    written, _, _ = manual.partition(_MARK)
    return written + _MARK + "\n" + reference()


if __name__ == "__main__":
    PROGRAMS.write_text(programs(), encoding="utf-8")
    text = MANUAL.read_text(encoding="utf-8") if MANUAL.exists() else ""
    MANUAL.write_text(renewed(text), encoding="utf-8")
