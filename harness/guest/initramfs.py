"""Builds initramfs archives: busybox, a kernel's modules, an init, and whatever files are given.

An archive is named in the cache for the digest of its bytes: the same parts give the same file.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from ...errors import BackendError, ConfigError
from .. import cache
from . import modules as dependency
from . import packages
from .cpio import Archive
from .kernel import Kernel
from .tool import run

_HERE = Path(__file__).parent
# Files of the init that is ours: place in the guest, and here.
INIT_FILES = {
    "/init": _HERE / "init.sh",
    "/etc/profile": _HERE / "profile.sh",
    "/etc/acpi/PWRF/00000080": _HERE / "poweroff.sh",
    "/sbin/halt": _HERE / "poweroff.sh",
    "/sbin/poweroff": _HERE / "poweroff.sh",
    "/sbin/reboot": _HERE / "poweroff.sh",
}
# The modules in the archive, in the order to load them: a path a line, with the word "soft"
# after one that the kernel may refuse.
LOAD_LIST = "/lib/modules/load"
LOADER = "/lib/modules/load.sh"  # loads them, read in by an init that is a shell's
SCRIPT = "/script"
SCRIPT_MAX = 256 << 20  # bytes; it may be a program
DIRECTORIES = (
    *("bin", "dev", "etc", "mnt", "proc", "root", "run", "sbin", "sys", "tmp"),
    *("usr/bin", "usr/sbin"),
)
TOOL_TIMEOUT_S = 60.0


def build(
    kernel: Kernel,
    *,
    modules: Sequence[str] = (),
    script: str | Path | None = None,
    init: str | Path | None = None,
    files: Mapping[str, Path | bytes] = MappingProxyType({}),
) -> Path:
    """Return an initramfs for `kernel` as a file in the cache, not compressed.

    `modules` are loaded with all they depend on, before `script` runs: the text of a shell
    script, or a host's file with a script or program. The machine powers off when it ends; with
    no script there is a shell on the console. `init`, the text of a script or a host's program,
    runs as process 1 in place of all that, and finds the modules by the list LOAD_LIST. `files`
    maps paths in the guest to the host's files (their execute permission is kept) or to bytes.

    Raises ConfigError for a module that the kernel does not have, and for files that cannot be
    read or collide; BackendError when there is no static busybox to be had.
    """
    archive = Archive()
    for path in DIRECTORIES:
        archive.directory(path)
    # The kernel opens /dev/console before init can mount anything there.
    archive.node("/dev/console", "c", 5, 1)
    archive.node("/dev/null", "c", 1, 3, mode=0o666)
    archive.node("/dev/mem", "c", 1, 1)
    archive.node("/dev/port", "c", 1, 4)
    if init is None:
        for path, source in INIT_FILES.items():
            archive.file(path, source, 0o755)
    else:
        archive.file("/init", init.encode() if isinstance(init, str) else init, 0o755)
    if script is not None:
        archive.file(SCRIPT, _script(script), 0o755)
    _add_modules(archive, kernel, modules)
    _add_files(archive, files)
    _add_busybox(archive)
    return _publish(archive)


def _script(script: str | Path) -> bytes:
    """Return an executable's content; a script that names no interpreter is the shell's."""
    if isinstance(script, str):
        data = script.encode()
    else:
        # A shell may well put a FIFO there: <(…).
        try:
            with script.open("rb") as file:
                data = file.read(SCRIPT_MAX + 1)
        except OSError as error:
            raise ConfigError(f"script {script}: {error.strerror}") from error
        if len(data) > SCRIPT_MAX:
            raise ConfigError(f"script {script}: larger than {SCRIPT_MAX >> 20} MiB; give less")
    return data if data.startswith((b"#!", b"\x7fELF")) else b"#!/bin/sh\n" + data


def _add_modules(archive: Archive, kernel: Kernel, wanted: Sequence[str]) -> None:
    if not wanted:
        return
    if kernel.modules is None:
        raise ConfigError(
            f"module {wanted[0]}: the kernel {kernel.name} has no modules; "
            f"they are expected in lib/modules/{kernel.release} beside it or in /"
        )
    lines = []
    for module in dependency.order(kernel.modules, wanted):
        source = kernel.modules / module.path
        path = f"/lib/modules/{kernel.release}/{module.path}"
        if source.suffix != ".ko":
            path = path.removesuffix(source.suffix)
        archive.file(path, _module(source))
        lines.append(f"{path} soft\n" if module.soft else f"{path}\n")
    archive.file(LOAD_LIST, "".join(lines).encode())
    archive.file(LOADER, _HERE / "modules.sh")


def _module(path: Path) -> bytes | Path:
    """Return a module as the kernel takes it, that is, not compressed."""
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            return run(["zstd", "-dcq", str(path)], timeout=TOOL_TIMEOUT_S)
    return path


def _add_files(archive: Archive, files: Mapping[str, Path | bytes]) -> None:
    for path, source in files.items():
        mode = 0o644
        if isinstance(source, Path):
            if not source.is_file():
                raise ConfigError(f"file {path}={source}: there is no such file on this host")
            mode = 0o755 if source.stat().st_mode & 0o111 else 0o644
        elif source.startswith(b"#!"):
            mode = 0o755
        try:
            archive.file(path, source, mode)
        except ValueError as error:
            raise ConfigError(f"file {path}: {error}") from error


def _add_busybox(archive: Archive) -> None:
    """Add busybox and the links of its applets, but where the archive holds another file."""
    busybox = _busybox()
    if "/bin/busybox" not in archive:
        archive.file("/bin/busybox", busybox, 0o755)
    for applet in _applets(busybox):
        if applet not in archive:
            archive.symlink(applet, "/bin/busybox")


@lru_cache
def _applets(busybox: Path) -> list[str]:
    return run([str(busybox), "--list-full"], timeout=TOOL_TIMEOUT_S).decode().split()


def _busybox() -> Path:
    """Return a busybox that needs no library: the host's, else that of the Debian package."""
    installed = shutil.which("busybox")
    if installed is not None and is_static(Path(installed)):
        return Path(installed)
    return cache.named("busybox", _fetch_busybox) / "bin/busybox"


def _fetch_busybox() -> Path:
    return packages.with_fresh_lists(
        lambda: packages.unpacked(packages.candidate("busybox-static"))
    )


def is_static(path: Path) -> bool:
    """Say whether an ELF file asks for no interpreter, and so for no shared library."""
    data = path.read_bytes()
    if not data.startswith(b"\x7fELF\x02\x01"):
        return False
    # Elf64_Ehdr: e_phoff at 32, e_phentsize at 54, e_phnum at 56; Elf64_Phdr: p_type at 0.
    table = int.from_bytes(data[32:40], "little")
    size = int.from_bytes(data[54:56], "little")
    count = int.from_bytes(data[56:58], "little")
    pt_interp = 3
    headers = (data[place : place + 4] for place in range(table, table + count * size, size))
    return all(int.from_bytes(kind, "little") != pt_interp for kind in headers)


class _Digest:
    """A sink that keeps nothing but the digest of what is written to it."""

    def __init__(self) -> None:
        self.state = hashlib.sha256()

    def write(self, data: bytes, /) -> None:
        self.state.update(data)


def _publish(archive: Archive) -> Path:
    """Write the archive into the cache, unless it is there."""
    digest = _Digest()
    try:
        archive.write(digest)
    except (OSError, ValueError) as error:
        raise BackendError(f"the initramfs cannot be made: {error}") from error

    def build(place: Path) -> None:
        with place.open("wb") as file:
            archive.write(file)

    return cache.entry(f"initramfs-{digest.state.hexdigest()[:16]}.cpio", build)
