"""`pyvirt guest`: kernels and initramfs archives for guests."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import BackendError, ConfigError
from ..harness import cache
from ..harness.guest import initramfs, vmlinux
from ..harness.guest.kernel import NAMES, Kernel, find

KERNEL_HELP = f"{', '.join(NAMES)}, or the path of a bzImage or vmlinux"


def main(argv: list[str]) -> int:
    """Run `pyvirt guest ARGV`; return its exit status. Raises PyvirtError."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "kernel":
        print(_kernel(arguments.name, arguments.print, renew=arguments.renew))
    else:
        print(_initramfs(arguments))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyvirt guest",
        description="Make guest images and print their paths.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="kernel|initramfs")
    kernel = commands.add_parser(
        "kernel",
        help="fetch or build a kernel into the cache",
        description="Fetch or build a kernel into the cache, and print where it is.",
        allow_abbrev=False,
    )
    kernel.add_argument("name", metavar="NAME", help=KERNEL_HELP)
    kernel.add_argument(
        "--print",
        choices=("image", "vmlinux", "modules"),
        default="image",
        help="print the path of the bootable image (default), the ELF file, or lib/modules/RELEASE",
    )
    kernel.add_argument(
        "--renew", action="store_true", help="look for a newer version than the cache has"
    )
    archive = commands.add_parser(
        "initramfs",
        help="write a cpio with busybox, modules and an init",
        description="Write a cpio with busybox, modules and an init, and print where it is.",
        allow_abbrev=False,
    )
    archive.add_argument(
        "--kernel", metavar="NAME", default="cloud", help=f"{KERNEL_HELP} (default: cloud)"
    )
    archive.add_argument(
        "--module",
        metavar="M",
        action="append",
        default=[],
        help="load this module and those it depends on; may be repeated",
    )
    archive.add_argument(
        "--script",
        metavar="FILE",
        type=Path,
        help="run this and power off (default: a shell on the console)",
    )
    archive.add_argument(
        "--file",
        metavar="GUEST=HOST",
        action="append",
        default=[],
        help="put the host's file HOST at the path GUEST; may be repeated",
    )
    archive.add_argument(
        "-o", metavar="FILE", type=Path, dest="output", help="write here (default: in the cache)"
    )
    return parser


def _kernel(name: str, what: str, *, renew: bool) -> Path:
    kernel = find(name, renew=renew)
    if what == "modules":
        if kernel.modules is None:
            raise ConfigError(
                f"kernel {name}: lib/modules/{kernel.release} is neither beside it nor in /"
            )
        return kernel.modules
    return _elf(kernel) if what == "vmlinux" else kernel.image


def _elf(kernel: Kernel) -> Path:
    return kernel.vmlinux or vmlinux.cached(kernel.image)


def _initramfs(arguments: argparse.Namespace) -> Path:
    made = initramfs.build(
        find(arguments.kernel),
        modules=arguments.module,
        script=arguments.script,
        files=_files(arguments.file),
    )
    output: Path | None = arguments.output
    if output is None:
        return made
    _copy(made, output)
    return output


def _files(pairs: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for pair in pairs:
        guest, equals, host = pair.partition("=")
        if not (guest.startswith("/") and equals and host):
            raise ConfigError(
                f"--file {pair}: give the path in the guest, an equals sign and the host's file, "
                "such as /etc/fstab=./fstab"
            )
        if guest in files:
            raise ConfigError(f"--file {pair}: {guest} is given twice")
        files[guest] = Path(host)
    return files


def _copy(source: Path, output: Path) -> None:
    """Copy `source` to `output`, which appears whole or not at all."""
    part = output.with_name(f".{output.name}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(output)
    except OSError as error:
        raise BackendError(f"-o {output}: {error.strerror}") from error
    finally:
        cache.remove(part)
