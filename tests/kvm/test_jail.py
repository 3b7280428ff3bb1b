"""`pyvirt jail`: what is in one, how far code gets that runs there, and what is left of it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pyvirt.cli.jailer import calls, cgroup, tree
from pyvirt.errors import ConfigError
from pyvirt.native.sandbox.syscalls import NUMBERS
from pyvirt.qmp.client import Client, CommandError

from ..unit.devices.vhost_user.switch import PROTOCOL, Switch
from ..unit.devices.vhost_user.test_plugged_nic import ALL
from ..unit.native.injection import Captive
from ..unit.native.test_crash import find
from .support import PATIENCE
from .test_run import PYVIRT, STATUS, TEXT, is_running, run, wait_for

Kernel = Callable[[str], Path]

pytestmark = pytest.mark.any_kvm
USER = 64123  # nobody's
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_KVM = "/dev/kvm"


@pytest.fixture(autouse=True)
def _as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("to be another user takes root")


@pytest.fixture
def base() -> Iterator[Path]:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        os.chmod(folder, 0o711)
        yield Path(folder)


def words(base: Path, *options: str) -> list[str]:
    return [str(PYVIRT), "jail", "-base", str(base), "-name", "a", *options]


def as_user(base: Path, *options: str) -> list[str]:
    return words(base, "-uid", str(USER), "-gid", str(USER), *options)


def machine(kernel: Path, *options: str) -> list[str]:
    return ["--", "-m", "128", "-kernel", f"/{kernel.name}", *options]


def left(base: Path) -> list[str]:
    return sorted(str(path.relative_to(base)) for path in base.rglob("*"))


class Jailed:
    """A guest that counts for ever in a jail, with an image, and a client of its monitor."""

    def __init__(self, kernel: Path, base: Path, jail: tuple[str, ...], options: tuple[str, ...]):
        image = base / "disk.img"
        image.write_bytes(bytes(1 << 20))
        os.chown(image, USER, USER)
        self._socket = base / "a/run/qmp"
        self.errors = ""
        self.process = subprocess.Popen(
            [
                *as_user(base, "-source", f"{kernel},ro", str(image), *jail),
                *machine(kernel, "-disk", "disk.img"),
                *("-qmp", "unix:/run/qmp,server,nowait", *options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # What a jail is not to have of its caller.
            env={"PATH": os.environ["PATH"], "SECRET": "of the host"},
            close_fds=False,
        )
        self.client = self._connected()
        self.first = _child(self.process.pid)
        self.pid = _child(self.first)

    def _connected(self) -> Client:
        """Return a client, when there is a monitor: a socket may be of one that was killed."""
        found: list[Client] = []

        def connect() -> bool:
            assert self.process.poll() is None
            with suppress(ConfigError):
                found.append(Client(str(self._socket), lambda _: None))
            return bool(found)

        try:
            wait_for(connect, "the monitor")
        except BaseException:
            self.process.kill()
            self.errors = self.process.communicate()[1].decode()
            raise
        return found[0]

    def status(self, name: str, pid: int = 0) -> str:
        """Return a line of the machine's /proc/PID/status."""
        text = Path(f"/proc/{pid or self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"^{name}:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
        assert found
        return found[1].replace("\t", " ")

    def captive(self, comm: str, *, filters: int = 0) -> Captive:
        """Take over one of its threads, when it has so many filters of system calls."""
        tid = self.pid if comm == "main" else find(self.pid, comm, filters=filters)
        return Captive(self.pid, tid)

    def ended(self) -> int:
        """Return the jailer's exit status."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        self.errors = errors.decode()
        return self.process.returncode

    def __enter__(self) -> Jailed:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.communicate()
        wait_for(lambda: not is_running(self.pid), "the machine's end")


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii"))


@pytest.fixture
def jailed(kernel: Kernel, base: Path) -> Callable[..., Jailed]:
    def start(*options: str, jail: tuple[str, ...] = ()) -> Jailed:
        return Jailed(kernel("spin"), base, jail, options)

    return start


def test_a_guest_runs_to_its_end_and_nothing_is_left(kernel: Kernel, base: Path) -> None:
    console = kernel("console")
    done = run(*as_user(base, "-source", f"{console},ro"), *machine(console))
    assert done == (STATUS, TEXT, "")
    assert left(base) == []


def test_what_a_machine_is_in_one(jailed: Callable[..., Jailed]) -> None:
    secret = os.memfd_create("of_the_host", 0)  # which any child of this process inherits
    with jailed() as guest:
        os.close(secret)
        for kind in NAMESPACES:
            own = os.readlink(f"/proc/{guest.pid}/ns/{kind}")
            assert own != os.readlink(f"/proc/self/ns/{kind}"), kind
        assert guest.status("Uid") == guest.status("Gid") == " ".join([str(USER)] * 4)
        assert guest.status("Groups") == ""
        assert {guest.status(f"Cap{one}") for one in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {
            "0" * 16
        }
        assert guest.status("NoNewPrivs") == "1"
        assert guest.status("NSpid").split()[-1] == "2"
        assert guest.status("NoNewPrivs", guest.first) == "1"
        assert {guest.status(f"Cap{one}", guest.first) for one in ("Prm", "Eff", "Bnd")} == {
            "0" * 16
        }
        environment = Path(f"/proc/{guest.pid}/environ").read_bytes()
        assert b"of the host" not in environment
        assert sorted(os.listdir(f"/proc/{guest.first}/fd")) == ["0", "1", "2"]
        assert "memfd:of_the_host" not in {
            os.readlink(f"/proc/{guest.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{guest.pid}/fd")
        }


def test_what_it_sees_of_files(jailed: Callable[..., Jailed]) -> None:
    with jailed() as guest:
        root = Path(f"/proc/{guest.pid}/root")
        assert set(os.listdir(root / "etc")) <= {"ld.so.cache"}
        assert set(os.listdir(root / "dev")) <= {
            *("kvm", "net", "vhost-net", "vhost-vsock", "urandom", "null"),
        }
        assert {name for name in os.listdir(root / "proc") if name.isdigit()} == {"1", "2"}
        assert not (root / "opt/pyvirt/pyvirt/tests").exists()
        flags = {}
        for line in Path(f"/proc/{guest.pid}/mountinfo").read_text(encoding="utf-8").splitlines():
            _, _, _, _, place, options, *_ = line.split(" ")
            flags[place] = options.split(",")
        assert {place for place, one in flags.items() if "rw" in one} == {"/run", "/disk.img"}
        assert all("nosuid" in one for one in flags.values())
        assert {place for place, one in flags.items() if "nodev" not in one} == {"/dev"}


def test_a_monitor_plugs_what_a_source_has(
    jailed: Callable[..., Jailed], base: Path, tmp_path: Path
) -> None:
    images = base / "images"
    images.mkdir()
    (images / "b.img").write_bytes(bytes(1 << 20))
    for path in (images, images / "b.img"):
        os.chown(path, USER, USER)
    with jailed(jail=("-source", str(images))) as guest:
        execute = guest.client.execute

        def add(path: str) -> None:
            file = {"driver": "file", "filename": path}
            execute("blockdev-add", {"node-name": "b", "driver": "raw", "file": file})
            execute(
                "device_add",
                {"driver": "virtio-blk-device", "id": "b", "drive": "b", "addr": "1"},
            )

        with pytest.raises(CommandError, match="No such file or directory"):
            add(str(images / "b.img"))
        add("/images/b.img")
        execute("quit")
        assert guest.ended() == 0
    assert left(base) == ["disk.img", "images", "images/b.img"]


# Of a guest whose driver has them all run, as far as the kernel keeps their names.
OF_DEVICES = (
    *("disk vda", "vacant vdb", "net eth0", "ports virtio-se", "rng virtio-rng "),
    *("balloon virtio-", "vsock vsock vso"),
)


@pytest.fixture
def driven(kernel: Kernel, base: Path) -> Iterator[Callable[..., Jailed]]:
    """Yield a function that starts a machine in which each kind of thread is at work."""
    network = base / "network"
    network.mkdir()
    options = (
        *("-netdev", "stream,id=n,path=/network/s"),
        *("-device", "virtio-net-device,netdev=n"),
        *("-chardev", "null,id=c", "-device", "virtio-serial-device"),
        *("-device", "virtserialport,chardev=c,name=org.example.port"),
        *("-object", "rng-random,id=r", "-device", "virtio-rng-device,rng=r"),
        *("-device", "virtio-balloon-device"),
        *("-device", "vsock-device,guest-cid=3,uds=/run/v"),
    )

    def start(*more: str) -> Jailed:
        return Jailed(kernel("drivers"), base, ("-source", str(network)), (*options, *more))

    with socket.socket(socket.AF_UNIX) as peer:
        peer.bind(str(network / "s"))
        peer.listen(1)
        for path in (network, network / "s"):
            os.chown(path, USER, USER)
        yield start


def test_code_that_runs_in_a_thread_gets_no_further(driven: Callable[..., Jailed]) -> None:
    with driven("-sandbox", "off") as guest, socket.create_server(("127.0.0.1", 0)) as server:
        for comm in ("main", "qmp", "vcpu0", "console serial0", *OF_DEVICES):
            gets_no_further(guest, comm, server)


def gets_no_further(guest: Jailed, comm: str, server: socket.socket) -> None:
    captive = guest.captive(comm)

    def call(name: str, *arguments: int | bytes) -> int:
        return captive.result(NUMBERS[name], *arguments)

    opens = (-100, b"/etc/passwd", os.O_RDONLY)
    assert call("openat", *opens) == -errno.ENOENT
    own = (b"/opt/pyvirt/pyvirt/errors.py", b"/drivers.elf")
    for path in (b"/new", b"/dev/new", b"/proc/new", *own):
        made = call("openat", -100, path, os.O_RDWR | os.O_CREAT, 0o600)
        assert made in {-errno.EROFS, -errno.ENOENT, -errno.EACCES}, path
    assert call("openat", -100, b"/disk.img", os.O_RDWR) > 0
    assert call("execve", b"/bin/sh", 0, 0) == -errno.ENOENT
    assert call("mknod", b"/run/disk", 0o60600, 0xFE00) == -errno.EPERM
    assert call("mount", b"none", b"/run", b"tmpfs", 0, 0) == -errno.EPERM
    assert call("setuid", 0) < 0
    # The parent, and who runs the test.
    assert call("ptrace", 16, 1, 0, 0) == -errno.EPERM
    for pid in (guest.process.pid, os.getpid()):
        assert call("ptrace", 16, pid, 0, 0) == -errno.ESRCH
        assert call("kill", pid, 0) == -errno.ESRCH
    fd = call("socket", socket.AF_INET, socket.SOCK_STREAM, 0)
    port = server.getsockname()[1].to_bytes(2, "big")
    address = (2).to_bytes(2, "little") + port + bytes([127, 0, 0, 1]) + bytes(8)
    assert call("connect", fd, address, 16) == -errno.ENETUNREACH
    captive.release()


def test_with_a_sandbox_it_makes_no_call(driven: Callable[..., Jailed]) -> None:
    with driven("-sandbox", "on") as guest:
        for comm in ("vcpu0", "console serial0", *OF_DEVICES):
            captive = guest.captive(comm, filters=2 if comm == "vcpu0" else 1)
            for name, arguments in (
                ("openat", (-100, b"/etc/passwd", 0)),
                ("socket", (2, 1, 0)),
                ("execve", (b"/bin/sh", 0, 0)),
                ("ptrace", (16, 1, 0, 0)),
            ):
                assert captive.call(NUMBERS[name], *arguments) == signal.SIGSYS, (comm, name)
            if comm != OF_DEVICES[-1]:
                captive.release()
        captive.let(signal.SIGSYS)
        assert guest.ended() == 128 + signal.SIGSYS
        assert re.search(r"SIGSYS at the system call ptrace", guest.errors)


@pytest.mark.parametrize("comm", ["main", "qmp", "helper"])
def test_with_a_sandbox_python_opens_what_is_there(
    jailed: Callable[..., Jailed], comm: str
) -> None:
    with jailed("-sandbox", "on") as guest:
        captive = guest.captive(comm)
        opened = NUMBERS["openat"]
        assert captive.result(opened, -100, b"/etc/passwd", os.O_RDONLY) == -errno.ENOENT
        assert captive.result(opened, -100, b"/new", os.O_RDWR | os.O_CREAT) == -errno.EROFS
        assert captive.result(opened, -100, b"/run/new", os.O_RDWR | os.O_CREAT, 0o600) > 0
        for name, arguments in (
            ("socket", (17, 3, 0)),
            ("execve", (tree.PYTHON.encode(), 0, 0)),
            ("ptrace", (16, 1, 0, 0)),
            ("unshare", (calls.CLONE_NEWUSER,)),
        ):
            assert captive.call(NUMBERS[name], *arguments) == signal.SIGSYS, name
        captive.let(signal.SIGKILL)


def test_a_back_end_of_the_host_serves_it(jailed: Callable[..., Jailed], base: Path) -> None:
    """Its socket is in a folder that is a source, by which a virtiofsd is found as well."""
    folder = base / "network"
    folder.mkdir()
    switch = Switch(folder / "s", features=ALL, protocol=PROTOCOL)
    try:
        for path in (folder, folder / "s"):
            os.chown(path, USER, USER)
        words = (
            *("-machine", "mem-share=on", "-chardev", "socket,id=c,path=/network/s"),
            *("-netdev", "vhost-user,id=n,chardev=c", "-device", "virtio-net-device,netdev=n"),
        )
        with jailed(*words, jail=("-source", str(folder))) as guest:
            counted = guest.client.execute("x-query-stats")
            connected = [
                one["value"]
                for device in counted
                for one in device["stats"]
                if one["name"] == "connected"
            ]
            assert connected == [1]
    finally:
        switch.die()


def test_a_machine_that_is_killed_leaves_nothing(jailed: Callable[..., Jailed], base: Path) -> None:
    with jailed() as guest:
        os.kill(guest.pid, signal.SIGKILL)
        assert guest.ended() == 128 + signal.SIGKILL
    assert left(base) == ["disk.img"]


def test_a_jailer_that_is_killed_takes_the_machine_with_it(
    jailed: Callable[..., Jailed], base: Path
) -> None:
    with jailed() as guest:
        guest.process.kill()
        for pid in (guest.first, guest.pid):
            wait_for(lambda pid=pid: not is_running(pid), "its end")  # type: ignore[misc]
    assert "a/run" in left(base)
    with jailed() as guest:  # the next removes what is there
        guest.process.kill()
        wait_for(lambda: not is_running(guest.pid), "its end")
    assert run(*words(base, "-clean-resource")) == (0, b"", "")
    assert left(base) == ["disk.img"]
    status, _, error = run(*words(base, "-clean-resource"))
    assert (status, error.count("\n")) == (2, 1)
    assert "jail: -name a: nothing of such a jail" in error


def test_who_ends_the_jailer_ends_the_machine_in_good_order(
    jailed: Callable[..., Jailed], base: Path
) -> None:
    with jailed() as guest:
        guest.process.terminate()
        assert guest.ended() == 0
        assert guest.errors == ""
    assert left(base) == ["disk.img"]


def test_one_of_a_name_runs(jailed: Callable[..., Jailed], base: Path, kernel: Kernel) -> None:
    with jailed():
        for more in (("-clean-resource",), machine(kernel("console"))):
            status, _, error = run(*as_user(base, *more))
            expected = "pyvirt: jail: -name a: such a jail runs; end it, or give another name\n"
            assert (status, error) == (2, expected)


def test_a_copy_is_the_users_own(jailed: Callable[..., Jailed], tmp_path: Path) -> None:
    image = tmp_path / "of_root"
    image.write_bytes(b"mine")
    image.chmod(0o400)
    with jailed(jail=("-source", f"{image},copy")) as guest:
        there = Path(f"/proc/{guest.pid}/root/of_root")
        assert there.read_bytes() == b"mine"
        assert (there.stat().st_uid, there.stat().st_mode & 0o777) == (USER, 0o600)
    assert image.stat().st_uid == 0


def test_a_network_and_capabilities_are_kept(jailed: Callable[..., Jailed]) -> None:
    with subprocess.Popen(["unshare", "-n", "sleep", "600"]) as other:
        try:
            theirs = f"/proc/{other.pid}/ns/net"
            mine = os.readlink("/proc/self/ns/net")
            wait_for(lambda: os.readlink(theirs) != mine, "its network")
            with jailed(jail=("-netns", theirs, "-capability", "CAP_NET_ADMIN,net_raw")) as guest:
                assert os.readlink(f"/proc/{guest.pid}/ns/net") == os.readlink(theirs)
                for one in ("Prm", "Eff", "Bnd", "Amb"):
                    assert int(guest.status(f"Cap{one}"), 16) == 1 << 12 | 1 << 13
                assert guest.status("Uid").startswith(str(USER))
                mine = os.readlink("/proc/self/ns/user")
                assert os.readlink(f"/proc/{guest.pid}/ns/user") == mine
        finally:
            other.kill()


def test_a_cgroup_ends_what_is_in_it() -> None:
    """One without limits, for which a host may leave no controller to version 2."""
    top = cgroup.find()
    if top is None:
        pytest.skip("cgroup v2 is not mounted; mount -t cgroup2 none /sys/fs/cgroup")
    group = cgroup.Group(f"{top.path}/pyvirt/test-{os.getpid()}", {})
    cgroup.make(group)
    try:
        with subprocess.Popen(["sleep", "600"]) as process:
            cgroup.add(group, process.pid)
            text = Path(group.path, "cgroup.procs").read_text(encoding="ascii")
            assert text == f"{process.pid}\n"
            cgroup.remove(group.path)
            assert process.wait(PATIENCE) == -signal.SIGKILL
    finally:
        cgroup.remove(group.path)
    assert not os.path.exists(group.path)


FAILS = """
import sys
from pyvirt.cli import main
from pyvirt.cli.jailer import cgroup
def write(path, name, text):
    if name == "cgroup.procs":
        raise OSError(28, "No space left on device", name)
cgroup.find = lambda: cgroup.Top(sys.argv[1], ("pids",))
cgroup._write = write
main.end(lambda: main.dispatch(sys.argv[2:]))
"""


def test_a_jailer_that_fails_says_so_once(kernel: Kernel, base: Path) -> None:
    console = kernel("console")
    program = [sys.executable, "-c", FAILS, str(base)]
    limited = ("-source", f"{console},ro", "-cgroup", "pids.max=9")
    status, _, error = run(*program, *as_user(base, *limited)[1:], *machine(console))
    assert (status, error) == (1, "pyvirt: jail: cgroup.procs: No space left on device\n")
    assert left(base) == []


ROOTLESS = """
mount --bind "$1" /dev/kvm
shift
exec setpriv --reuid={user} --regid={user} --clear-groups --bounding-set=-all "$@"
"""


def test_without_root(kernel: Kernel, base: Path) -> None:
    """Where the user may open /dev/kvm: this host's is root's alone, so in a view of its own."""
    console = base / "console"
    shutil.copy(kernel("console"), console)
    node = base / "kvm"
    os.mknod(node, 0o20666, os.stat(_KVM).st_rdev)
    node.chmod(0o666)
    mine = base / "jails"
    mine.mkdir()
    os.chown(mine, USER, USER)
    shell = ("unshare", "-m", "sh", "-c", ROOTLESS.format(user=USER), "sh", str(node))
    done = run(*shell, *words(mine, "-source", f"{console},ro"), *machine(console))
    assert done == (STATUS, TEXT, "")
    assert left(mine) == []
