"""The lab's machine: a QEMU process that emulates an AMD CPU with SVM in software."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from ...errors import BackendError, ConfigError
from .. import cache
from ..parent import dying_with_parent
from .image import Image

EMULATOR = "qemu-system-x86_64"
# Without XSAVE and what needs it: this emulator's SVM does not intercept XSETBV, so KVM would not
# know of a guest's XCR0 and put its own in place, under the guest's vector registers.
CPU = "EPYC,+svm,+npt,-xsave,-xsaveopt,-xgetbv1,-avx,-avx2,-f16c,-fma"
MIN_MEMORY_MIB = 512
MAX_MEMORY_MIB = 1 << 20
MAX_CPUS = 255
# norandmaps: what has been translated of a library for one process serves the next one only at the
# same address.
KERNEL_OPTIONS = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr norandmaps tsc=reliable "
    "random.trust_cpu=on cryptomgr.notests"
)
_STOP_S = 2.0
_PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")
_COMPLAINT = re.compile(rb"^qemu-system-x86_64: (?!warning:)([^\r\n]*)", re.MULTILINE)


def check(memory_mib: int, cpus: int) -> str:
    """Return the path of the emulator. Raises ConfigError for a size out of range."""
    if not MIN_MEMORY_MIB <= memory_mib <= MAX_MEMORY_MIB:
        raise ConfigError(
            f"-m {memory_mib}M: the lab's memory is {MIN_MEMORY_MIB}M to {MAX_MEMORY_MIB}M"
        )
    if not 1 <= cpus <= MAX_CPUS:
        raise ConfigError(f"-smp {cpus}: the lab has 1 to {MAX_CPUS} CPUs")
    emulator = shutil.which(EMULATOR)
    if emulator is None:
        raise BackendError(
            f"{EMULATOR} is not installed, which the lab runs in; "
            "run: sudo apt-get install -y --no-install-recommends qemu-system-x86"
        )
    return emulator


def arguments(
    image: Image, link: int, memory_mib: int, cpus: int, *, icount: bool = False
) -> list[str]:
    """Return QEMU's arguments; `link` is the descriptor that carries the agent's port.

    With `icount` a nanosecond of the lab's clock is one instruction, of whichever CPU.

    The ELF kernel starts through its PVH entry: no decompressor, which takes seconds here.
    The console goes to stdout. The 9p inodes of the host's file systems are remapped, for
    they collide otherwise.
    """
    clock = ("-icount", "shift=0") if icount else ()
    return [
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-M", "q35", "-accel", f"tcg,thread={'single' if icount else 'multi'}"),
        *("-cpu", CPU, *clock),
        *("-smp", str(cpus), "-m", f"{memory_mib}M"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", KERNEL_OPTIONS),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        # The first virtio device, and so /dev/vport0p1.
        *("-chardev", f"socket,id=link,fd={link}"),
        *(
            "-device",
            "virtio-serial-pci,max_ports=2",
            "-device",
            "virtserialport,nr=1,chardev=link",
        ),
        *("-fsdev", "local,id=root,path=/,security_model=none,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        # romfile: nothing is to be booted from it, and the ROM is in a package of its own.
        *("-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,netdev=net,romfile="),
    ]


class Machine:
    """A running QEMU; `link` is this side of the agent's port. close() ends it.

    It leaves nothing in the file system: the port is a socket pair, the console log an
    anonymous file. It ends with the process that made it, even if that is killed.
    """

    def __init__(self, image: Image, *, memory_mib: int, cpus: int, icount: bool = False) -> None:
        emulator = check(memory_mib, cpus)
        self._console = os.memfd_create("lab-console", os.MFD_CLOEXEC)
        self.link, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [
                    # Without it the agent notices, a bit later.
                    *dying_with_parent(),
                    emulator,
                    *arguments(image, theirs.fileno(), memory_mib, cpus, icount=icount),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._console,
                stderr=self._console,
                pass_fds=[theirs.fileno()],
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self.link.close()
            os.close(self._console)
            raise BackendError(f"{emulator} cannot be started: {error.strerror}") from error
        finally:
            theirs.close()

    def close(self) -> None:
        """End QEMU and free everything."""
        self._stop()
        self.link.close()
        os.close(self._console)

    def explain(self) -> str:
        """Say in one line why the machine is of no use, and where its console log is now."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        status = self._process.returncode
        self._stop()
        log = self._read_console()
        panic = _PANIC.search(log)
        complaint = _COMPLAINT.search(log)
        if panic:
            reason = f"its kernel panicked: {panic[1].decode(errors='replace')}"
        elif complaint:
            reason = f"QEMU: {complaint[1].decode(errors='replace')}"
        elif status is None:
            reason = "its kernel hangs"
        else:
            reason = f"QEMU ended early, with status {status}"
        return f"lab: {reason}; console log: {_keep(log)}"

    def _stop(self) -> None:
        self.link.close()
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _read_console(self) -> bytes:
        size = os.fstat(self._console).st_size
        return os.pread(self._console, size, 0)


def _keep(log: bytes) -> Path:
    """Store the log where the last one of its kind was, whole or not at all."""
    path = cache.root() / "logs" / "lab-console.log"
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(log)
    part.replace(path)
    return path
