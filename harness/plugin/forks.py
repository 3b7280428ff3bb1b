"""Which VMs of a session go on from where another stood, and what those templates are.

A template is booted, prepared and taken when the first VM asks for it, and goes with the module.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ...errors import ConfigError, PyvirtError
from ..vm import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from ..guest.kernel import Kernel
    from ..vm.config import VmConfig
    from ..vm.snapshot import Snapshot
    from ..vm.vm import VM

NEVER, MARKED, AUTO, ALWAYS = MODES = ("never", "marked", "auto", "always")
TEMPLATES_MAX = 4  # at once: each has the memory that its guest has used
_WORTH = 2  # a template costs as much as a boot
_FAILURES = (Exception, pytest.fail.Exception, pytest.skip.Exception)


class _Template:
    """What became of one: a snapshot, why there is none, or neither, for no fault of its own."""

    def __init__(
        self, snapshot: Snapshot | None = None, error: BaseException | None = None
    ) -> None:
        self.snapshot = snapshot
        self.error = error
        self.traceback = error.__traceback__ if error is not None else None

    def close(self) -> None:
        if self.snapshot is not None:
            self.snapshot.close()


class Forks:
    """The templates of a session; owns them until `close`. One thread."""

    def __init__(self, mode: str) -> None:
        """`mode` is one of MODES."""
        self._mode = mode
        self._counted: Counter[Hashable] = Counter()
        self._templates: OrderedDict[Hashable, _Template] = OrderedDict()

    def count(self, items: Iterable[tuple[pytest.Item, VmConfig]]) -> None:
        """Take note of the tests to come that have a VM, and what that is to be."""
        self._counted.update(_kind(item, config) for item, config in items)

    def wants(self, item: pytest.Item, kernel: Kernel, config: VmConfig) -> bool:
        """Say whether a test's VM is to be a fork; ConfigError where it cannot, and has to."""
        if self._mode == NEVER or config.fork is False:
            return False
        reason = fork.obstacle(config)
        if config.fork:
            if reason:
                raise ConfigError(f"vm: fork=True: not with {reason}; leave one of them out")
            return True
        if reason or self._mode == ALWAYS:
            return not reason
        return self._mode == AUTO and (
            not fork.shows(config)
            and (kernel.config or {}).get("CONFIG_KVM_GUEST") == "y"
            and self._counted[_kind(item, config)] >= _WORTH
        )

    def find(
        self, kernel: Kernel, config: VmConfig, name: str, server: str, make: Callable[..., VM]
    ) -> Snapshot | None:
        """Return where a VM is to begin; None: it is to boot. What `prepare` raises, PyvirtError.

        `server` is the fork server's socket; `make` makes the VM that becomes the template, with a
        configuration in place of `config`.
        """
        # Two guests of one network are not to have the same addresses.
        key = (kernel.image, fork.likeness(config), name if config.nets else "")
        found = self._templates.get(key)
        if found is not None and found.snapshot is not None and found.snapshot.server != server:
            self._templates.pop(key).close()
            found = None
        if found is None:
            while len(self._templates) >= TEMPLATES_MAX:
                self._templates.popitem(last=False)[1].close()
            found = self._templates[key] = _made(config, make)
        self._templates.move_to_end(key)
        if found.error is not None:
            raise found.error.with_traceback(found.traceback)
        return found.snapshot

    def end(self, item: pytest.Item, following: pytest.Item | None) -> None:
        """Let the templates go at the end of a module."""
        if following is None or _group(following) != _group(item):
            self.close()

    def close(self) -> None:
        """Let all templates go; VMs that began there live on."""
        while self._templates:
            self._templates.popitem()[1].close()


def _group(item: pytest.Item) -> str:
    module = item.getparent(pytest.Module)
    return "" if module is None else module.nodeid


def _kind(item: pytest.Item, config: VmConfig) -> Hashable:
    params = getattr(item, "callspec", None)
    kernel = params.params.get("kernel") if params is not None else None
    return _group(item), kernel, fork.likeness(config)


def _made(config: VmConfig, make: Callable[..., VM]) -> _Template:
    vm = make(replace(config, prepare=None, fork=None))
    try:
        vm.start()
    except PyvirtError:
        # What is wrong with it shows in the test's own boot.
        vm.close()
        return _Template()
    try:
        if config.prepare is not None:
            config.prepare(vm)
    except _FAILURES as error:
        return _Template(error=error)
    try:
        return _Template(vm.into_snapshot())
    except PyvirtError as error:
        vm.close()
        return _Template(error=error if config.fork else None)
