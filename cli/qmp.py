"""`pyvirt qmp`: talk to a machine's monitor, one command at a time or in a shell."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from ..errors import BackendError, ConfigError, PyvirtError
from ..qmp import words
from ..qmp.client import Client, printable, state_folder
from . import usage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

USAGE = """\
usage: pyvirt qmp SOCKET [COMMAND [member=value...]]

SOCKET is the path of a machine's monitor, or tcp:HOST:PORT; pyvirt ps lists the running machines.
With a COMMAND, sends it, prints what it returns, and ends with status 1 when it is refused.
Without, a shell: Tab completes, events are shown as they come, Ctrl-D leaves.

  pyvirt qmp /tmp/guest.sock query-status
  pyvirt qmp /tmp/guest.sock device_add id=drive-0 driver=virtio-blk-mmio addr=0x1
  pyvirt qmp /tmp/guest.sock blockdev-add node-name=drive-0 file.driver=file file.filename=d.img
"""
_PROMPT = "(qmp) "
_HISTORY_MAX = 1000
_AGAIN_S = 0.1
_ERASE = "\r\x1b[K"
_OWN = ("help", "exit")  # words of the shell itself


def main(argv: list[str]) -> int:
    """Run `pyvirt qmp ARGV`; return the exit status."""
    if usage.shown(USAGE, argv):
        return 0
    if not argv:
        raise ConfigError("qmp: name a monitor's socket; pyvirt qmp -help tells more")
    if argv[0].startswith("-"):
        raise ConfigError(f"qmp: {argv[0]}: no such option; pyvirt qmp -help tells more")
    place, *rest = argv
    if rest:
        return _once(place, rest[0], rest[1:])
    return _Shell(place).run()


def _once(place: str, command: str, given: list[str]) -> int:
    arguments = words.arguments(command, given)
    client = Client(place, lambda _: None)
    try:
        sys.stdout.write(_pretty(client.execute(command, arguments)))
    finally:
        client.close()
    return 0


def _pretty(value: object) -> str:
    """Return a value for people; what a command without a result returns is nothing."""
    return "" if value == {} else json.dumps(value, indent=2) + "\n"


class _Shell:
    """The shell, on a terminal or on lines from elsewhere.

    On a terminal a thread of its own shows events while the user types; `_talking` is held by
    whoever reads from the connection.
    """

    def __init__(self, place: str) -> None:
        self._at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._talking = threading.Lock()
        self._typing = False
        self._closed = False
        self._client = Client(place, self._show_event)
        self._commands = [entry["name"] for entry in self._client.execute("query-commands")]
        self._failed = False

    def run(self) -> int:
        """Read and run lines until they end; return 1 when a command failed that nobody saw."""
        if not self._at_terminal:
            for line in sys.stdin:
                if line.strip() == "exit":
                    break
                self._run_line(line)
            self._client.close()
            return 1 if self._failed else 0
        package = self._client.version.get("package") or "a QMP monitor"
        print(f"Connected to {package}. `help` lists commands; `quit` ends the machine, Ctrl-D "
              "this shell.")  # fmt: skip
        threading.Thread(target=self._watch, daemon=True).start()
        with self._history():
            while True:
                try:
                    line = self._read_line()
                    if line is None or line.strip() == "exit":
                        return 0
                    self._run_line(line)
                except KeyboardInterrupt:
                    typing, self._typing = self._typing, False
                    if self._closed:
                        return 0
                    print()
                    if not typing:
                        # The answer that it did not wait for would be taken for the next one.
                        return 130

    def _read_line(self) -> str | None:
        """Return what the user types, None at the end; KeyboardInterrupt leaves `_typing` set."""
        self._typing = True
        try:
            line = input(_PROMPT)
        except EOFError:
            print()
            return None
        self._typing = False
        return line

    def _watch(self) -> None:
        """Show events while no command is waiting for its answer."""
        while True:
            select.select([self._client], [], [])
            with self._talking:
                if select.select([self._client], [], [], 0)[0]:
                    try:
                        self._client.pump()
                    except PyvirtError as error:
                        sys.stdout.write(f"{_ERASE}{error}\n")
                        self._closed = True
                        self._interrupt()
                        return

    def _interrupt(self) -> None:
        """End the wait for a line, which leaves the terminal as it was.

        A signal that comes just before the wait begins does not end it, so one is not enough.
        """
        main = threading.main_thread().ident
        assert main is not None
        while self._typing:
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(_AGAIN_S)

    def _show_event(self, event: dict[str, Any]) -> None:
        told = f"{printable(str(event['event']))} {json.dumps(event.get('data', {}))}\n"
        if not self._typing:
            sys.stdout.write(told)
            sys.stdout.flush()
            return
        import readline

        sys.stdout.write(f"{_ERASE}{told}{_PROMPT}{readline.get_line_buffer()}")
        sys.stdout.flush()

    def _run_line(self, line: str) -> None:
        try:
            with self._talking:
                sys.stdout.write(self._answer(line.strip()))
        except BackendError:
            raise
        except PyvirtError as error:
            self._failed = True
            sys.stderr.write(f"{error}\n")
        sys.stdout.flush()

    def _answer(self, line: str) -> str:
        if not line or line.startswith("#"):
            return ""
        if line.startswith("{"):
            answer = self._client.ask(line)
            self._failed = self._failed or "error" in answer
            return json.dumps(answer) + "\n"
        try:
            command, *given = shlex.split(line)
        except ValueError as error:
            raise ConfigError(f"{line}: {error}") from None
        if command == "help":
            return self._help(given)
        return _pretty(self._client.execute(command, words.arguments(command, given)))

    def _help(self, given: list[str]) -> str:
        if not given:
            return "\n".join(self._commands) + "\nhelp COMMAND tells more of one.\n"
        text = words.usage(given[0])
        if not text:
            raise ConfigError(f"help {given[0]}: nothing is known of it; see docs/qmp.md")
        return text + "\n"

    @contextlib.contextmanager
    def _history(self) -> Iterator[None]:
        """Set line editing up, with the lines of earlier shells."""
        import readline

        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")
        readline.set_completer(self._complete)
        readline.set_history_length(_HISTORY_MAX)
        file = os.path.join(state_folder(), "qmp_history")
        with contextlib.suppress(OSError):
            os.makedirs(state_folder(), mode=0o700, exist_ok=True)
            readline.read_history_file(file)
        try:
            yield
        finally:
            # A home that cannot be written is no reason to complain at every end.
            with contextlib.suppress(OSError):
                readline.write_history_file(file)

    def _complete(self, text: str, index: int) -> str | None:
        import readline

        before = readline.get_line_buffer()[: readline.get_begidx()].split()
        if not before:
            found = [f"{name} " for name in (*self._commands, *_OWN) if name.startswith(text)]
        elif before == ["help"]:
            found = [name for name in self._commands if name.startswith(text)]
        else:
            found = words.completions(before[0], text)
        return found[index] if index < len(found) else None
