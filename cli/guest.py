"""`pyvirt guest`: kernels, initramfs archives and root file systems for guests."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import BackendError, ConfigError
from ..harness import cache
from ..harness.agent import image as agent
from ..harness.guest import initramfs, rootboot, rootfs, vmlinux
from ..harness.guest.kernel import NAMES, Kernel, find
from .parser import Parser

_VSOCK = "vmw_vsock_virtio_transport"  # the guest's socket device
KERNEL_HELP = f"{', '.join(NAMES)}, or the path of a bzImage or vmlinux"


def main(argv: list[str]) -> int:
    """Run `pyvirt guest ARGV`; return its exit status. Raises PyvirtError."""
    arguments = parser().parse_args(argv)
    if arguments.command == "kernel":
        print(_kernel(arguments.name, arguments.print, renew=arguments.renew))
    elif arguments.command == "rootfs":
        print(_rootfs(arguments))
    else:
        print(_initramfs(arguments))
    return 0


def parser() -> Parser:
    """Return the reader of the command's words."""
    found = Parser(
        prog="pyvirt guest",
        description="Make guest images and print their paths.",
    )
    commands = found.add_subparsers(
        dest="command", required=True, metavar="kernel|initramfs|rootfs"
    )
    kernel = commands.add_parser(
        "kernel",
        help="fetch or build a kernel into the cache",
        description="Fetch or build a kernel into the cache, and print where it is.",
    )
    archive = commands.add_parser(
        "initramfs",
        help="write a cpio with busybox, modules and an init",
        description="Write a cpio with busybox, modules and an init, and print where it is.",
    )
    image = commands.add_parser(
        "rootfs",
        help="make an ext4 image of a small Debian",
        description="Make an ext4 image of a small Debian, and print where it is. It boots to a "
        "login prompt on ttyS0, where root needs no password.",
    )
    _kernel_options(kernel)
    _initramfs_options(archive)
    _rootfs_options(image)
    return found


def _kernel_options(kernel: Parser) -> None:
    kernel.add_argument("name", metavar="KERNEL", help=KERNEL_HELP)
    kernel.add_argument(
        "--print",
        choices=("image", "vmlinux", "modules"),
        default="image",
        help="print the path of the bootable image (default), the ELF file, or lib/modules/RELEASE",
    )
    kernel.add_argument(
        "--renew", action="store_true", help="look for a newer version than the cache has"
    )


def _initramfs_options(archive: Parser) -> None:
    archive.add_argument(
        "--kernel", metavar="KERNEL", default="cloud", help=f"{KERNEL_HELP} (default: cloud)"
    )
    archive.add_argument(
        "--module",
        metavar="M",
        action="append",
        default=[],
        help="load this module and those it depends on; may be repeated",
    )
    then = archive.add_mutually_exclusive_group()
    then.add_argument(
        "--script",
        metavar="FILE",
        type=Path,
        help="run this and power off (default: a shell on the console)",
    )
    then.add_argument(
        "--root",
        action="store_true",
        help="mount what root= of the kernel command line names, and run its init; "
        f"loads {', '.join(rootboot.MODULES)} too",
    )
    then.add_argument(
        "--agent",
        action="store_true",
        help="have pyvirt's agent as init, which serves pyvirt exec; "
        f"loads {', '.join(agent.MODULES)} too, and {_VSOCK} where there is one",
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


def _rootfs_options(image: Parser) -> None:
    image.add_argument(
        "--suite",
        metavar="S",
        default=rootfs.SUITE,
        help=f"of the machine's apt sources (default: {rootfs.SUITE})",
    )
    image.add_argument(
        "--package",
        metavar="P",
        action="append",
        default=[],
        help="install this package and those it depends on; may be repeated",
    )
    image.add_argument(
        "--size",
        metavar="N[M|G]",
        default="2G",
        help="of the image, MiB without a unit (default: 2G)",
    )
    image.add_argument(
        "--renew", action="store_true", help="look for newer packages than the cache has"
    )
    image.add_argument(
        "-o",
        metavar="FILE",
        type=Path,
        dest="output",
        help="write here (default: in the cache, for read-only use)",
    )


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
    kernel = find(arguments.kernel)
    files = _files(arguments.file)
    if arguments.agent:
        has_sockets = kernel.modules is not None and any(kernel.modules.rglob(f"{_VSOCK}.ko*"))
        wanted = (*arguments.module, _VSOCK) if has_sockets else arguments.module
        made = agent.initramfs(kernel, modules=wanted, files=files)
    elif arguments.root:
        made = rootboot.build(kernel, modules=arguments.module, files=files)
    else:
        made = initramfs.build(
            kernel, modules=arguments.module, script=arguments.script, files=files
        )
    return _deliver(made, arguments.output, shutil.copyfile)


def _rootfs(arguments: argparse.Namespace) -> Path:
    made = rootfs.build(
        arguments.package,
        suite=arguments.suite,
        size=_size(arguments.size),
        renew=arguments.renew,
    )
    return _deliver(made, arguments.output, rootfs.copy)


def _size(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,6})([MG]?)", text)
    if found is None:
        raise ConfigError(f"--size {text}: not a size; give one such as 512, 512M or 2G")
    return int(found[1]) * rootfs.MIB * (1024 if found[2] == "G" else 1)


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


def _deliver(made: Path, output: Path | None, copy: Callable[[Path, Path], object]) -> Path:
    """Copy `made` to `output`, which appears whole or not at all; return where to look."""
    if output is None:
        return made
    part = output.with_name(f".{output.name}.part")
    try:
        copy(made, part)
        part.replace(output)
    except OSError as error:
        raise BackendError(f"-o {output}: {error.strerror}") from error
    finally:
        cache.remove(part)
    return output
