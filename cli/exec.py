"""`pyvirt exec`: run a command in a guest that has pyvirt's agent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

from ..errors import BackendError, ConfigError
from ..harness.agent import protocol
from ..harness.agent.client import Agent
from ..harness.agent.protocol import AgentError
from . import usage

if TYPE_CHECKING:
    from ..harness.agent.process import Process

USAGE = """\
usage: pyvirt exec SOCKET [--] COMMAND [ARGUMENT...]

Runs a command in a guest whose init is pyvirt's agent (pyvirt guest initramfs --agent), with its
input, output, signals and exit status. SOCKET is

  PATH          the socket of the port named pyvirt.agent
  vsock:PATH    that of -device vsock-device,uds=PATH
  vsock:CID     the guest's address, with -device vhost-vsock-device,guest-cid=CID

  pyvirt exec vsock:/tmp/guest.sock -- dmesg
  tar c src | pyvirt exec vsock:3 -- tar x -C /root
"""
_CONNECT_S = 10.0
_READY_S = 30.0
_DRAIN_S = 1e9
_PIECE = 1 << 16
_ANSWER_MAX = 32
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main(argv: list[str]) -> int:
    """Run `pyvirt exec ARGV`; return the command's exit status. Raises PyvirtError."""
    if usage.shown(USAGE, argv):
        return 0
    if not argv or argv[0] == "--":
        raise ConfigError("exec: name the guest's socket; pyvirt exec -help tells more")
    if argv[0].startswith("-"):
        raise ConfigError(f"exec: {argv[0]}: no such option; pyvirt exec -help tells more")
    place, *words = argv
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise ConfigError("exec: give a command; pyvirt exec -help tells more")
    connection = _connect(place)
    # No thread but the one that waits for them may get the command's signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    agent = Agent(connection)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        agent.wait_ready(_READY_S)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        return _run(agent, words)
    finally:
        agent.close()


def _connect(place: str) -> socket.socket:
    kind, _, rest = place.partition(":")
    family, address = socket.AF_UNIX, place
    if kind == "vsock":
        address = rest
        if rest.isascii() and rest.isdigit():
            return _open(socket.AF_VSOCK, (int(rest), protocol.VSOCK_PORT), place)
    connection = _open(family, address, place)
    if kind == "vsock":
        _ask_for_port(connection, place)
    return connection


def _open(family: int, address: str | tuple[int, int], place: str) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(_CONNECT_S)
    try:
        connection.connect(address)
    except (OSError, OverflowError) as error:
        connection.close()
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BackendError(
            f"exec {place}: {why}; is the guest running, and does it have the agent?"
        ) from None
    return connection


def _ask_for_port(connection: socket.socket, place: str) -> None:
    """Have the monitor connect us to the agent's port, as docs/machine.md says."""
    answer = b""
    try:
        connection.sendall(b"CONNECT %d\n" % protocol.VSOCK_PORT)
        # One by one, for what follows is the agent's.
        while not answer.endswith(b"\n") and len(answer) < _ANSWER_MAX:
            byte = connection.recv(1)
            if not byte:
                break
            answer += byte
    except OSError:
        answer = b""
    if not (answer.startswith(b"OK ") and answer.endswith(b"\n")):
        connection.close()
        raise BackendError(
            f"exec {place}: the guest has refused; its agent listens once it has started, "
            "if the guest's kernel has vmw_vsock_virtio_transport"
        )


class _Output:
    """Passes on what the command says; a reader that has gone ends it, as it would here."""

    def __init__(self) -> None:
        self.process: Process | None = None

    def __call__(self, stream: int, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(stream, view) :]
        except OSError:
            if self.process is not None:
                with contextlib.suppress(AgentError):
                    self.process.kill(signal.SIGPIPE)


def _run(agent: Agent, words: list[str]) -> int:
    output = _Output()
    try:
        process = agent.spawn(words, open_stdin=True, keep=0, on_output=output)
    except ValueError as error:
        raise ConfigError(f"exec: {error}") from None
    output.process = process
    for work in (_feed, _pass_signals):
        threading.Thread(target=work, args=(process,), daemon=True).start()
    result = process.wait()
    sys.stdout.flush()
    return result.code


def _pass_signals(process: Process) -> None:
    with contextlib.suppress(AgentError):
        while True:
            process.kill(signal.sigwait(_SIGNALS))


def _feed(process: Process) -> None:
    """Give the command our input, as fast as it takes it."""
    with contextlib.suppress(AgentError):
        while process.running and (data := _read()):
            process.write(data)
            process.drain(_DRAIN_S)
        process.close_stdin()


def _read() -> bytes:
    try:
        return os.read(0, _PIECE)
    except OSError:
        return b""
