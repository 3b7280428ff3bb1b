"""`pyvirt man`: the manual pages pyvirt(1) and pyvirt-run(1), as man(7) has them."""

from __future__ import annotations

import os
import re
import sys
import time

from .. import __version__
from ..errors import ConfigError
from . import grammar, usage
from .main import COMMANDS
from .options import syntax
from .options.help import STATUSES, groups

USAGE = """\
usage: pyvirt man [run]

Prints the manual page pyvirt(1), or pyvirt-run(1), for man(1): pyvirt man run | man -l -
"""
_OF_RUN = "run"
DESCRIPTION = (
    (
        "Boots a guest on KVM, without firmware, and stays with it to its end. Without "
        "-kernel that is a small Debian guest, to a shell."
    ),
    (
        "The guest's console is on stdin and stdout, and only that; messages go to stderr. On a "
        "terminal the guest gets every key but Ctrl-A: Ctrl-A X ends it, Ctrl-A H tells more."
    ),
    (
        "Where this host has no KVM that runs the guest, it runs in an emulated machine that has, "
        "the nested lab, with the same files, terminal and exit status."
    ),
)
HOW_TO_WRITE = (
    "Each option may be written with one dash or two; its value follows as the next word, or after "
    "= (only so when it begins with a dash). Brackets hold what may be left out, bars separate "
    "what excludes each other; words in capitals stand for values. A comma within a value is "
    "written twice."
)
_ENVIRONMENT = {
    "PYVIRT_LOG_LEVEL": "What is told on stderr: error, warning (default), info or debug.",
    "PYVIRT_SERVE": "The socket of a pyvirt serve, which starts machines for pyvirt run.",
    "PYVIRT_CACHE": "Where kernels and images are kept, in place of pyvirt in XDG_CACHE_HOME.",
    "XDG_CACHE_HOME": "As of the XDG base directories; ~/.cache by default.",
    "XDG_RUNTIME_DIR": "Where running machines are listed, for pyvirt ps; else below /tmp.",
}
_FILES = {
    "/dev/kvm": "The host's KVM; its user may read and write it.",
    "/dev/net/tun": "Where taps come from, for -net and -netdev tap.",
    "/dev/vhost-net, /dev/vhost-vsock": "The host kernel's data paths, where asked for.",
    "~/.cache/pyvirt": "Kernels, images and the nested lab, made on first use.",
}
# A text, and what to type; `vmlinux` and `root.img` are in the working directory.
EXAMPLES = (
    (
        "A kernel with two processors and 512 MiB, its console on this terminal:",
        ("pyvirt run -kernel vmlinux -smp 2 -m 512",),
    ),
    (
        "The same with a disk, which is the guest's /dev/vda and stays as it is:",
        (
            "pyvirt run -kernel vmlinux -disk root.img,readonly=on \\",
            '    -append "console=ttyS0 root=/dev/vda ro"',
        ),
    ),
    (
        "In the background, with a monitor; then ask the monitor how it is, and end it:",
        (
            "pyvirt run -kernel vmlinux -name web -daemonize -pidfile web.pid \\",
            "    -qmp unix:web.sock,server,nowait",
            "pyvirt qmp web.sock query-status",
            "pyvirt qmp web.sock quit",
        ),
    ),
    (
        "Keep a command line in a file, and run that:",
        (
            "pyvirt run -kernel vmlinux -m 256 -print-config >machine.toml",
            "pyvirt run -config machine.toml",
        ),
    ),
)


def _escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti")
    text = text.replace("^", "\\(ha").replace("`", "\\(ga").replace('"', "\\(dq")
    return "\\&" + text if text.startswith((".", "'")) else text


def _sentence(text: str) -> str:
    first = text.partition(" ")[0]
    if first.rstrip(",;").islower():  # bzImage stays
        text = text[:1].upper() + text[1:]
    return _escape(text if text.endswith((".", ":")) else f"{text}.")


def _bold(text: str) -> str:
    return f"\\fB{_escape(text)}\\fR"


def _value(text: str) -> str:
    """Return an option's value; it may be broken before a member."""
    return f"\\fI{_escape(text).replace('[,', chr(92) + ':[,')}\\fR"


def _term(heads: list[str], text: str) -> list[str]:
    lines = [".TP", heads[0]]
    for head in heads[1:]:
        lines += [".TQ", head]
    return [*lines, _sentence(text)]


def _listed(terms: dict[str, str]) -> list[str]:
    return [line for name, text in terms.items() for line in _term([_bold(name)], text)]


def _literal(lines: tuple[str, ...]) -> list[str]:
    return [".RS 4", ".EX", *map(_escape, lines), ".EE", ".RE"]


def _paragraphs(texts: tuple[str, ...]) -> list[str]:
    lines = [line for text in texts for line in (".PP", _escape(text))]
    return lines[1:]


def _head(name: str, what: str) -> list[str]:
    # Of the build that is to be repeatable, or of this version's files.
    made = os.environ.get("SOURCE_DATE_EPOCH") or os.stat(__file__).st_mtime
    date = time.strftime("%Y-%m-%d", time.gmtime(float(made)))
    title = f'.TH {name.upper()} 1 {date} "pyvirt {__version__}" "User Commands"'
    return [title, ".nh", ".ad l", ".SH NAME", f"{_escape(name)} \\- {what}"]


def page_of_run() -> str:
    """Return pyvirt-run(1)."""
    lines = _head("pyvirt-run", "boot a guest on KVM")
    lines += [".SH SYNOPSIS", f"{_bold('pyvirt run')} [\\fIOPTION\\fR]..."]
    lines += [".SH DESCRIPTION", *_paragraphs(DESCRIPTION)]
    lines += [".SH OPTIONS", _escape(HOW_TO_WRITE)]
    for title, options in groups():
        lines.append(f".SS {title}")
        for option in options:
            name = _bold(f"-{option.name}")
            if option.value.startswith("[="):
                heads = [f"{name}{_value(option.value)}"]
            else:
                forms = syntax.texts(option.value)
                heads = [f"{name} {_value(form)}" if form else name for form in forms]
            lines += _term(heads, option.doc)
    lines += [".SH EXIT STATUS", *_listed(STATUSES)]
    lines += [".SH ENVIRONMENT", *_listed(_ENVIRONMENT), ".SH FILES", *_listed(_FILES)]
    lines.append(".SH EXAMPLES")
    for number, (text, typed) in enumerate(EXAMPLES):
        lines += [".PP"] * (number > 0) + [_escape(text), *_literal(typed)]
    lines += [".SH SEE ALSO", ".BR pyvirt (1),", ".BR virtiofsd (1),", ".BR passt (1)"]
    return "\n".join(lines) + "\n"


def page_of_all() -> str:
    """Return pyvirt(1)."""
    lines = _head("pyvirt", "a KVM microVM monitor")
    lines += [".SH SYNOPSIS", f"{_bold('pyvirt')} \\fICOMMAND\\fR [\\fIOPTION\\fR]..."]
    lines += [".SH DESCRIPTION", "Runs virtual machines, and what belongs to them."]
    lines += [f"{_bold('pyvirt')} \\fICOMMAND\\fR {_bold('-help')} tells of one command,"]
    lines += [f"{_bold('pyvirt version')} which version this is.", ".SH COMMANDS"]
    lines += _listed({f"pyvirt {name}": text for name, text in COMMANDS.items()})
    for name, text in grammar.usages().items():
        lines += [f".SS pyvirt {_escape(name)}", *_literal(tuple(_plain(text)))]
    lines += [".SH ENVIRONMENT", *_listed(_ENVIRONMENT)]
    lines += [".SH SEE ALSO", ".BR pyvirt\\-run (1)"]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> list[str]:
    """Return the lines of a usage text."""
    return re.sub(r"\n{2,}", "\n\n", text.strip()).split("\n")


def main(argv: list[str]) -> int:
    """Print a page; return the exit status."""
    if usage.shown(USAGE, argv):
        return 0
    if argv not in ([], [_OF_RUN]):
        raise ConfigError(
            f"man {' '.join(argv)}: no such page; there are pyvirt man, pyvirt man run"
        )
    sys.stdout.write(page_of_run() if argv else page_of_all())
    return 0
