"""Root file systems for guests: a small Debian as an ext4 image, made without mounting anything.

Two entries of the cache: the tree, as an archive that any size of image is made from, named for
the suite, the recipe and the versions of all packages in it; and the image, for the tree, its
size and the recipe. A request keeps the versions with which it was first answered until it is
made with `renew`.

Root is not needed where user namespaces can be had and the user has subordinate ids
(/etc/subuid and /etc/subgid).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from ...errors import BackendError, ConfigError
from .. import cache
from ..progress import Progress
from . import packages as debian
from .tool import PACKAGES as PACKAGE_OF
from .tool import run, run_watched

SUITE = "bookworm"
MIB = 1 << 20
SIZE = 2048 * MIB
SIZE_MIN = 64 * MIB
# Beside the essential packages, which hold a shell and the usual tools.
BASE = ("iproute2", "login", "passwd", "usr-is-merged")
# A package that is an init keeps the default one out.
INIT = "sysvinit-core"
INITS = frozenset({INIT, "systemd-sysv", "runit-init"})
# What measures a guest's disks and networks.
MEASURE = ("fio", "iperf3")
LABEL = "root"

# To be raised when this file changes what comes out.
RECIPE = "1"
HOOK = Path(__file__).with_name("rootfs.sh")
EXT4 = Path(__file__).with_name("ext4.sh")
# No file of the tree is younger: 2023-06-10, when bookworm was released. Not 0, which would have
# the guest ask for a new password at once.
EPOCH = "1686355200"
# A tree that has the directories of a merged /usr needs no program to merge it.
MERGED_USR = (
    'cd "$1" && mkdir -p usr/bin usr/sbin usr/lib usr/lib64 '
    "&& ln -s usr/bin usr/sbin usr/lib usr/lib64 ."
)
DPKG_OPTIONS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
    # The tree is thrown away if this machine goes down.
    "force-unsafe-io",
)
TOOLS = ("mmdebstrap", "mke2fs", "debugfs", "zstd")
QUERY_TIMEOUT_S = 60.0
BUILD_TIMEOUT_S = 1800.0
IMAGE_TIMEOUT_S = 600.0
CHUNK = 1 << 20

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_STEP = re.compile(rb"^(?:Get:\d|Unpacking |Setting up )", re.MULTILINE)
_INSTALLED = re.compile(r"^Inst (\S+) \((\S+) .*\[(\S+)\]\)", re.MULTILINE)


def build(
    packages: Sequence[str] = (), *, suite: str = SUITE, size: int = SIZE, renew: bool = False
) -> Path:
    """Return an ext4 image of `size` bytes with Debian `suite` and `packages`, made if need be.

    The guest boots to a login prompt on ttyS0, where root needs no password. The image belongs
    to the cache: give it to a guest read-only, or a `copy` of it. `renew` looks for newer
    versions than the cache has.

    Raises ConfigError for a suite or package that the machine's sources don't have and for a
    size that is too small, BackendError when a tool is missing or fails.
    """
    if size < SIZE_MIN or size % MIB:
        raise ConfigError(f"size {size}: give a whole number of MiB, at least {SIZE_MIN // MIB}M")
    chosen = _choose(packages)
    pin = f"rootfs-{suite}-{cache.digest(_recipe(), *chosen)}"
    tree = cache.named(pin, lambda: _tree(suite, chosen), renew=renew)
    name = f"{tree.name.partition('.tar')[0]}-{cache.digest(EXT4.read_bytes())[:8]}"
    return cache.entry(f"{name}-{size // MIB}M.ext4", lambda place: _make_image(tree, place, size))


def copy(image: Path, place: Path) -> None:
    """Copy an image to the file `place`, holes as holes. Raises OSError."""
    with image.open("rb") as source, place.open("wb") as target:
        size = os.fstat(source.fileno()).st_size
        os.truncate(target.fileno(), size)
        start = 0
        while start < size:
            try:
                start = os.lseek(source.fileno(), start, os.SEEK_DATA)
            except OSError:
                # ENXIO: a hole up to the end.
                break
            end = os.lseek(source.fileno(), start, os.SEEK_HOLE)
            start = _copy_range(source.fileno(), target.fileno(), start, end)


def _copy_range(source: int, target: int, start: int, end: int) -> int:
    while start < end:
        data = os.pread(source, min(CHUNK, end - start), start)
        if not data:
            break
        start += os.pwrite(target, data, start)
    return end


def _choose(wanted: Sequence[str]) -> list[str]:
    """Return the names of all packages to ask for, sorted, each once."""
    for name in wanted:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"package {name}: no name of a package; give one such as openssh-server"
            )
    init = set() if INITS.intersection(wanted) else {INIT}
    return sorted({*BASE, *init, *wanted})


def _recipe() -> str:
    """Return a digest of all that the tree is made from, but the packages."""
    return cache.digest(RECIPE, HOOK.read_bytes(), EPOCH, MERGED_USR, *DPKG_OPTIONS)


def _tree(suite: str, names: Sequence[str]) -> Path:
    """Return the cache entry of the tree with the packages that the lists now offer."""
    _check_tools()
    for name in names:
        debian.candidate(name)
    sources = _sources(suite)
    installed = _resolve(sources, names)
    entry = f"rootfs-{suite}-{cache.digest(_recipe(), *installed)}.tar.zst"
    return cache.entry(
        entry, lambda place: _make_tree(place, suite, sources, names, len(installed))
    )


def _sources(suite: str) -> list[str]:
    """Return those of the machine's apt sources that are of `suite`, its updates included."""
    shown = run(
        [
            *("apt-get", "indextargets", "Created-By: Packages"),
            *("--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"),
        ],
        timeout=QUERY_TIMEOUT_S,
    ).decode()
    releases = {suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates"}
    lines = [line.split() for line in shown.splitlines()]
    found = dict.fromkeys(
        f"deb {uri} {release} {component}"
        for uri, release, component in (words for words in lines if len(words) == 3)
        if release in releases
    )
    if not any(line.split()[2] == suite for line in found):
        known = sorted({words[1] for words in lines if len(words) == 3})
        raise ConfigError(
            f"suite {suite} is in none of this machine's apt sources; add it to /etc/apt, "
            f"or give one of {', '.join(known) or 'them'}"
        )
    return list(found)


def _resolve(sources: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return name, version and architecture of every package that a tree would have."""
    with tempfile.NamedTemporaryFile("w", suffix=".list") as listed:
        listed.writelines(f"{line}\n" for line in sources)
        listed.flush()
        # The lists of these sources only, nothing installed, and no trace in the caches of apt.
        options = (
            "Dir::State::status=/dev/null",
            f"Dir::Etc::SourceList={listed.name}",
            "Dir::Etc::SourceParts=/dev/null",
            "Dir::Cache::pkgcache=",
            "Dir::Cache::srcpkgcache=",
        )
        command = ["apt-get", "-qq", "--simulate", "--no-install-recommends"]
        command += [word for option in options for word in ("-o", option)]
        command += ["install", "?essential", *names]
        shown = run(command, timeout=QUERY_TIMEOUT_S)
    return sorted(" ".join(match) for match in _INSTALLED.findall(shown.decode()))


def _make_tree(
    place: Path, suite: str, sources: Sequence[str], names: Sequence[str], count: int
) -> None:
    root = os.geteuid() == 0
    command = ["mmdebstrap", "--verbose", "--format=tar", f"--mode={'root' if root else 'unshare'}"]
    # Not "essential", which installs what goes beyond in a second round.
    command += ["--variant=custom", "--include=?essential", f"--include={','.join(names)}"]
    command += [f"--keyring={path}" for path in _keyrings()]
    command += [f"--aptopt={line}" for line in _transport()]
    command += [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    # As text, for in a user namespace the file may be out of reach.
    command += [f"--setup-hook={MERGED_USR}", f"--customize-hook={HOOK.read_text()}"]
    # The name must end in what tells mmdebstrap to compress.
    output = place.with_name(f"{place.name}.tar.zst")
    with Progress(f"making a root file system of {count} packages", 3 * count) as progress:

        def measure(log: Path) -> None:
            progress.update(len(_STEP.findall(log.read_bytes())))

        try:
            run_watched(
                [*command, suite, str(output), *sources],
                measure,
                timeout=BUILD_TIMEOUT_S,
                cwd=place.parent,
                env={"SOURCE_DATE_EPOCH": EPOCH},
            )
            output.rename(place)
        finally:
            cache.remove(output)


def _keyrings() -> list[Path]:
    """Return whose signatures count: those that the machine trusts, and Debian's."""
    places = ("/usr/share/keyrings/debian-archive-keyring.gpg", "/etc/apt/trusted.gpg.d")
    return [path for path in map(Path, places) if path.exists()]


def _transport() -> list[str]:
    """Return how this machine's apt reaches its sources: proxies, above all."""
    shown = run(["apt-config", "dump"], timeout=QUERY_TIMEOUT_S).decode()
    return [
        line.rstrip(";")
        for line in shown.splitlines()
        if re.match(r"Acquire::https?::.+ \".+\";$", line)
    ]


def _make_image(tree: Path, place: Path, size: int) -> None:
    # The same tree and size make the same file system, by name as well.
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"pyvirt:{tree.name}:{size}"))
    command = ["sh", str(EXT4), str(tree), str(place), str(size), identity, LABEL]
    if os.geteuid() != 0:
        command = ["unshare", "--user", "--map-root-user", "--map-auto", *command]
    with Progress("making the ext4 image"):
        try:
            run_watched(
                command,
                timeout=IMAGE_TIMEOUT_S,
                cwd=place.parent,
                env={"E2FSPROGS_FAKE_TIME": EPOCH, "SOURCE_DATE_EPOCH": EPOCH},
            )
        except BackendError as error:
            if "llocate" not in str(error):
                raise
            raise ConfigError(
                f"size {size // MIB}M: the packages' files do not fit; give a larger one"
            ) from error
    place.chmod(0o444)


def _check_tools() -> None:
    """Raise BackendError when tools are missing, naming all packages to install."""
    tools = TOOLS if os.geteuid() == 0 else (*TOOLS, "newuidmap")
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = dict.fromkeys(PACKAGE_OF[tool] for tool in tools if not shutil.which(tool, path=path))
    if missing:
        raise BackendError(
            "making a root file system takes packages that are not installed; run: "
            f"sudo apt-get install -y --no-install-recommends {' '.join(missing)}"
        )
