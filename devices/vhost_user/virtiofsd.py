"""A virtiofsd of the machine's own, which shares a folder of the host and ends with the machine.

It runs in namespaces of its own, with the folder as its root. Without root it is root in a user
namespace: it has the rights of the user who runs it, all files are theirs in the guest's eyes, and
only the guest's root can make new ones.

There are two programs of that name: QEMU's in C, up to 7.2 (Debian 12), and one in Rust, which has
taken its place. They are told the same by other words: those of C that the other knows as well are
none for a folder with a comma in its name. Sources: virtiofsd --help of QEMU 7.2.22 and of 1.14.0.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys

from ...errors import ConfigError
from ..child import Complaints, check_allowed, end

PROGRAM = "/usr/lib/qemu/virtiofsd"  # Debian 12
# Where distributions have it, those first that have the newer one.
PROGRAMS = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", PROGRAM)
PACKAGES = "virtiofsd, or for Debian 12 qemu-system-common"
_FIRST_WORDS_OF_C = b"virtiofsd version "
_VERSION_S = 20.0
_NULL_FD, _OUT_FD, _COMPLAINT_FD, _SOCKET_FD = 0, 1, 2, 3
_CHATTER = ("virtio_session_mount: ", "virtio_loop: ")
# Folders that take sockets; that of the lab's /tmp does not.
_SOCKETS = ("/dev/shm", "/tmp")  # noqa: S108  (a folder of our own is made in it)
# Elsewhere than at its own place, for / has none but that: in a /sys that nobody else sees.
_READONLY_AT = "/sys/share"
_READONLY = os.path.join(os.path.dirname(__file__), "readonly.py")
_CAP_SYS_ADMIN = 21


class Virtiofsd:
    """A back end that is started when it is connected to; owns the process until `close`."""

    __slots__ = ("_complaints", "_folder", "_pid", "_program", "_readonly", "where")
    who = "virtiofsd"
    mend = "see whether this host lets you start processes"
    patience = 60.0  # it is a process that is yet to start, on a host that may be busy

    def __init__(self, folder: str, *, readonly: bool = False, option: str = "-share") -> None:
        """`folder` is an absolute path; messages name the `option`."""
        self._folder = folder
        self._readonly = readonly
        self._complaints: Complaints | None = None
        self._pid = 0
        self._program = ""
        self.where = f"{option} {folder}"

    def connect(self) -> socket.socket:
        """Start one, in place of that before, and return the connection.

        ConfigError, OSError; BackendError in a sandbox (child.py).
        """
        check_allowed("virtiofsd")
        self._end()
        self._program = next((one for one in PROGRAMS if os.access(one, os.X_OK)), "")
        if not self._program:
            raise ConfigError(
                f"{self.where}: virtiofsd is not installed; install the package {PACKAGES}"
            )
        words = self._words()
        self._complaints = Complaints(lambda line: line.startswith(_CHATTER))
        ours, listener = _pair()
        try:
            self._pid = os.posix_spawnp(
                words[0],
                words,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, _NULL_FD, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, _OUT_FD, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, self._complaints.write_fd, _COMPLAINT_FD),
                    (os.POSIX_SPAWN_DUP2, listener.fileno(), _SOCKET_FD),
                ],
                # A Ctrl-C in the terminal is not for it, and no signal is blocked or ignored.
                setpgroup=0,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE,),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            listener.close()
        return ours

    def _words(self) -> list[str]:
        is_root = _is_root()
        can_mount = not is_root or _has_admin()
        folder = _READONLY_AT if self._readonly else self._folder
        sandbox = "namespace" if can_mount else "chroot"
        program = [self._program, f"--fd={_SOCKET_FD}"]
        if _is_in_c(self._program):
            source = folder.replace("\\", "\\\\").replace(",", "\\,")
            program += ["-o", f"source={source},sandbox={sandbox}"]
        else:
            program += [f"--shared-dir={folder}", f"--sandbox={sandbox}", "--log-level=warn"]
        if not is_root:
            # Each file that the guest knows of takes a descriptor, and nobody else may have more.
            program.append(f"--rlimit-nofile={resource.getrlimit(resource.RLIMIT_NOFILE)[1]}")
        # It also ends by itself, when its connection does.
        words = ["setpriv", "--pdeathsig", "TERM", "--", *program]
        if self._readonly and not can_mount:
            raise ConfigError(
                f"{self.where}: a root without CAP_SYS_ADMIN cannot see to it that nothing is "
                "written there; add that capability, or run as another user"
            )
        if self._readonly:
            words = [sys.executable, "-IS", _READONLY, self._folder, _READONLY_AT, *words]
        unshare = [] if is_root else ["--map-root-user"]
        if self._readonly:
            unshare.append("--mount")
        return ["unshare", *unshare, "--", *words] if unshare else words

    def why(self) -> str:
        """Return the last that it has said, less the time and level before it."""
        lines = self._complaints.lines() if self._complaints is not None else []
        line = lines[-1] if lines else ""
        return line.partition("] ")[2] or line if line.startswith("[") else line

    def _end(self) -> None:
        if self._pid > 0:
            pid, self._pid = self._pid, 0
            end(pid)
        if self._complaints is not None:
            self._complaints.close()
            self._complaints = None

    def close(self) -> None:
        """Wait for its end; the connection is closed."""
        self._end()


def _is_in_c(program: str) -> bool:
    """Say whether it is QEMU's; one that does not answer fails when it is started."""
    import subprocess  # noqa: PLC0415  (few machines share a folder)

    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.startswith(_FIRST_WORDS_OF_C)


def _is_root() -> bool:
    return os.geteuid() == 0


def _has_admin() -> bool:
    """Say whether this process may make namespaces and mounts."""
    with open("/proc/self/status", "rb") as file:
        line = next(line for line in file if line.startswith(b"CapEff:"))
    return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)


def _pair() -> tuple[socket.socket, socket.socket]:
    """Return a connected socket and the listening one on which it waits to be accepted.

    Nobody else can connect: the path is in a folder of our own, and gone when this returns.
    """
    base = next((one for one in _SOCKETS if os.access(one, os.W_OK)), _SOCKETS[-1])
    folder = f"{base}/pyvirt-{os.urandom(8).hex()}"
    path = f"{folder}/s"
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.mkdir(folder, 0o700)
        try:
            listener.bind(path)
            try:
                listener.listen(1)
                ours.connect(path)
            finally:
                os.unlink(path)
        finally:
            os.rmdir(folder)
    except BaseException:
        ours.close()
        listener.close()
        raise
    return ours, listener
