"""Reports of a kernel about itself: what begins and ends each kind, and what is told of one.

The lines of a report here are messages of the kernel's log without what printk puts before them.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, NamedTuple

from .verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

_FRAMES = 5  # functions that make the fingerprint


class Splat(NamedTuple):
    """One report.

    `kind` is PANICKED, OOPSED, WARNED or HUNG. `title` has no addresses and no process ids;
    `fingerprint` is the same for reports of one kind from the same place. `mark` is where in the
    console's stream it begins (see ../vm/console.py).
    """

    kind: Verdict
    title: str
    lines: tuple[str, ...]
    mark: int
    fingerprint: str


class Head(NamedTuple):
    """A kind of report: how its first line begins (in ASCII), and what its last line matches."""

    start: str
    kind: Verdict
    end: str


_TRACE = r"---\[ end trace"
_TASK = r"\s*</TASK>"
_RULE = rf"={{20}}|{_TRACE}"
_PANIC = r"---\[ end Kernel panic"

# What the kernel calls the exceptions it dies of; an error code and a number follow.
_EXCEPTIONS = (
    "Oops|general protection fault|invalid opcode|double fault|divide error|int3|stack segment|"
    "segment not present|invalid TSS|alignment check|bounds|overflow|simd exception|"
    "kernel stack overflow|stack guard page|control protection fault"
)
# Often the second line of a report, behind one that says what was done wrong.
DEATH = Head(rf"(?:{_EXCEPTIONS})\b[ -~]{{0,120}}?: [0-9a-f]{{4}} \[#", Verdict.OOPSED, _TRACE)

# The first that fits counts.
HEADS = (
    Head(r"Kernel panic - not syncing", Verdict.PANICKED, _PANIC),
    Head(r"VFS: Unable to mount root", Verdict.PANICKED, _PANIC),
    DEATH,
    Head(r"BUG: (?:unable to handle|kernel NULL pointer)", Verdict.OOPSED, _TRACE),
    Head(r"BUG: (?:\w+ )?stack guard page", Verdict.OOPSED, _TRACE),
    Head(r"kernel BUG at", Verdict.OOPSED, _TRACE),
    Head(r"PANIC: double fault", Verdict.OOPSED, _TRACE),
    Head(r"Unhandled fault", Verdict.OOPSED, _TRACE),
    Head(r"BUG: (?:soft lockup|workqueue lockup)", Verdict.HUNG, _TASK),
    Head(r"Watchdog detected hard LOCKUP", Verdict.HUNG, _TASK),
    Head(r"INFO: rcu\w* (?:self-)?detected (?:expedited )?stall", Verdict.HUNG, _TASK),
    Head(r"INFO: task [!-~]+ blocked for more than", Verdict.HUNG, _TASK),
    Head(r"BUG: K[A-Z]+: ", Verdict.WARNED, _RULE),
    Head(r"UBSAN: ", Verdict.WARNED, _RULE),
    Head(r"BUG: ", Verdict.WARNED, rf"{_TASK}|{_RULE}"),
    # Other words behind WARNING: and INFO: are news, not faults.
    Head(r"WARNING: (?:CPU: \d|[!-~]+:\d+ at )", Verdict.WARNED, _TRACE),
    Head(
        r"WARNING: (?:possible |suspicious |inconsistent |bad unlock|held lock|lock held|"
        r"locking bug|[Nn]ested lock|[!-~]+-safe -> |kernel stack |stack recursion)",
        Verdict.WARNED,
        _TASK,
    ),
    Head(r"INFO: (?:possible |suspicious |inconsistent |trying to reg)", Verdict.WARNED, _TASK),
    # It lasts as long as its lines are indented.
    Head(r"unreferenced object 0x", Verdict.WARNED, r"(?! |unref)"),
    Head(r"ref_tracker: [!-~]+ has \d+/\d+ users", Verdict.WARNED, _TASK),
    # Without its agent a guest is of no use; of other programs it is no fault of the kernel's.
    Head(
        r"Out of memory: Killed process \d+ \((?:init|agent|pyvirt-agent)\)",
        Verdict.WARNED,
        r"Out of memory",
    ),
)

# What goes out of a title, in this order: the same fault is to have the same one.
_SCRUBS = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r": [0-9a-f]{4} \[#.*", ""),
        (r",? (?:maybe |probably )?for (?:non-canonical )?address.*|, address:.*", ""),
        (r"\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])?", ""),
        (r"CPU: \d+ (?:UID: \d+ )?PID: \d+ |, CPU#\d+.*| pfn:\S+| \(stack is.*|@[0-9a-f]+\b", ""),
        (r"(?i)\b(cpu)(?:#| )\d+", r"\1"),
        (r" for (?:more than )?\d+ ?s(?:econds)?\b", ""),
        (r"\[([^][]+):\d+\]", r"[\1]"),
        (r"\b(task [^\s:]+):\d+", r"\1"),
        (r"([Pp]rocess) \d+\b", r"\1"),
        (r"/\d+/(?:0x)?[0-9a-f]+$", ""),
        (r"(?: at)? \b(?:0x)?[0-9a-f]{9,16}\b", ""),
        (r"[\s:.]+$", ""),
    )
)
_FRAME = re.compile(r"(\? )?([A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+")
_RIP = re.compile(r"RIP: \w+:([A-Za-z_][\w.]*)\+0x")
# The functions that report, and those at the root of every stack, tell nothing of the place.
_NOT_A_PLACE = re.compile(
    r"(?:dump_stack|show_stack|show_trace|panic$|__warn|report_bug|handle_bug|exc_|asm_|die|__die|"
    r"oops_|page_fault_oops|kernelmode_fixup|bad_area|__bad_area|do_user_addr_fault|do_trap|"
    r"do_error_trap|kasan_|__kasan|__asan|print_|check_noncircular|mark_lock|__lock_acquire|"
    r"lock_acquire|lockdep_|__might_|__schedule_bug|watchdog_|__ubsan|ubsan_|ret_from_fork|"
    r"entry_|do_syscall_|sysvec_)"
)
_PARTS = re.compile(r"\.(?:isra|constprop|part|cold|llvm)\b.*")


def title(message: str, lines: Sequence[str] = ()) -> str:
    """Return the title for a report that begins with `message`.

    It names the function where the processor was when `message` does not and `lines` do.
    """
    for pattern, by in _SCRUBS:
        message = pattern.sub(by, message)
    place = next((found[1] for line in lines if (found := _RIP.search(line))), None)
    return message if place is None or place in message else f"{message} in {place}"


def fingerprint(kind: Verdict, text: str, lines: Sequence[str]) -> str:
    """Return 12 hexadecimal digits for a report with the title `text`."""
    places: list[str] = []
    for line in lines:
        found = _FRAME.search(line)
        if found is None or found[1]:
            continue
        name = _PARTS.sub("", found[2])
        if not _NOT_A_PLACE.match(name) and name not in places[-1:]:
            places.append(name)
        if len(places) == _FRAMES:
            break
    return hashlib.sha256("\n".join([kind, *(places or [text])]).encode()).hexdigest()[:12]
