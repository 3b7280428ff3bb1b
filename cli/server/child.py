"""What a server's children do from their fork on: they become monitors, or wait to become one."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import marshal
import os
import re
import resource
import signal
import socket
from typing import TYPE_CHECKING, NoReturn

from ...errors import PyvirtError, StateError, unexpected
from ...vmm import slots
from ...vmm.config import MachineConfig
from ...vmm.core import Core, plan, planned
from ...vmm.groundwork import Groundwork
from ...vmm.log import Log
from ..options.parse import parse
from .limits import LINE_MAX, STREAMS_MAX
from .owner import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from ...vmm.snapshot.restore import Incoming
    from ..options.parsed import Options
    from .connection import Run

    # Is `pyvirt run WORDS...`, with what was prepared for it, and as a part of the command that is
    # its owner.
    Enter = Callable[[list[str], "Prepared | None", Owner | None], NoReturn]

_prctl = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1
_OF_MEMORY = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
_WITH_FILES = re.compile("--?(config|share|root)(=|$)")  # which are looked at from where one is


class Rehearsal:
    """What the words of one fork say, for the next, which is most often given the same."""

    __slots__ = ("_options", "_words")

    def __init__(self, words: list[str]) -> None:
        """Read them, where they say everything by themselves."""
        self._words = words
        self._options: Options | None = None
        if not any(_WITH_FILES.match(word) for word in words):
            with contextlib.suppress(PyvirtError):
                self._options = parse(words)

    def is_of(self, words: list[str]) -> bool:
        """Tell whether it is of these words."""
        return self._words == words

    def options_of(self, words: list[str]) -> Options | None:
        """Return what these say, for one fork, which may change it; None: that is not known."""
        return self._options if self._words == words else None


class Prepared:
    """What was made for a machine ahead of its command line; owns it until it is taken.

    `incoming` is what a fork goes on from, None for a machine that begins anew.
    """

    incoming: Incoming | None = None
    asked_ns = 0  # CLOCK_MONOTONIC, when somebody asked for the fork

    def __init__(self, channel: socket.socket) -> None:
        """Make it; when the guest runs the channel is closed, by which the server knows it."""
        self._channel = channel
        self._log = Log()
        self._core: Core | None = None

    @property
    def log(self) -> Log:
        """Return that which it writes to; PyvirtError."""
        self._log.take_level()
        return self._log

    def begun(self) -> None:
        """Note that the guest runs."""
        self._channel.close()

    def options(self, words: list[str]) -> Options:
        """Return what the words say; ConfigError."""
        return parse(words)

    def core_for(self, config: MachineConfig) -> Core | None:
        """Return what suits a machine, None where that has to make its own; PyvirtError.

        What does not stays until `close`: for KVM to give up a VM takes longer than to make one.
        """
        if self._core is None or not self._core.suits(config):
            return None
        core, self._core = self._core, None
        return core

    def _drop_core(self) -> None:
        if self._core is not None:
            self._core.close()
            self._core = None

    def close(self) -> None:
        """Give back what no machine has taken."""
        self._drop_core()
        self._channel.close()


class PreparedFork(Prepared):
    """That of a template's fork."""

    def __init__(self, channel: socket.socket, incoming: Incoming, rehearsal: Rehearsal) -> None:
        """Make it; what goes wrong is told to who takes it."""
        super().__init__(channel)
        self.incoming: Incoming = incoming
        self._rehearsal = rehearsal
        self.error: PyvirtError | None = None
        try:
            self._core = incoming.prepare(self._log)
        except PyvirtError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001  (whoever takes it says so)
            self.error = StateError(f"template: {unexpected(error)}; please report")

    def options(self, words: list[str]) -> Options:
        """Return what the words say; ConfigError."""
        return self._rehearsal.options_of(words) or parse(words)

    def core_for(self, config: MachineConfig) -> Core | None:
        """Return what suits a machine, None where that has to make its own; PyvirtError."""
        if self.error is not None:
            raise self.error
        return super().core_for(config)


class PreparedMachine(Prepared):
    """That of a machine which begins anew, as one did that was started before it."""

    def __init__(self, channel: socket.socket, wanted: bytes) -> None:
        """Make what another has told the server that it was made by; b"": a plain machine."""
        # What has been run has pages of its own already when it is run for a command.
        os.environ.update(dict(os.environ))
        os.environ.clear()  # that of the server
        parse(["-m", "256"])
        super().__init__(channel)
        # Whoever takes it finds out by itself what cannot be made.
        with contextlib.suppress(PyvirtError, OSError):
            given = json.loads(wanted) if wanted else plan(MachineConfig(""), 0)
            if given:
                config, count = planned(given)
                self._core = Core(config, self._log, Groundwork(config, self._log), count=count)

    def core_for(self, config: MachineConfig) -> Core | None:
        """Return what suits a machine, None where that has to make its own.

        The server is told by what the next is to be made, now that no guest has a say in it.
        """
        wanted = plan(config, slots.count(config))
        with contextlib.suppress(OSError):
            self._channel.send(json.dumps(wanted).encode())
        if any(resource.getrlimit(number)[0] != resource.RLIM_INFINITY for number in _OF_MEMORY):
            self._drop_core()  # whose memory was mapped under the limits of the server
        return super().core_for(config)


def live(child: Callable[[], NoReturn], parent: int) -> NoReturn:
    """Be the child, which `child` is the whole life of; it ends with its `parent`, unless 0."""
    try:
        os.setsid()
        if parent:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # By itself the signal does nothing to the leader of a session.
        signal.signal(signal.SIGTSTP, _stop)
        child()
    except BaseException as error:  # noqa: BLE001  (no way may lead back into the server)
        os.write(2, f"pyvirt: {unexpected(error)}\n".encode(errors="replace"))
    finally:
        os._exit(1)


def _stop(_number: int, _frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def become(run: Run, places: dict[int, int], control: int, enter: Enter) -> NoReturn:
    """Be a monitor; `control` is the connection that it was asked for on."""
    if run.caller is None:
        place(places)
        os.chdir(run.cwd)
        enter(run.words, None, None)
    place({**places, STREAMS_MAX: control})
    owner = Owner(STREAMS_MAX)
    owner.lend(run.caller.env, run.caller.umask)
    os.chdir(run.cwd)
    enter(run.words, None, owner)


def wait_to_become(
    channel: socket.socket,
    kept: Iterable[int],
    prepare: Callable[[], PreparedFork | PreparedMachine],
    enter: Enter,
) -> NoReturn:
    """Be a machine, as soon as what it is to be comes over the channel.

    The first message there is its own: {}, or {"error": TEXT}. All descriptors of this process
    are above those that a monitor is given; `kept` are those that it needs.
    """
    _keep_only({channel.fileno(), *kept})
    prepared = prepare()
    gc.freeze()
    error = prepared.error if isinstance(prepared, PreparedFork) else None
    channel.send(json.dumps({"error": str(error)} if error is not None else {}).encode())
    data, fds, _, _ = socket.recv_fds(channel, LINE_MAX, STREAMS_MAX + 1, socket.MSG_CMSG_CLOEXEC)
    if not data:
        os._exit(0)
    words, cwd, numbers, prepared.asked_ns, caller = marshal.loads(data)  # noqa: S302  (its parent's)
    owner = None
    if caller is not None:
        _prctl(_PR_SET_PDEATHSIG, 0)
        owner = Owner(fds.pop())
    _place_below(dict(zip(numbers, fds, strict=True)))
    for fd in fds:
        os.close(fd)
    if owner is not None:
        owner.lend(*caller)
    os.chdir(cwd)
    enter(words, prepared, owner)


def ask(
    channel: socket.socket, run: Run, places: dict[int, int], control: int, asked_ns: int
) -> None:
    """Tell a child that waits what it is to be; OSError when it has gone.

    `control` is the connection of a caller.
    """
    caller = None if run.caller is None else (run.caller.env, run.caller.umask)
    fds = [*places.values()] if caller is None else [*places.values(), control]
    message = (run.words, run.cwd, list(places), asked_ns, caller)
    socket.send_fds(channel, [marshal.dumps(message)], fds)


def reserve() -> None:
    """Have all descriptors that are opened from now on above those that a monitor is given.

    There may be as many as this process can have at all: each fork takes two.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in range(3, STREAMS_MAX):
        if number != null:
            _put_if_free(null, number)
    if null >= STREAMS_MAX:
        os.close(null)


def _close_from(first: int) -> None:
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _put_if_free(fd: int, number: int) -> None:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        os.dup2(fd, number, inheritable=False)


def _keep_only(kept: Iterable[int]) -> None:
    """Have nothing open but some descriptors, and /dev/null in the place of each below them."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in range(STREAMS_MAX):
        os.dup2(null, number, inheritable=False)
    at = STREAMS_MAX
    for fd in sorted(kept):
        os.closerange(at, fd)
        at = fd + 1
    _close_from(at)


def _place_below(places: dict[int, int]) -> None:
    """Do as `place`, with descriptors that are above them all; what else is above stays open."""
    at = 3
    for number in sorted(places):
        os.dup2(places[number], number)
        if number >= at:
            os.closerange(at, number)
            at = number + 1
    os.closerange(at, STREAMS_MAX)


def place(places: dict[int, int]) -> None:
    """Let descriptor `number` be what `places` has for it, and no other be open.

    0, 1 and 2 are /dev/null where it has none; STREAMS_MAX is not for other programs.
    """
    null = os.open(os.devnull, os.O_RDWR)
    wanted = {0: null, 1: null, 2: null, **places}
    top = max(wanted) + 1
    # None is to be overwritten before it is copied.
    copies = {
        number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STREAMS_MAX + 1)
        for number, fd in wanted.items()
    }
    for number, copy in copies.items():
        os.dup2(copy, number, inheritable=number < STREAMS_MAX)
    for number in range(top):
        if number not in wanted:
            os.closerange(number, number + 1)
    _close_from(top)
