"""KUnit: the tests that are built into a kernel, run as it boots.

They run in one boot, each point a subtest; with --kunit-isolated each suite is an item and has a
boot of its own. Source: lib/kunit/executor.c.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .. import cache
from ..vm.config import Limits, VmConfig
from ..vm.vm import VM
from .cases import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..guest.kernel import Kernel
    from ..plugin.subtests import Ktap
    from ..vm.place import Place

BOOT_S = 300.0
# KUnit tells of its results at a level that a console does not show unless asked to.
_WORDS = "kunit.enable=1 loglevel=7"
LIST = f"{_WORDS} kunit.action=list"
_GLOB = re.compile(r"[\w*?.\[\]!-]+")
_STAMP = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[CT]\d+\])? ?")
_TEST = re.compile(r"([\w-]+)\.[\w-]+")
MARKS = (pytest.mark.kernel(config=["CONFIG_KUNIT=y"]), pytest.mark.vm_timeout(boot=BOOT_S))


def suites(log: str) -> list[str]:
    """Return the suites that a console names after a boot with LIST, each once."""
    lines = [_STAMP.sub("", line).strip() for line in log.splitlines()]
    start = next((i for i, line in enumerate(lines) if line.startswith("KTAP version")), len(lines))
    tests = filter(None, map(_TEST.fullmatch, lines[start:]))
    return list(dict.fromkeys(test[1] for test in tests))


def listed(kernel: Kernel, place: Place) -> list[str]:
    """Return the suites in a kernel, which boots for that once in the cache's life."""
    with kernel.image.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def build(entry: Path) -> None:
        entry.write_text("".join(f"{suite}\n" for suite in suites(_boot(kernel, place))))

    return cache.entry(f"kunit-{digest}.suites", build).read_text().split()


def _boot(kernel: Kernel, place: Place) -> str:
    """Boot with LIST; return what is on the console then."""
    config = VmConfig(cmdline=LIST, limits=Limits(boot=BOOT_S))
    with (
        tempfile.TemporaryDirectory(prefix="pyvirt-kunit-") as folder,
        VM(kernel, config, place, Path(folder)) as vm,
    ):
        return vm.start().console.text()


def case(glob: str, name: str) -> Case:
    """Return the item of the suites, or SUITE.TEST, that a pattern matches."""

    def test(vm_factory: Callable[..., VM], ktap: Ktap) -> None:
        vm = vm_factory(cmdline=f"{_WORDS} kunit.filter_glob={glob}")
        ktap.watch_console(vm=vm)

    return Case(name, test, MARKS)


def collect(glob: str, found: list[str] | None = None) -> Iterator[Case]:
    """Return one item for a pattern, or one for each of the suites `found`; UsageError."""
    if _GLOB.fullmatch(glob) is None:
        raise pytest.UsageError(f"--kunit {glob}: give a pattern such as 'list*' or suite.test")
    if found is None:
        yield case(glob, glob)
        return
    suite, dot, tests = glob.partition(".")
    for name in found:
        if fnmatchcase(name, suite):
            yield case(f"{name}{dot}{tests}", name)
