"""kvm-unit-tests: the sections of unittests.cfg as items, each a small kernel under pyvirt.

Sources: kvm-unit-tests' scripts/common.bash, scripts/runtime.bash and lib/report.c.
"""

from __future__ import annotations

import re
import select
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ...errors import PyvirtError
from ..plugin.ktap import (
    BAD,
    ERROR,
    FAILED,
    LINES_MAX,
    PASSED,
    POINTS_MAX,
    SKIPPED,
    XFAILED,
    Lines,
    Point,
    printable,
)
from ..vm.fork_server import Process, read_file
from . import kvm_unit_params
from .cases import Case
from .kvm_unit_params import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from ..plugin.subtests import Ktap
    from ..vm.place import Place
    from .kvm_unit_expected import Expected

TIMEOUT_S = 90.0
_SKIPPED = (77, 77 >> 1)  # the second for QEMU, which makes it the first
_TIMEOUT, _ABORT, _SIGNALLED = 124, 127, 128
_ONLINE = "/sys/devices/system/cpu/online"
_CLOSE_S = 10.0
_CHUNK = 1 << 16
_TAIL = 20

_HEADING = re.compile(r"\[(.+)\]\s*")
_MEMBER = re.compile(r"(\w+) *= *(.*?)\s*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_REPORT = re.compile(r"(PASS|FAIL|SKIP|XFAIL|XPASS|ABORT): (.*)")
_EXIT = re.compile(r"EXIT: STATUS=(\d{1,9})")
_OUTCOMES = {
    "PASS": (PASSED, ""),
    "FAIL": (FAILED, ""),
    "SKIP": (SKIPPED, ""),
    "XFAIL": (XFAILED, ""),
    "XPASS": (FAILED, "passed against expectation"),
    "ABORT": (ERROR, "aborted"),
}
# What a kernel needs that nothing in its section tells.
_NEEDS = {
    "s3.flat": "it needs ACPI's sleep S3: a FACS, PM1a registers and an RTC, which are not here",
}


class Section(NamedTuple):
    """A section of unittests.cfg; members that are not there are ""."""

    name: str
    members: dict[str, str]
    checks: tuple[str, ...]  # PATH=VALUE each

    def get(self, name: str) -> str:
        """Return a member."""
        return self.members.get(name, "")

    @property
    def groups(self) -> list[str]:
        """Return the groups that it belongs to."""
        return self.get("groups").split()


def parse(text: str) -> list[Section]:
    """Return the sections of a unittests.cfg; what is no member is passed over, as by bash."""
    sections: list[Section] = []
    for line in text.splitlines():
        heading, member = _HEADING.fullmatch(line), _MEMBER.fullmatch(line)
        if heading is not None:
            sections.append(Section(heading[1], {}, ()))
        elif member is not None and sections:
            name, value = member[1], member[2]
            if name == "check":
                sections[-1] = sections[-1]._replace(checks=(*sections[-1].checks, *value.split()))
            else:
                sections[-1].members[name] = value
    return sections


def seconds(text: str) -> float:
    """Return a duration such as 90s or 2m in seconds; the default for "" and what is none."""
    found = _DURATION.fullmatch(text)
    if found is None or float(found[1]) == 0:
        return TIMEOUT_S
    return float(found[1]) * _UNITS[found[2]]


def parameters(section: Section) -> Run:
    """Return what QEMU's parameters of a section mean for pyvirt."""
    text = section.get("extra_params") or section.get("qemu_params")
    return kvm_unit_params.read(text, section.get("test_args"))


def unfit(section: Section, arch: str, read: Callable[[str], str | None]) -> str:
    """Return why a section is not to be run, "" if it is.

    `read` returns the text of a file where the VMs run, None where there is none.
    """
    if "nodefault" in section.groups:
        return "not run by default"
    if section.get("arch") not in ("", arch):
        return f"for {section.get('arch')}"
    if section.get("accel") not in ("", "kvm"):
        return f"for accel {section.get('accel')}"
    for check in section.checks:
        path, _, value = check.partition("=")
        text = read(path) if path.startswith("/") else None
        found = "not there" if text is None else text.strip()
        if found != value:
            return f"{path} is {found}, not {value}"
    if section.get("file") in _NEEDS:
        return _NEEDS[section.get("file")]
    return parameters(section).unfit


class Log:
    """What a kernel prints, in lib/report.c's way; bounded whatever comes."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.tail: list[str] = []
        self.summary = ""
        self.status: int | None = None  # as a kernel says that has no other way to tell it
        self._lines = Lines()
        self._since: list[str] = []

    def feed(self, data: bytes) -> None:
        """Take bytes from the serial port."""
        for line in self._lines.feed(data):
            self._take(printable(line))

    def end(self) -> None:
        """Take the last line."""
        for line in self._lines.end():
            self._take(printable(line))

    def _take(self, line: str) -> None:
        self.tail = [*self.tail[-_TAIL + 1 :], line]
        self._since = [*self._since[-LINES_MAX + 1 :], line]
        report, ended = _REPORT.fullmatch(line), _EXIT.fullmatch(line)
        if report is not None and len(self.points) < POINTS_MAX:
            outcome, reason = _OUTCOMES[report[1]]
            number = len(self.points) + 1
            self.points.append(Point(number, report[2], outcome, reason, tuple(self._since)))
            self._since = []
        elif line.startswith("SUMMARY: "):
            self.summary = line.removeprefix("SUMMARY: ")
        elif ended is not None:
            self.status = int(ended[1]) >> 1


def watch(process: Process, timeout: float) -> tuple[int | None, Log, str]:
    """Read until the monitor ends; return its status (None: not in time), log and messages."""
    log, messages = Log(), bytearray()
    console, errors = process.streams["console"], process.streams["messages"]
    open_streams = [console, errors]
    until = time.monotonic() + timeout
    while open_streams:
        ready = select.select(open_streams, [], [], max(0.0, until - time.monotonic()))[0]
        if not ready or time.monotonic() > until:
            log.end()
            return None, log, _text(messages)
        for stream in ready:
            try:
                data = stream.recv(_CHUNK)
            except OSError:
                data = b""
            if not data:
                open_streams.remove(stream)
            elif stream is console:
                log.feed(data)
            else:
                messages += data
                del messages[:-_CHUNK]
    log.end()
    if not process.wait(_CLOSE_S) or process.status is None:
        raise PyvirtError(f"pyvirt: {process.error or 'its end was not told'}")
    return process.status, log, _text(messages)


def _text(messages: bytearray) -> str:
    return printable(messages.decode(errors="replace")).strip()


def judge(status: int | None, log: Log, messages: str, timeout: float) -> None:
    """End the test as the kernel did."""
    if status is None:
        problem = f"timeout: not within {timeout:g} s"
    else:
        status = log.status if status == 0 and log.status is not None else status
        if status == 0:
            return
        if status in _SKIPPED:
            pytest.skip(log.summary or f"status {status}")
        problem = _problem(status)
    said, _, more = messages.removeprefix("pyvirt: ").partition("\n")
    title = ": ".join(filter(None, (problem, said, log.summary)))
    pytest.fail("\n".join(filter(None, (title, *log.tail, more))), pytrace=False)


def _problem(status: int) -> str:
    if status == _TIMEOUT:
        return "timeout"
    if status == _ABORT:
        return "aborted"
    if status < 0 or status >= _SIGNALLED:
        return f"ended by signal {-status if status < 0 else status - _SIGNALLED}"
    return f"status {status}"


def environment(run: Run, vcpus: int) -> str:
    """Return what kernels take from their module in place of QEMU's fw_cfg."""
    megabytes = run.memory.upper().removesuffix("M")
    if megabytes.endswith("G"):
        megabytes = str(int(megabytes[:-1]) << 10)
    return f"NR_CPUS={vcpus}\nMEMSIZE={megabytes}\nMEMLIMIT={megabytes}\nBOOTLOADER=0\n"


def words(kernel: Path, run: Run, vcpus: int, module: Path) -> list[str]:
    """Return the words for `pyvirt run`."""
    return [
        *("-accel", "kvm", "-smp", str(vcpus), "-m", run.memory, "-serial", "stdio"),
        *("-kernel", str(kernel), f"-append={run.cmdline}", "-initrd", str(module)),
        *("-device", "pc-testdev", *run.words),
    ]


def vcpus(text: str, read: Callable[[str], str | None]) -> int:
    """Return the number that `smp` gives; all of the processors where the VMs run for $MAX_SMP.

    `read` is as for `unfit`.
    """
    if text.isdecimal():
        return int(text)
    ranges = re.findall(r"(\d+)(?:-(\d+))?", read(_ONLINE) or "")
    return sum(int(last or first) - int(first) + 1 for first, last in ranges) or 1


def case(section: Section, folder: Path, arch: str, expected: Expected | None = None) -> Case:
    """Return the item of a section; a failure that is expected is one for pytest, too."""
    why = expected.why if expected is not None and expected.outcome == FAILED else None

    def test(tmp_path: Path, ktap: Ktap, vm_place: Place, vm_timeout_scale: float) -> None:
        def read(path: str) -> str | None:
            return read_file(vm_place.server(), path)

        reason = unfit(section, arch, read)
        if reason:
            pytest.skip(reason)
        kernel = folder / section.get("file")
        if not kernel.is_file():
            pytest.fail(f"{kernel}: there is no such file; run make", pytrace=False)
        run, count = parameters(section), vcpus(section.get("smp") or "1", read)
        limit = seconds(section.get("timeout")) * vm_timeout_scale
        module = tmp_path / "environment"
        module.write_text(environment(run, count))
        process = Process(
            vm_place.server(),
            words(kernel, run, count, module),
            {"console": (0, 1), "messages": (2,)},
        )
        try:
            status, log, messages = watch(process, limit)
        finally:
            process.close()
        ktap.report(log.points if why is None else [_known(point, why) for point in log.points])
        judge(status, log, messages, limit)

    marks = () if why is None else (pytest.mark.xfail(reason=why, strict=False),)
    return Case(section.name, test, marks, tuple(section.groups))


def _known(point: Point, why: str) -> Point:
    return point._replace(outcome=XFAILED, reason=why) if point.outcome in BAD else point


def collect(folder: Path, expected: Mapping[str, Expected]) -> Iterator[Case]:
    """Return the items of a built source tree, or of its folder x86; UsageError."""
    place = next((p for p in (folder / "x86", folder) if (p / "unittests.cfg").is_file()), None)
    if place is None:
        raise pytest.UsageError(f"--kvm-unit-tests {folder}: there is no x86/unittests.cfg in it")
    config = place.parent / "config.mak"
    found = re.search(r"(?m)^ARCH=(\w+)", config.read_text() if config.is_file() else "")
    arch = found[1] if found is not None else "x86_64"
    for section in parse((place / "unittests.cfg").read_text(errors="replace")):
        yield case(section, place, arch, expected.get(section.name))
