"""One command in the lab, from start to end."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ...devices.unix_socket import UnixListener
from ...errors import BackendError, ConfigError
from ...files import SOCKET_PATH_MAX
from . import image, qemu
from .client import Client, Command, LinkClosedError
from .machines import Machines
from .protocol import TEXT_MAX
from .signals import Signals

_BACKLOG = 16
_COUNTING = 10  # times as long as another's, a second of a lab that counts may be


def run(
    command: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    forward: Sequence[tuple[str, str]] = (),
    memory_mib: int = 4096,
    cpus: int = 1,
    icount: bool = False,
    timeout: float | None = None,
    ready: Callable[[], None] = lambda: None,
    machines: str | None = None,
) -> int:
    """Boot the lab, run `command` in it, and return its exit status.

    It runs as root on the host's file system, in `cwd` and with `env` (of this process, if
    None) with PYVIRT_LAB=1 and, so that modprobe finds the lab kernel's modules,
    MODPROBE_OPTIONS; on this process's stdin, stdout and stderr. The status is 128+N
    when signal N ended it; 126 or 127 when it could not be started, which stderr then says.

    `forward` is pairs of a path here and the path of a Unix socket in the lab, best on a
    file system of its own such as /dev/shm: connections to the first, which this makes (mode
    0600) and removes, are carried to the second; `ready` is called when it listens, before the
    lab boots. Machines that run in the lab are entered in the folder `machines`, where the sockets
    of their monitors appear, too (machines.py). With `icount` the lab's clock counts instructions,
    and processor time is the same every time (docs/lab.md). `timeout` is in seconds, from the
    lab's start.

    In the main thread, SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on to the command; a
    second one, or 10 s without an end, ends the lab. Raises ConfigError for bad values,
    BackendError when something is missing, the lab fails or time is up; LabHangsError, which is
    one, when the lab has stopped (docs/lab.md).
    """
    what = _command(command, cwd, env)
    qemu.check(memory_mib, cpus)
    for pair in forward:
        _check_forward(*pair)
    lab_image = image.prepare()
    extra = {"MODPROBE_OPTIONS": lab_image.modprobe, "PYVIRT_LAB_MACHINES": machines or ""}
    what = what._replace(env={**what.env, **extra})
    with contextlib.ExitStack() as resources:
        signals = resources.enter_context(Signals())
        listeners = [(resources.enter_context(_listening(h)), p) for h, p in forward]
        ready()
        machine = qemu.Machine(lab_image, memory_mib=memory_mib, cpus=cpus, icount=icount)
        resources.callback(machine.close)
        found = Machines(machines) if machines else None
        if found is not None:
            resources.callback(found.close)
        client = Client(
            machine.link,
            what,
            signals,
            forward=listeners,
            machines=found,
            timeout=timeout,
            slow=_COUNTING if icount else 1,
        )
        try:
            return client.run()
        except LinkClosedError:
            raise BackendError(machine.explain()) from None


def _command(command: Sequence[str], cwd: str | None, env: Mapping[str, str] | None) -> Command:
    if not command:
        raise ConfigError("lab: no command to run; give one after --")
    where = str(Path.cwd()) if cwd is None else cwd
    environment = {**(os.environ if env is None else env), "PYVIRT_LAB": "1"}
    environment.pop("PYVIRT_SERVE", None)  # a socket of this host, which is none there
    for text in (*command, where, *(f"{k}={v}" for k, v in environment.items())):
        if "\0" in text or len(os.fsencode(text)) >= TEXT_MAX:
            raise ConfigError(
                f"lab: {text[:40]!r}...: arguments and environment strings have no NUL and are "
                f"shorter than {TEXT_MAX} bytes"
            )
    return Command(list(command), where, environment)


def _check_forward(host_path: str, lab_path: str) -> None:
    option = f"-forward {host_path}={lab_path}"
    if not host_path or not lab_path.startswith("/"):
        raise ConfigError(f"{option}: give HOST=LAB, with LAB an absolute path")
    for path in (host_path, lab_path):
        if "\0" in path or len(os.fsencode(path)) > SOCKET_PATH_MAX:
            raise ConfigError(f"{option}: a socket's path is at most {SOCKET_PATH_MAX} bytes long")


@contextlib.contextmanager
def _listening(path: str) -> Iterator[socket.socket]:
    """Listen on a Unix socket at `path`, which is removed in the end."""
    try:
        listener = UnixListener(path, mode=0o600, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"-forward {path}: {error.strerror}") from None
    try:
        with socket.socket(fileno=os.dup(listener.fd)) as listening:
            yield listening
    finally:
        listener.close()
