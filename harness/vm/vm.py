"""A VM under test, and all that a test may do with it.

The first verb that needs the guest boots it. Every verb waits for a limited time, and wakes within
a second of the VM's end, with the error that tells its verdict (end.py).
"""

from __future__ import annotations

import contextlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..agent.protocol import AgentError
from ..judge import evidence, report
from .boot import CLOSE_S
from .console import ConsoleEndedError, ConsoleTimeoutError
from .end import CommandFailedError
from .hotplug import Hotplug
from .life import SETTLE_S, Life
from .watch import GOOD_ENDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from ..agent.process import Process as GuestProcess

_SLICE_S = 0.2


@dataclass(frozen=True)
class RunResult:
    """How a command in the guest ended; `code` is 128+N after signal N, `duration` in seconds."""

    command: str
    code: int
    output: bytes
    errors: bytes
    duration: float

    @property
    def stdout(self) -> str:
        """Return what it wrote to stdout, as text."""
        return self.output.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Return what it wrote to stderr, as text."""
        return self.errors.decode(errors="replace")


class VM(Life):
    """A VM and the verbs of tests; the first that needs the guest boots it."""

    @property
    def hotplug(self) -> Hotplug:
        """Return the verbs that plug and unplug."""
        return Hotplug(self)

    # Commands.

    def spawn(
        self,
        command: str | Sequence[str],
        *,
        input: bytes | str | None = None,  # noqa: A002  (the word of subprocess)
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        on_output: Callable[[int, bytes], None] | None = None,
    ) -> GuestProcess:
        """Start a command and return at once; a str is for /bin/sh -c. It ends with the VM."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        stdin = input.encode() if isinstance(input, str) else input
        with self._guest(_shown(command), 0.0) as agent:
            return agent.spawn(argv, stdin=stdin, env=env or {}, cwd=cwd, on_output=on_output)

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = False,
        input: bytes | str | None = None,  # noqa: A002  (the word of subprocess)
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        on_output: Callable[[int, bytes], None] | None = None,
    ) -> RunResult:
        """Run a command to its end; a str is for /bin/sh -c.

        `timeout` is in seconds (default: the call limit); at its end the command is killed and
        GuestTimeoutError raised. `check`: CommandFailedError for a status other than 0.
        `on_output` is called with 1 (stdout) or 2 and bytes as they come, on another thread.
        """
        limit = self.config.limits.call if timeout is None else timeout
        process = self.spawn(command, input=input, env=env, cwd=cwd, on_output=on_output)
        with self._guest(_shown(command), limit) as agent:
            try:
                found = process.wait(limit)
            except BaseException:
                with contextlib.suppress(AgentError):
                    agent.drop(process)
                raise
        if found.signalled:
            self._let_kernel_speak()
        result = RunResult(_shown(command), found.code, found.stdout, found.stderr, found.duration)
        if check and result.code != 0:
            raise self._failed(result, "it was to succeed")
        return result

    def _let_kernel_speak(self) -> None:
        """Wait for the report of a kernel that has died of the command it killed; then raise."""
        if self.new_taint() & 1 << 7:
            self._there().watch.ended.wait(SETTLE_S)
        self._check()

    def _failed(self, result: RunResult, wanted: str) -> CommandFailedError:
        last = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        text = f"{result.command}: status {result.code}, {wanted}" + "".join(f": {w}" for w in last)
        return CommandFailedError(text, self.evidence)

    def succeed(self, *commands: str | Sequence[str], timeout: float | None = None) -> str:
        """Run commands that must end with 0; return what they wrote to stdout."""
        return "".join(self.run(c, timeout=timeout, check=True).stdout for c in commands)

    def fail(self, *commands: str | Sequence[str], timeout: float | None = None) -> str:
        """Run commands that must not end with 0; return what they wrote to stdout."""
        output = ""
        for command in commands:
            result = self.run(command, timeout=timeout)
            if result.code == 0:
                raise self._failed(result, "it was to fail")
            output += result.stdout
        return output

    # Waiting.

    def wait_until_succeeds(
        self, command: str | Sequence[str], timeout: float | None = None
    ) -> str:
        """Run a command again and again until it ends with 0; return its stdout."""

        def look(left: float) -> RunResult | None:
            result = self.run(command, timeout=left)
            return result if result.code == 0 else None

        result: RunResult = self._wait_until(_shown(command), timeout, look)
        return result.stdout

    def wait_for_file(self, path: str, timeout: float | None = None) -> None:
        """Wait until the guest has a file, folder or device of that path."""

        def look(left: float) -> bool:
            with self._guest(path, left) as agent:
                return agent.exists(path, timeout=left)

        self._wait_until(f"file {path}", timeout, look)

    def wait_for_console(
        self, pattern: str | re.Pattern[str], timeout: float | None = None, mark: int = 0
    ) -> re.Match[str]:
        """Wait until a line of the console matches; return the first match from `mark` on."""
        self.start()

        def look(left: float) -> re.Match[str] | None:
            try:
                return self.console.wait_for(pattern, min(left, _SLICE_S), mark)
            except ConsoleTimeoutError:
                self._check()
            except ConsoleEndedError:
                self._there().watch.ended.wait(CLOSE_S)
                self._check()
            return None

        found: re.Match[str] = self._wait_until(f"console: {pattern!r}", timeout, look)
        return found

    # Files.

    def put(
        self,
        path: str,
        content: bytes | str | Path,
        mode: int | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Make a file in the guest, of bytes, text, or a file of the host (with its x bits).

        A file of the host goes there piece by piece. `timeout` is in seconds (default: the call
        limit). ConfigError for a file that cannot be read.
        """
        limit = self.config.limits.call if timeout is None else timeout
        with contextlib.ExitStack() as files:
            if isinstance(content, Path):
                try:
                    source: bytes | BinaryIO = files.enter_context(content.open("rb"))
                except OSError as error:
                    raise ConfigError(f"put {path}: {content}: {error.strerror}") from None
                if mode is None and content.stat().st_mode & 0o111:
                    mode = 0o755
            else:
                source = content.encode() if isinstance(content, str) else content
            with self._guest(f"put {path}", limit) as agent:
                agent.put(path, source, 0o644 if mode is None else mode, timeout=limit)

    def get(self, path: str, *, timeout: float | None = None) -> bytes:
        """Return what is in a file of the guest, 256 MiB at most; `timeout` as for `put`."""
        limit = self.config.limits.call if timeout is None else timeout
        with self._guest(f"get {path}", limit) as agent:
            return agent.get(path, timeout=limit)

    def get_file(self, path: str, target: Path, *, timeout: float | None = None) -> None:
        """Make the file `target` of the host of one in the guest, piece by piece; as `get`.

        ConfigError when it cannot be written.
        """
        limit = self.config.limits.call if timeout is None else timeout
        try:
            with target.open("wb") as file, self._guest(f"get {path}", limit) as agent:
                agent.get_into(path, file, timeout=limit)
        except OSError as error:
            raise ConfigError(f"get {path}: {target}: {error.strerror}") from None

    def log(self) -> str:
        """Return the kernel's log, as `dmesg` shows it; after the VM's end, the console's text."""
        return self.console.text() if self.end is not None else self.succeed("dmesg")

    # Power.

    def poweroff(self) -> None:
        """Have the guest power off, and wait for it."""
        self._power("off", GOOD_ENDS["guest-shutdown"])

    def reboot(self) -> VM:
        """Have the guest reboot, and wait until its agent answers again; disks stay."""
        self._power("reboot", GOOD_ENDS["guest-reset"])
        self._next_boot()
        return self.start()

    def crash(self) -> None:
        """Have the guest's kernel panic (SysRq c), and wait for it. The VM stands then."""
        self._power("crash", "Kernel panic")

    def _power(self, how: Any, expected: str) -> None:
        watch = self._begin().watch
        with self._guest(how, self.config.limits.call) as agent:
            watch.expected = expected
            try:
                agent.power(how)
            except AgentError:
                if watch.end is None:
                    raise
        end = self.wait_for_end()
        if not end.expected:
            self._check()

    def kill(self) -> None:
        """Cut the power: SIGKILL for the monitor, and wait for its end."""
        boot = self._begin()
        boot.watch.expected = "the monitor was killed"
        boot.process.kill()
        self.wait_for_end()

    def pause(self) -> None:
        """Stop the vCPUs."""
        self.qmp.execute("stop")

    def resume(self) -> None:
        """Let the vCPUs run again."""
        self.qmp.execute("cont")

    # The monitor.

    @property
    def pid(self) -> int | None:
        """Return the monitor's process id, where it runs; None: there is none."""
        return None if self._boot is None else self._boot.pid

    @contextlib.contextmanager
    def expect_event(
        self, name: str, timeout: float | None = None, **data: object
    ) -> Iterator[list[dict[str, Any]]]:
        """Return a context whose end waits for an event with these members among its data.

        The list it gives has the event then.
        """
        watch = self._begin().watch
        found: list[dict[str, Any]] = []
        before = len(self.events(name))
        yield found

        def matches(event: Mapping[str, Any]) -> bool:
            given = event.get("data", {})
            return all(given.get(key) == value for key, value in data.items())

        def look(left: float) -> bool:
            with watch.changed:
                watch.changed.wait(min(left, _SLICE_S))
            found.extend(filter(matches, self.events(name)[before:]))
            if not found:
                self._check()
            return bool(found)

        self._wait_until(f"event {name} {data or ''}".rstrip(), timeout, look)

    def regs(self, vcpu: int = 0) -> dict[str, int]:
        """Return the registers of a vCPU by name, segments by their selectors."""
        return evidence.registers(self.qmp, vcpu)

    def backtrace(self, vcpu: int = 0) -> list[str]:
        """Return where a vCPU is, and how it came there, with the kernel's names."""
        return report.backtrace(self, vcpu)

    def dump_memory(self, path: Path | str) -> Path:
        """Save all of the guest's memory as an ELF core in a file of the host."""
        target = Path(path).absolute()
        arguments = {"paging": False, "protocol": f"file:{target}"}
        self.qmp.execute("dump-guest-memory", arguments, timeout=self.config.limits.call)
        return target


def _shown(command: str | Sequence[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)
