"""A VM that is none: programs are Python functions, the console is a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pyvirt.errors import GuestError


class EndedError(GuestError):
    """The VM's end, as the real one raises it."""

    def __init__(self, verdict: str, text: str) -> None:
        self.verdict = verdict
        super().__init__(text)


class Result(NamedTuple):
    code: int


class Console:
    def __init__(self, text: str) -> None:
        self._text = text

    def text(self, mark: int = 0) -> str:
        return self._text[mark:]


class FakeVm:
    """Runs the program whose name is in the command: its output and how it ends."""

    def __init__(
        self,
        programs: dict[str, tuple[str, int | Exception]] | None = None,
        *,
        log: str = "",
        end: Exception | None = None,
        **options: Any,
    ) -> None:
        self.programs = programs or {}
        self.console = Console(log)
        self.end = end
        self.options = options
        self.commands: list[tuple[str, float | None]] = []

    def start(self) -> None:
        if self.end is not None:
            raise self.end

    def wait_for_console(self, pattern: str, timeout: float | None = None) -> None:
        if pattern not in self.console.text():
            raise EndedError("timeout", f"console: no {pattern} in {timeout} s")

    def run(
        self,
        command: str,
        *,
        timeout: float | None = None,
        on_output: Callable[[int, bytes], None] | None = None,
        check: bool = False,
    ) -> Result:
        self.commands.append((command, timeout))
        name = next((name for name in self.programs if name in command), None)
        output, end = self.programs[name] if name is not None else ("", 0)
        if on_output is not None:
            for i in range(0, len(output), 7):
                on_output(1, output[i : i + 7].encode())
        if isinstance(end, Exception):
            raise end
        return Result(end)
