"""Runs the host's tools: quietly, bounded in time, with failures told in one line."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ...errors import BackendError

POLL_S = 0.1
KILL_S = 2.0
# Where Debian keeps depmod, off a plain user's PATH.
SYSTEM_PATH = "/usr/sbin:/sbin"
# Debian packages of the tools that are not part of every Debian system.
PACKAGES = {
    "bc": "bc",
    "bison": "bison",
    "busybox": "busybox-static",
    "debugfs": "e2fsprogs",
    "depmod": "kmod",
    "flex": "flex",
    "gcc": "gcc",
    "lz4": "lz4",
    "make": "make",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "nft": "nftables",
    "xz": "xz-utils",
    "zstd": "zstd",
}
# The word as such, not the name of a library.
_TELLING = re.compile(r"^E:|(?<![\w-])error(?![\w-])", re.IGNORECASE)


class ToolMissingError(BackendError):
    """A tool is not installed; the message names the package that has it."""


def run(
    command: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    feed: bytes | None = None,
) -> bytes:
    """Run a tool that is soon done, fed with `feed`; return what it printed.

    `timeout` is in seconds.

    Raises ToolMissingError when it is not installed, BackendError when it fails or does not end
    in time.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=_environment(),
            input=feed,
            stdin=subprocess.DEVNULL if feed is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise _not_installed(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise _too_slow(command, timeout) from error
    if done.returncode:
        raise _failed(command, done.returncode, done.stderr or done.stdout)
    return done.stdout


def run_watched(
    command: Sequence[str],
    watch: Callable[[Path], None] = lambda _: None,
    *,
    timeout: float,
    cwd: Path,
    env: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run a tool that takes long, calling `watch` with the file of its output now and then.

    It finds `env` in its environment, beside what this process has. It and all it started are
    killed when it does not end in `timeout` seconds, or when this call is left by an exception.
    Raises as `run` does.
    """
    with tempfile.NamedTemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**_environment(), **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise _not_installed(command[0]) from error
        try:
            _watch(process, command, timeout, lambda: watch(Path(log.name)))
        finally:
            if process.poll() is None:
                _kill(process)
        if process.returncode:
            raise _failed(command, process.returncode, Path(log.name).read_bytes())


def _watch(
    process: subprocess.Popen[bytes],
    command: Sequence[str],
    timeout: float,
    watch: Callable[[], None],
) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise _too_slow(command, timeout) from None
            watch()
        else:
            return


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a tool and its children, and see them gone: what they write in will be removed."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + KILL_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(POLL_S / 10)


def _environment() -> dict[str, str]:
    """Return this process's environment, with messages in English and no questions asked."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}"
    return os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "PATH": path}


def _not_installed(tool: str) -> ToolMissingError:
    package = PACKAGES.get(tool)
    mend = f"; run: sudo apt-get install -y {package}" if package else ""
    return ToolMissingError(f"{tool} is not installed{mend}")


def _too_slow(command: Sequence[str], timeout: float) -> BackendError:
    return BackendError(f"{_short(command)} did not end within {timeout:.0f} s")


def _failed(command: Sequence[str], status: int, output: bytes) -> BackendError:
    """Return an error that quotes the first line telling of an error, else the last one."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    telling = [line for line in lines if _TELLING.search(line)]
    reason = (telling[:1] or lines[-1:] or [f"status {status}"])[0]
    return BackendError(f"{_short(command)} failed: {reason}")


def _short(command: Sequence[str]) -> str:
    """Return the tool and its first plain argument."""
    plain = [word for word in command[1:] if not word.startswith("-") and "::" not in word]
    return " ".join([Path(command[0]).name, *plain[:1]])
