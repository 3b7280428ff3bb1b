"""Debian packages, fetched with the machine's own package client and unpacked, not installed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ...errors import BackendError, ConfigError
from .. import cache
from ..progress import Progress
from .tool import ToolMissingError, run, run_watched

# Nothing is asked on a terminal, nothing printed, nothing waits for ever; root downloads into
# the cache folder as itself, for apt's own user may not be able to reach it.
APT_OPTIONS = (
    *("-qq", "-o", "APT::Sandbox::User=root"),
    *("-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30"),
)
QUERY_TIMEOUT_S = 60.0
FETCH_TIMEOUT_S = 1200.0

T = TypeVar("T")


class FetchError(BackendError):
    """A package that the lists offer could not be downloaded."""


@dataclass(frozen=True, slots=True)
class Package:
    """The version of a package that the machine's package lists offer; `size` is in bytes."""

    name: str
    version: str
    architecture: str
    depends: tuple[str, ...]
    size: int

    @property
    def slug(self) -> str:
        """The package and its version, as part of a file name."""
        return f"{self.name}-{self.version.replace(':', '%3a')}-{self.architecture}"


def candidate(name: str) -> Package:
    """Return what the package lists say of `name`.

    Where they do not know it, being empty as a rule, root's are updated first. Raises
    ConfigError when they don't know it even so, or when it takes another user to update them.
    """
    problem = f"package {name} is not in this machine's package lists"
    found = _lookup(name)
    if found is None:
        if os.geteuid() != 0:
            raise ConfigError(f"{problem}; run: sudo apt-get update")
        _update()
        found = _lookup(name)
    if found is None:
        raise ConfigError(f"{problem}, updated just now; add a source of it to /etc/apt")
    return found


def unpacked(package: Package) -> Path:
    """Return the directory in the cache that holds the package's files."""
    return cache.entry(f"deb-{package.slug}", lambda place: unpack(package, place))


def unpack(package: Package, place: Path) -> None:
    """Download the package and unpack it as the new directory `place`."""
    place.mkdir()
    download = place / ".download"
    download.mkdir()
    _download(package, download)
    debs = list(download.glob("*.deb"))
    if len(debs) != 1:
        raise BackendError(f"apt-get download left no package file of {package.name}")
    with Progress(f"unpacking {package.name}"):
        command = ["dpkg-deb", "-x", str(debs[0]), str(place)]
        run_watched(command, timeout=FETCH_TIMEOUT_S, cwd=place)
    cache.remove(download)


def with_fresh_lists(action: Callable[[], T]) -> T:
    """Return action(), run again on updated lists after a FetchError, if this user may update.

    Lists that are older than the archive name packages that it no longer has.
    """
    try:
        return action()
    except FetchError:
        if os.geteuid() != 0:
            raise
        _update()
        return action()


def parse(shown: str) -> Package | None:
    """Return the package of an `apt-cache show` record; None where it is of none.

    Dependencies come without versions, the first of alternatives standing for all.
    """
    fields = dict(re.findall(r"^([A-Za-z0-9-]+): *(.*)$", shown, re.MULTILINE))
    if not {"Package", "Version", "Architecture", "Size"} <= fields.keys():
        return None
    depends = [part.split() for part in fields.get("Depends", "").split(",")]
    return Package(
        name=fields["Package"],
        version=fields["Version"],
        architecture=fields["Architecture"],
        depends=tuple(words[0] for words in depends if words),
        size=int(fields["Size"]),
    )


def _lookup(name: str) -> Package | None:
    """Return the candidate version of `name`; apt-cache fails when it knows of none."""
    try:
        shown = run(["apt-cache", "show", "--no-all-versions", name], timeout=QUERY_TIMEOUT_S)
    except ToolMissingError as error:
        raise BackendError(
            f"{error}: this machine has no Debian package client to fetch {name} with; "
            "give a kernel by its path instead"
        ) from error
    except BackendError:
        return None
    return parse(shown.decode(errors="replace"))


def _update() -> None:
    with Progress("updating the package lists"):
        run(["apt-get", *APT_OPTIONS, "update"], timeout=FETCH_TIMEOUT_S)


def _download(package: Package, folder: Path) -> None:
    command = ["apt-get", *APT_OPTIONS, "download", f"{package.name}={package.version}"]
    with Progress(f"fetching {package.name}", package.size) as progress:

        def measure(_log: Path) -> None:
            progress.update(sum(file.stat().st_size for file in folder.iterdir()))

        try:
            run_watched(command, measure, timeout=FETCH_TIMEOUT_S, cwd=folder)
        except BackendError as error:
            mend = "" if os.geteuid() == 0 else "; if the lists are old: sudo apt-get update"
            raise FetchError(f"{error}{mend}") from error
