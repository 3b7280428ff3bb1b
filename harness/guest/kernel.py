"""Kernels for guests, by name or by path.

cloud      Debian's kernel for cloud machines (package linux-image-cloud-amd64)
cloud-6.12 its newer one (linux-image-6.12-cloud-amd64, in Debian 12's security archive)
generic    Debian's kernel for any machine (linux-image-amd64)
micro      a small one with all it needs built in, made from Debian's source; see micro.py
PATH       a file of the host: a bzImage, or an ELF vmlinux
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ... import files
from ...errors import BackendError, ConfigError
from ...vmm.boot import efi
from ...vmm.boot.kernel import KernelFile
from .. import cache
from . import kconfig, micro, packages, vmlinux
from .tool import run

META_PACKAGES = {
    "cloud": "linux-image-cloud-amd64",
    "cloud-6.12": "linux-image-6.12-cloud-amd64",
    "generic": "linux-image-amd64",
}
NAMES = (*META_PACKAGES, "micro")
DEPMOD_TIMEOUT_S = 120.0

_BZIMAGE_MAGIC = slice(0x202, 0x206)
_BZIMAGE_VERSION = slice(0x20E, 0x210)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel on this host.

    `image` is the file to boot; `release` is what `uname -r` says under it; `modules` is its
    lib/modules/RELEASE with a modules.dep, None where there is none; `vmlinux` is its ELF file,
    None where it was not taken out of the image (`vmlinux.cached` does that); `symbols` is a
    vmlinux or System.map with its symbols, where somebody named one.
    """

    name: str
    image: Path
    release: str
    modules: Path | None
    vmlinux: Path | None
    symbols: Path | None = None

    @property
    def config(self) -> Mapping[str, str] | None:
        """Return the options it was built with, CONFIG_X: y; None where nothing tells them."""
        return kconfig.read(self.release, self.image, self.modules, self.vmlinux)


def find(name: str, *, renew: bool = False) -> Kernel:
    """Return the kernel `name`, fetching or building it into the cache the first time.

    A kernel found once stays the one of that name, whatever the package lists say later, until
    it is asked for with `renew`. Raises ConfigError for a name that is none and for a file that
    holds no kernel, BackendError when it cannot be fetched or built.
    """
    if name in META_PACKAGES:
        meta = META_PACKAGES[name]
        return _cached(name, cache.named(f"kernel-{name}", lambda: _fetch(meta), renew=renew))
    if name == "micro":
        pin = f"kernel-micro-{micro.recipe()}"
        return _cached(name, cache.named(pin, micro.build, renew=renew))
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"kernel {name}: it is neither a file nor one of the names {', '.join(NAMES)}"
        )
    return _of_file(path.absolute())


def _fetch(meta: str) -> Path:
    """Return the cache entry of the kernel package that the package `meta` now depends on."""

    def fetch() -> Path:
        depends = packages.candidate(meta).depends
        image = next((name for name in depends if name.startswith("linux-image-")), None)
        if image is None:
            raise BackendError(f"package {meta} depends on no linux-image package")
        package = packages.candidate(image)
        return cache.entry(f"kernel-{package.slug}", lambda place: _unpack(package, place))

    return packages.with_fresh_lists(fetch)


def _unpack(package: packages.Package, place: Path) -> None:
    """Make a cache entry: image, vmlinux, and lib/modules/RELEASE with its index files."""
    packages.unpack(package, place)
    images = list(place.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise BackendError(f"package {package.name} holds {len(images)} kernels in /boot, not one")
    release = images[0].name.removeprefix("vmlinuz-")
    run(["depmod", "-b", str(place), release], timeout=DEPMOD_TIMEOUT_S)
    (place / "image").symlink_to(images[0].relative_to(place))
    (place / "vmlinux").write_bytes(vmlinux.extract(images[0].read_bytes(), images[0].name))


def _cached(name: str, entry: Path) -> Kernel:
    (modules,) = (entry / "lib/modules").iterdir()
    return Kernel(name, entry / "image", modules.name, modules, entry / "vmlinux")


def _of_file(path: Path) -> Kernel:
    try:
        fd = files.open_regular(str(path), os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"kernel {path}: {error.strerror}; name a kernel's file") from None
    with open(fd, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError):
            raise ConfigError(f"kernel {path}: it is empty or cannot be read") from None
        with data:
            release = _release(data)
            elf = data[:4] == b"\x7fELF"
    if release is None:
        with KernelFile("kernel", str(path)) as kernel_file:
            if efi.recognises(kernel_file):
                raise efi.refusal(kernel_file)
        raise ConfigError(
            f"kernel {path}: it does not tell a Linux version; give a bzImage or a vmlinux"
        )
    places = (path.parent.parent / "lib/modules", path.parent / "lib/modules", Path("/lib/modules"))
    modules = next((p / release for p in places if (p / release / "modules.dep").is_file()), None)
    return Kernel(str(path), path, release, modules, path if elf else None)


def _release(image: mmap.mmap) -> str | None:
    """Return the release that an image tells of itself; None if it does not."""
    if image[_BZIMAGE_MAGIC] == b"HdrS":
        # A pointer of 0, for no version string, leads to the header's jump, which is no text.
        start = int.from_bytes(image[_BZIMAGE_VERSION], "little") + 0x200
        found = re.match(rb"([!-~]+)[ \0]", image[start : start + 256])
    else:
        found = re.search(rb"Linux version ([!-~]+) ", image)
    return found[1].decode() if found else None
