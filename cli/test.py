"""`pyvirt test`: boot a kernel, run a script in it, and say how it ended."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, PyvirtError
from ..harness.guest import hostroot, kernel
from ..harness.judge import report
from ..harness.judge.verdict import Verdict
from ..harness.vm import fork
from ..harness.vm.config import Limits, VmConfig
from ..harness.vm.end import LabLostError, MonitorDiedError, VerdictError
from ..harness.vm.place import Session
from ..harness.vm.vm import VM
from .parser import Parser, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..harness.vm.snapshot import Snapshot

DESCRIPTION = """\
Boots KERNEL with an initramfs of busybox and runs COMMAND in it: a program or script of this host,
which is copied there, or else a command of the guest's; with --root, it runs on files of this host,
where it is, and what it writes stays in the guest's memory. What it writes comes out here; the last
line, on stderr, is the verdict. The kernel runs in the nested lab where this host cannot run it.
With --times, each run has a guest of its own, up to the first that fails: a fork of one that has
booted (docs/testing.md); with --root, a --disk that can be written, or --boot-each, it boots."""
EPILOG = """\
exit status: 0 the command succeeded, and the kernel found no fault in itself; 1 otherwise; 125 the
kernel did not boot, or could not be tried, or the command ended with 125 itself, so that
`git bisect run` skips it; 2 wrong usage"""
PASSED, FAILED, WRONG_USAGE, NOT_TRIED = 0, 1, 2, 125
_CALL_S = 600.0
_SHOWN = (report.CONSOLE, report.KERNEL, report.VCPU, report.REPRODUCE)


def main(argv: list[str]) -> int:
    """Run `pyvirt test ARGV`; return the exit status."""
    options = parser().parse_args(argv)
    started = time.monotonic()
    try:
        verdict, why, status = _run(options)
    except ConfigError as error:
        verdict, why, status = "not tried", str(error), WRONG_USAGE
    except PyvirtError as error:
        verdict, why, status = "not tried", str(error), NOT_TRIED
    took = time.monotonic() - started
    _say(f"{verdict}" + (f": {why}" if why else "") + f" ({options.kernel}, {took:.1f} s)")
    return status


def parser() -> Parser:
    """Return the reader of the command's words."""
    found = Parser(prog="pyvirt test", description=DESCRIPTION, epilog=EPILOG)
    add = found.add_argument
    add(
        "--kernel",
        required=True,
        metavar="KERNEL",
        help="bzImage or vmlinux; or cloud, cloud-6.12, generic, micro",
    )
    add("--initrd", type=Path, metavar="FILE", help="an initramfs that starts the agent")
    add(
        "--root",
        nargs="?",
        const="/",
        default="",
        metavar="DIR",
        help="boot on a folder of this host (/), which the guest cannot write",
    )
    add("--disk", action="append", default=[], metavar="DISK", help="scratch:64M, or as for run")
    add("--module", action="append", default=[], metavar="NAME", help="a module to load")
    add("--cmdline", default="", metavar="TEXT", help="added to the kernel's command line")
    add("--smp", type=int, default=1, metavar="N", help="vCPUs (1)")
    add("--memory", default="256M", metavar="SIZE", help="the guest's memory (256M)")
    add(
        "--timeout",
        type=seconds,
        default=_CALL_S,
        metavar="S",
        help=f"of COMMAND ({_CALL_S:.0f} s)",
    )
    add("--times", type=_count, default=1, metavar="N", help="run COMMAND so often (1)")
    add("--boot-each", action="store_true", help="boot for each run")
    add("--boot-timeout", type=seconds, default=Limits.boot, metavar="S", help="of the boot (60 s)")
    add("--log-dir", type=Path, metavar="DIR", help="where to keep the log files")
    add("command", nargs="+", metavar="-- COMMAND", help="what to run, and its arguments")
    return found


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def _say(line: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"pyvirt test: {line}\n")
    sys.stderr.flush()


def _config(options: argparse.Namespace) -> VmConfig:
    if options.root:
        hostroot.check_folder(f"--root {options.root}", options.root)
    return VmConfig(
        vcpus=options.smp,
        memory=options.memory,
        cmdline=options.cmdline,
        disks=tuple(options.disk),
        root=options.root,
        modules=tuple(options.module),
        initrd=options.initrd.absolute() if options.initrd else None,
        limits=Limits(boot=options.boot_timeout, call=options.timeout),
    )


def _run(options: argparse.Namespace) -> tuple[str, str, int]:
    """Return the verdict, the reason, and the exit status; PyvirtError: it could not be tried."""
    under_test = kernel.find(options.kernel)
    with ExitStack() as resources:
        session = Session(_say)
        resources.callback(session.close)
        folder = options.log_dir or Path(
            resources.enter_context(tempfile.TemporaryDirectory(prefix="pyvirt-test-"))
        )
        config, logs = _config(options), folder.absolute()
        if options.times == 1:
            return _try(VM(under_test, config, session, logs), options.command)
        origin: Snapshot | None = None
        if not (options.boot_each or fork.obstacle(config)):
            first = resources.enter_context(VM(under_test, config, session, logs / "template"))
            origin = _template(first)
            if origin is not None:
                resources.callback(origin.close)
        for run in range(1, options.times + 1):
            vm = VM(under_test, config, session, logs / f"run-{run}", origin=lambda: origin)
            verdict, why, status = _try(vm, options.command)
            if status != PASSED:
                return verdict, f"{why}, in run {run} of {options.times}", status
        return Verdict.PASSED, f"{options.times} of {options.times} runs", PASSED


def _template(vm: VM) -> Snapshot | None:
    """Boot a VM, and end it where it stands then; None: a run shows why it does not boot."""
    try:
        vm.start()
    except VerdictError:
        vm.close()
        return None
    try:
        return vm.into_snapshot()
    except PyvirtError as error:
        raise PyvirtError(f"{error}; give --boot-each") from None


def _try(vm: VM, command: Sequence[str]) -> tuple[str, str, int]:
    """Boot a VM, run the command in it, and end it."""
    with vm:
        try:
            vm.start()
            return _judge(vm, command)
        except VerdictError as error:
            if vm.end is not None and vm.end.refused:
                raise ConfigError(str(error)) from None
            _show(error.evidence)
            tried = vm.has_booted and not isinstance(error, LabLostError | MonitorDiedError)
            return error.verdict, str(error), FAILED if tried else NOT_TRIED


def _judge(vm: VM, command: Sequence[str]) -> tuple[str, str, int]:
    """Run the command, and look at what the kernel said meanwhile."""
    program, *arguments = command
    cwd = _inside(vm, os.getcwd())
    if os.path.isfile(program):
        folder, name = os.path.split(os.path.abspath(program))
        inside = os.path.join(_inside(vm, folder), name)
        if inside == f"/{name}":
            inside = f"/tmp/{name}"  # noqa: S108  (the guest's)
            vm.put(inside, Path(program), 0o755)
        program = inside
    result = vm.run([program, *arguments], cwd=cwd, on_output=_copy)
    charges = vm.charges()
    if not charges and result.code == 0:
        return Verdict.PASSED, "", PASSED
    if not charges and result.code == NOT_TRIED:
        return "not tried", f"{command[0]}: status {result.code}", NOT_TRIED
    _show(vm.evidence())
    if charges:
        return Verdict.WARNED, charges[0], FAILED
    return Verdict.FAILED, f"{command[0]}: status {result.code}", FAILED


def _inside(vm: VM, folder: str) -> str:
    """Return where the guest has a folder of this host, "/" where it has not."""
    return hostroot.inside(vm.config.root, folder) if vm.config.root else "/"


def _copy(stream: int, data: bytes) -> None:
    target = sys.stdout if stream == 1 else sys.stderr
    target.buffer.write(data)
    target.flush()


def _show(evidence: Mapping[str, str]) -> None:
    for title in _SHOWN:
        if title in evidence:
            sys.stderr.write(f"--- {title}\n{evidence[title]}\n")
