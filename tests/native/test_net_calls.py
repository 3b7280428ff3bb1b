"""What packets cost a NIC's thread in system calls, by strace: those of fixed bursts are exact."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from pyvirt.native.build import HERE
from pyvirt.native.program import build

PROGRAM = HERE / "tests/net/count_calls.c"
BURSTS = 16
RUN_SECONDS = 120
CALL = re.compile(r"(?:<\.\.\. )?(\w+)(?:\(| resumed)")


def calls(trace: str) -> Counter[str]:
    """Return the calls that the NIC's thread came back from between the two marks."""
    named = re.search(r'^(\d+) +prctl\(PR_SET_NAME, "net', trace, re.MULTILINE)
    assert named, "no thread of a NIC"
    between = re.split(r"^\d+ +getppid\(.*$", trace, flags=re.MULTILINE)[1]
    found: Counter[str] = Counter()
    looks = False
    for line in re.findall(rf"^{named[1]} +(.*)$", between, re.MULTILINE):
        call = CALL.match(line)
        if not call or line.endswith("<unfinished ...>"):
            continue
        # After a second in which nothing came it looks whether the tap is still there.
        looked, looks = looks, call[1] == "epoll_wait" and line.endswith(" = 0")
        if not looks and not (looked and call[1] == "epoll_ctl"):
            found[call[1]] += 1
    return found


@pytest.mark.parametrize(
    ("way", "packets", "each"),
    [
        # A wait, the packets, an interrupt.
        ("out", 1, {"epoll_wait": 1, "pwritev2": 1, "write": 1}),
        ("out", 8, {"epoll_wait": 1, "pwritev2": 8, "write": 1}),
        ("gone", 8, {"epoll_wait": 1, "write": 1}),
        ("in", 1, {"epoll_wait": 1, "preadv2": 1, "write": 1}),
        ("starved", 8, {"epoll_wait": 1, "preadv2": 8, "write": 1}),
    ],
)
def test_a_burst_takes_a_call_for_each_packet_and_two(
    way: str, packets: int, each: dict[str, int], tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    program = [str(build(PROGRAM, "plain")), way, str(packets), str(BURSTS)]
    subprocess.run(
        ["strace", "-f", "-qq", "-o", str(trace), *program], check=True, timeout=RUN_SECONDS
    )
    expected = Counter({name: count * BURSTS for name, count in each.items()})
    if way == "in":
        expected["preadv2"] += BURSTS // 8  # a look for another one, now and then
    assert calls(trace.read_text(encoding="utf-8")) == expected
