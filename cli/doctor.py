"""`pyvirt doctor`: what this host can do for pyvirt, a line each, with the mend."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys

from ..errors import PyvirtError
from ..native import lib
from ..vmm import kvm, landlock, probe, sandbox
from ..vmm.snapshot import ioctls
from . import usage
from .jailer import calls, cgroup

USAGE = """\
usage: pyvirt doctor

Looks at this host and says what works and what to do about the rest.
exit status: 0 stock kernels run here, 3 only in the nested lab, 4 nowhere
"""

DIRECT, LAB_ONLY, NOWHERE = 0, 3, 4

_OK, _LESS, _NO = "ok", "less", "no"
_LAB_TOOLS = (
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("gcc", "gcc"),
    ("dpkg-deb", "dpkg"),
    ("depmod", "kmod"),
)
_IO_URING_SETUP = 425
_OPTIONAL = (("KVM_CAP_READONLY_MEM", "device registers are read without an exit"),)


class Report:
    """Prints findings as they are made."""

    def __init__(self) -> None:
        self._width = 18

    def line(self, verdict: str, what: str, text: str) -> None:
        """Print one finding."""
        sys.stdout.write(f"{verdict:<5} {what:<{self._width}} {text}\n")
        sys.stdout.flush()


def _check_kvm(report: Report) -> bool:
    """Report on /dev/kvm; return whether stock kernels run on it."""
    try:
        fd = kvm.open_device()
    except PyvirtError as error:
        report.line(_NO, kvm.DEVICE, str(error).removeprefix(f"{kvm.DEVICE}: "))
        return False
    try:
        report.line(_OK, kvm.DEVICE, f"API {kvm.API_VERSION}")
        lacking = kvm.missing(fd)
        if lacking:
            report.line(
                _NO, "KVM capabilities", f"missing {', '.join(lacking)}; use a newer kernel"
            )
            return False
        report.line(_OK, "KVM capabilities", f"all {len(kvm.REQUIRED)} that pyvirt needs")
        for name, use in ioctls.REQUIRED:
            if not kvm.extension(fd, name):
                report.line(_LESS, "KVM capabilities", f"no {name} ({use}): no snapshots")
        for name, use in (*_OPTIONAL, *ioctls.OPTIONAL):
            if not kvm.extension(fd, name):
                report.line(_LESS, "KVM capabilities", f"no {name}: without it not {use}")
        return _check_exception(report, fd)
    finally:
        os.close(fd)


def _check_exception(report: Report, fd: int) -> bool:
    try:
        failure = probe.exception_failure(fd)
    except PyvirtError as error:
        failure = str(error)
    if failure:
        report.line(_NO, "stock kernels", f"an exception in 64-bit mode ends in: {failure}")
        return False
    report.line(_OK, "stock kernels", "an exception in 64-bit mode is delivered")
    return True


def _check_device(report: Report, path: str, use: str, mend: str) -> None:
    if not os.path.exists(path):
        report.line(_LESS, path, f"not there, so no {use}; {mend}")
    elif not os.access(path, os.R_OK | os.W_OK):
        report.line(_LESS, path, f"no permission, so no {use}; run as root or set its group")
    else:
        report.line(_OK, path, f"{use} can be used")


def _check_io_uring(report: Report) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = ctypes.create_string_buffer(120)
    fd = libc.syscall(_IO_URING_SETUP, 1, parameters)
    if fd >= 0:
        os.close(fd)
        report.line(_OK, "io_uring", "disks can use it")
    else:
        reason = os.strerror(ctypes.get_errno())
        report.line(
            _LESS,
            "io_uring",
            f"{reason}, so disks use threads; see sysctl kernel.io_uring_disabled",
        )


def _check_containment(report: Report) -> None:
    """Report on what can contain a machine."""
    if lib.pv_sandbox_arm(lib.PV_SANDBOX_ON) == 0:
        lib.pv_sandbox_arm(lib.PV_SANDBOX_OFF)
        report.line(_OK, "seccomp", "contains each thread of a machine: -sandbox")
    else:
        report.line(
            _LESS,
            "seccomp",
            "not there, so pyvirt run takes -sandbox off; use a kernel with CONFIG_SECCOMP_FILTER",
        )

    _check_landlock(report)
    _check_user_namespaces(report)
    _check_cgroups(report)


def _check_landlock(report: Report) -> None:
    version = landlock.version()
    if version:
        text = f"version {version}: {sandbox.OPTION} says which files a machine may open"
        report.line(_OK, "Landlock", text)
    else:
        mend = "boot a kernel with CONFIG_SECURITY_LANDLOCK, and landlock among lsm="
        report.line(_LESS, "Landlock", f"not there, so no {sandbox.OPTION}; {mend}")


def _check_user_namespaces(report: Report) -> None:
    """Report on them by making one, in a child."""
    pid = os.fork()
    if pid == 0:
        try:
            calls.unshare(calls.CLONE_NEWUSER)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number == 0:
        report.line(_OK, "user namespaces", "pyvirt jail has one for each jail")
    else:
        mend = "see sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone"
        report.line(_LESS, "user namespaces", f"{os.strerror(number)}, so no pyvirt jail; {mend}")


def _check_cgroups(report: Report) -> None:
    top = cgroup.find()
    wanted = sorted({key.partition(".")[0] for key in cgroup.KEYS})
    if top is None:
        report.line(_LESS, "cgroup v2", "not mounted, so no pyvirt jail -cgroup")
        return
    there = [one for one in wanted if one in top.controllers]
    lacking = [one for one in wanted if one not in there]
    if not os.access(top.path, os.W_OK):
        mend = "run as root, or have systemd delegate one"
        report.line(_LESS, "cgroup v2", f"{top.path}: not this user's; {mend}")
    elif lacking:
        text = f"{top.path} offers no {', '.join(lacking)}; there is {', '.join(there) or 'none'}"
        report.line(_LESS, "cgroup v2", text)
    else:
        report.line(_OK, "cgroup v2", f"pyvirt jail -cgroup can limit {', '.join(there)}")


def _check_hugepages(report: Report) -> None:
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    free = int(fields.get("HugePages_Free", "0"))
    size = fields.get("Hugepagesize", "unknown").strip()
    if free:
        report.line(_OK, "huge pages", f"{free} of {size} free")
    else:
        report.line(_LESS, "huge pages", f"none of {size} free; set sysctl vm.nr_hugepages")


def _check_lab(report: Report) -> bool:
    """Report on what the nested lab needs; return whether it can run."""
    lacking = [package for tool, package in _LAB_TOOLS if shutil.which(tool) is None]
    if lacking:
        packages = " ".join(lacking)
        report.line(_NO, "nested lab", f"missing tools; run: sudo apt-get install -y {packages}")
        return False
    report.line(_OK, "nested lab", "its tools are installed")
    return True


def main(argv: list[str]) -> int:
    """Print the findings; return 0, 3 or 4 (see the usage)."""
    if usage.shown(USAGE, argv):
        return 0
    usage.no_arguments("doctor", argv)
    report = Report()
    direct = _check_kvm(report)
    _check_device(report, "/dev/net/tun", "tap for NICs", "load the module tun")
    _check_device(report, "/dev/vhost-net", "vhost-net for NICs", "load the module vhost_net")
    _check_io_uring(report)
    _check_containment(report)
    _check_hugepages(report)
    lab = _check_lab(report)
    if direct:
        sys.stdout.write("Stock kernels run here directly.\n")
        return DIRECT
    if lab:
        sys.stdout.write("Stock kernels run here only in the nested lab: the same, but slower.\n")
        return LAB_ONLY
    sys.stdout.write("Stock kernels do not run here; mend one of the lines above marked no.\n")
    return NOWHERE
