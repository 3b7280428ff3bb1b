"""The micro kernel: Debian's kernel source built with the options of micro.config.

The cache entry is named for those options, this recipe, and the version of the source, and
holds image, vmlinux, config and lib/modules/RELEASE (index files only: all is built in).
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from ...errors import BackendError
from .. import cache
from ..progress import Progress
from . import packages
from .tool import PACKAGES as PACKAGE_OF
from .tool import run_watched

SOURCE = "linux-source-6.1"
FRAGMENT = Path(__file__).with_name("micro.config")
# To be raised when this file changes what comes out.
RECIPE = "1"
# Lines that the build prints, to a few percent: the full length of the bar.
BUILD_LINES = 1660
TIMEOUT_S = 3000.0
# Not tools, so that only the compiler would miss them, in the middle of the build.
HEADERS = {"/usr/include/libelf.h": "libelf-dev", "/usr/include/openssl/opensslv.h": "libssl-dev"}
TOOLS = ("make", "gcc", "flex", "bison", "bc", "lz4", "xz")


def recipe() -> str:
    """Return a digest of all that the kernel is made from, but the version of its source."""
    return cache.digest(RECIPE, SOURCE, FRAGMENT.read_bytes())


def build() -> Path:
    """Return the cache entry of the micro kernel; building it takes minutes."""
    return packages.with_fresh_lists(_entry)


def _entry() -> Path:
    package = packages.candidate(SOURCE)
    name = f"kernel-micro-{package.version}-{recipe()}"
    return cache.entry(name, lambda place: _build(package, place))


def check_config(fragment: str, config: str) -> None:
    """Raise BackendError naming the options of `fragment` that do not hold in `config`."""
    held = set(config.splitlines())
    lost = []
    for line in fragment.splitlines():
        # "# CONFIG_X is not set" is an option too; one whose menu is away is not set either.
        off = line.startswith("# CONFIG_") and line.endswith(" is not set")
        if off:
            option = line.split()[1]
            if any(other.startswith(f"{option}=") for other in held):
                lost.append(option)
        elif line.startswith("CONFIG_") and line not in held:
            lost.append(line)
    if lost:
        raise BackendError(
            f"{FRAGMENT.name}: the kernel's configuration does not hold {', '.join(lost)}; "
            "each may need another option, or be gone from this version"
        )


def _build(package: packages.Package, place: Path) -> None:
    check_tools()
    (tarball,) = packages.unpacked(package).glob("usr/src/linux-source-*.tar.xz")
    tree = place / "build"
    tree.mkdir(parents=True)
    with Progress(f"unpacking {package.name}"):
        command = ["tar", "-xJf", str(tarball), "--strip-components=1"]
        run_watched(command, timeout=TIMEOUT_S, cwd=tree)
    make = ["make", *_stamp(tarball.stat().st_mtime)]
    run_watched(
        [*make, f"KCONFIG_ALLCONFIG={FRAGMENT}", "allnoconfig"], timeout=TIMEOUT_S, cwd=tree
    )
    check_config(FRAGMENT.read_text(), (tree / ".config").read_text())
    with Progress("building the micro kernel", BUILD_LINES) as progress:

        def count(log: Path) -> None:
            progress.update(log.read_bytes().count(b"\n"))

        jobs = f"-j{len(os.sched_getaffinity(0))}"
        command = [*make, jobs, "bzImage", "vmlinux"]
        run_watched(command, count, timeout=TIMEOUT_S, cwd=tree)
    _install(tree, place)
    shutil.rmtree(tree)


def _install(tree: Path, place: Path) -> None:
    """Move what is kept out of the build tree."""
    release = (tree / "include/config/kernel.release").read_text().strip()
    modules = place / "lib/modules" / release
    modules.mkdir(parents=True)
    (tree / "modules.builtin").rename(modules / "modules.builtin")
    (modules / "modules.dep").touch()
    (tree / "arch/x86/boot/bzImage").rename(place / "image")
    (tree / "vmlinux").rename(place / "vmlinux")
    (tree / ".config").rename(place / "config")


def _stamp(mtime: float) -> list[str]:
    """Return make variables that leave who built it, where and when out of the kernel."""
    date = time.strftime("%a %b %e %H:%M:%S UTC %Y", time.gmtime(mtime))
    return [
        "KBUILD_BUILD_USER=pyvirt",
        "KBUILD_BUILD_HOST=pyvirt",
        f"KBUILD_BUILD_TIMESTAMP={date}",
    ]


def check_tools() -> None:
    """Raise BackendError when a tool or header is missing, naming all packages to install."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    wanted = [PACKAGE_OF[tool] for tool in missing]
    wanted += [package for header, package in HEADERS.items() if not Path(header).exists()]
    if wanted:
        raise BackendError(
            "building the micro kernel takes packages that are not installed; run: "
            f"sudo apt-get install -y --no-install-recommends {' '.join(wanted)}"
        )
