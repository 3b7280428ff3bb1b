"""The kernel's selftests: each program of an installed tree is an item, run in a VM of its own.

The tree is what `make -C tools/testing/selftests install` makes. It goes to the guest as a disk;
the libraries and interpreters that its programs want come from this host.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from functools import cache as remember
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...errors import BackendError
from .. import cache
from ..guest.initramfs import is_static
from ..guest.tool import run
from .cases import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..guest.kernel import Kernel
    from ..plugin.subtests import Ktap
    from ..vm.vm import VM

LIST = "kselftest-list.txt"
TIMEOUT_S = 45.0  # kselftest/runner.sh
UNLIMITED_S = 3600.0  # for the programs that ask for no limit
MIB = 1 << 20
_IMAGE_TIMEOUT_S = 600.0
_LDD_TIMEOUT_S = 60.0
_ENTRY = re.compile(r"(?P<collection>[\w./-]+):(?P<program>[\w./+ -]+)")
_LIMIT = re.compile(r"(?m)^timeout=(\d+)\s*$")
_LIBRARY = re.compile(r"(?m)(/\S+) \(0x[0-9a-f]+\)$")
_PLACE = "/kselftest"
_INTERPRETERS_OURS = ("/bin/sh", "/usr/bin/env")  # the guest's own


def entries(text: str, collection: str = "", program: str = "") -> Iterator[tuple[str, str]]:
    """Return (collection, program) of each line of a list, of those wanted; UsageError."""
    for line in filter(None, map(str.strip, text.splitlines())):
        found = _ENTRY.fullmatch(line)
        if found is None or ".." in line.replace(":", "/").split("/") or line.startswith("/"):
            raise pytest.UsageError(f"{LIST}: {line[:80]!r} is not COLLECTION:PROGRAM")
        if collection in ("", found["collection"]) and program in ("", found["program"]):
            yield found["collection"], found["program"]


def limit(folder: Path) -> float:
    """Return for how many seconds a collection's programs may run."""
    settings = folder / "settings"
    found = _LIMIT.search(settings.read_text(errors="replace")) if settings.is_file() else None
    if found is None:
        return TIMEOUT_S
    return float(found[1]) or UNLIMITED_S


@remember
def image(tree: Path) -> Path:
    """Return an ext4 image of the tree, in the cache; BackendError."""
    state, size = hashlib.sha256(), 16 * MIB
    for path in sorted(tree.rglob("*")):
        info = path.lstat()
        facts = (path.relative_to(tree), info.st_mode, info.st_size, info.st_mtime_ns)
        state.update(repr(facts).encode())
        size += info.st_size + 8192

    def build(place: Path) -> None:
        with place.open("wb") as file:
            file.truncate(size // MIB * MIB * 5 // 4)
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-d", str(tree), str(place)]
        run(command, timeout=_IMAGE_TIMEOUT_S)

    return cache.entry(f"kselftest-{state.hexdigest()[:16]}.ext4", build)


@remember
def needs(tree: Path) -> dict[str, Path]:
    """Return what the tree's programs want of this host: libraries and interpreters."""
    found: dict[str, Path] = {}
    for path in sorted(tree.rglob("*")):
        if path.is_file() and os.access(path, os.X_OK):
            _add_needs(path, found)
    return found


def _add_needs(program: Path, found: dict[str, Path]) -> None:
    with program.open("rb") as file:
        head = file.read(256)
    if head.startswith(b"#!"):
        name = head[2:].split(b"\n")[0].split()[:1]
        interpreter = Path(os.fsdecode(name[0])) if name else Path("/")
        if str(interpreter) in found or str(interpreter) in _INTERPRETERS_OURS:
            return
        if interpreter.is_file():
            found[str(interpreter)] = interpreter.resolve()
            _add_needs(interpreter.resolve(), found)
    elif head.startswith(b"\x7fELF"):
        for library in _libraries(program):
            found.setdefault(str(library), library.resolve())


def _libraries(program: Path) -> list[Path]:
    """Return the shared libraries of a program, its loader among them; none for a static one."""
    if is_static(program):
        return []
    try:
        said = run(["ldd", str(program)], timeout=_LDD_TIMEOUT_S).decode()
    except BackendError:
        return []  # for another machine, or damaged: the guest will say so
    return [Path(name) for name in _LIBRARY.findall(said)]


def case(tree: Path, collection: str, program: str) -> Case:
    """Return the item of a program; of one that is not there the item fails, and boots nothing."""

    def test(vm_factory: Callable[..., VM], kernel: Kernel, ktap: Ktap) -> None:
        vm = vm_factory(
            disks=[f"{str(image(tree)).replace(',', ',,')},readonly=on"],
            files=needs(tree),
            modules=("ext4",) if kernel.modules is not None else (),
        )
        # A copy, for programs write beside themselves; collections within one share its files.
        outermost = collection.split("/", maxsplit=1)[0]
        vm.run(
            f"mkdir -p /mnt {_PLACE} && mount -t ext4 -o ro /dev/vda /mnt && cd /mnt && "
            f"for part in {outermost} kselftest; do [ ! -e $part ] || cp -a $part {_PLACE}; done",
            check=True,
        )
        command = f"cd {_PLACE}/{collection} && exec ./{shlex.quote(program)}"
        ktap.run(command, timeout=limit(tree / collection), vm=vm, plain=True)

    def missing() -> None:
        pytest.fail(f"{tree / collection / program}: not there; was it built?", pytrace=False)

    there = (tree / collection / program).is_file()
    return Case(f"{collection}:{program}", test if there else missing, keywords=(collection,))


def _check(tree: Path, wanted: list[tuple[str, str]]) -> None:
    """Refuse a tree of which whole collections are not there; UsageError.

    The list is written whatever could be built or copied, so that single programs may be missing.
    """
    there: dict[str, bool] = {}
    for collection, program in wanted:
        found = (tree / collection / program).is_file()
        there[collection] = there.get(collection, False) or found
    empty = [collection for collection, found in there.items() if not found]
    if empty:
        raise pytest.UsageError(
            f"--kselftest {tree}: none of the programs of {', '.join(empty)} is there, "
            f"only their names in {LIST}; the installation copies them with rsync: "
            "see that there is one (apt-get install rsync), that they were built, and install again"
        )


def collect(value: str) -> Iterator[Case]:
    """Return the items of DIR[:COLLECTION[:PROGRAM]]; UsageError."""
    folder, _, rest = value.partition(":")
    collection, _, program = rest.partition(":")
    tree = Path(folder).absolute()
    if not (tree / LIST).is_file():
        raise pytest.UsageError(f"--kselftest {folder}: there is no {LIST} in it; install there")
    wanted = list(entries((tree / LIST).read_text(errors="replace"), collection, program))
    if not wanted:
        raise pytest.UsageError(f"--kselftest {value}: {LIST} has no such test")
    _check(tree, wanted)
    for each in wanted:
        yield case(tree, *each)
