"""A VM's life: it boots when it is needed, is watched, ends with its test, and is judged.

Every wait is limited, and wakes within a second of the VM's end, with the error that tells its
verdict (end.py).
"""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, PyvirtError
from ..agent import image
from ..agent.protocol import AgentError, AgentTimeoutError
from ..guest import hostboot
from ..judge import report, symbols
from ..judge.verdict import Verdict
from . import config as configuration
from . import fork
from .boot import CLOSE_S, Boot
from .console import Console
from .end import GuestTimeoutError, LabLostError, VerdictError, error_of
from .link import Links

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from ..agent.client import Agent
    from ..guest.kernel import Kernel
    from ..judge.splat import Splat
    from ..judge.symbols import Symbols
    from .config import VmConfig
    from .end import End
    from .monitor import Monitor
    from .place import Place
    from .snapshot import Snapshot

SETTLE_S = 2.0  # for the kernel to say what is wrong when it is known that something is
_REPORT_S = 0.1  # after the silence that ends a report
_SYMBOLS_S = 20.0  # for a guest to tell its symbols, of which the larger kernels have megabytes
_KALLSYMS = "/proc/kallsyms"
_POLL_S = (0.01, 0.5)  # between looks at what a verb waits for: the first, and at most
# Bits of the kernel's taint mask that stand for a fault of its own (admin-guide/tainted-kernels).
_BITS = {Verdict.WARNED: 9, Verdict.OOPSED: 7, Verdict.HUNG: 14}
_FAULTS = {5: "bad page", 7: "died", 9: "warning", 14: "soft lockup"}


@functools.lru_cache(maxsize=16)
def _plain_initramfs(kernel: Kernel, modules: tuple[str, ...]) -> Path:
    """Return the initramfs without files of a test's: most have this, and to make it takes time."""
    return image.initramfs(kernel, modules=modules)


class Life:
    """One VM; `close` ends it, and leaves nothing but the files in `log_dir`.

    For one thread at a time.
    """

    def __init__(
        self,
        kernel: Kernel,
        config: VmConfig,
        place: Place,
        log_dir: Path,
        *,
        name: str = "vm",
        cmdline: str = "",
        allowed: Sequence[re.Pattern[str]] = (),
        echo: Callable[[bytes], None] | None = None,
        links: Links | None = None,
        origin: Callable[[], Snapshot | None] = lambda: None,
    ) -> None:
        """Boot nothing yet.

        `place` says where VMs run; `cmdline` is added to the command line; reports of the kernel
        that match one of `allowed` are no faults; `echo` gets the console's bytes. `origin` is
        asked at first where the guest is to go on from; None: it boots.
        """
        self.kernel = kernel
        self.config = config
        self.name = name
        self.log_dir = log_dir
        self.boots = 0
        self.console = Console()  # of the last boot
        self.words: list[str] = []  # for `pyvirt run`, channels apart
        self._place = place
        self._cmdline = cmdline
        self._allowed = allowed
        self._echo = echo
        self._links = Links() if links is None else links
        self._owns_links = links is None
        self._origin = origin
        self._disks: tuple[str, ...] = ()
        self._folder: Path | None = None
        self._boot: Boot | None = None
        self._last_end: End | None = None  # of a VM that is put away
        self._past: list[Splat] = []  # of earlier boots
        self._snapshots: list[Snapshot] = []
        self._is_closed = False

    @property
    def is_running(self) -> bool:
        """Whether the VM has been started and has not ended."""
        return self._boot is not None and self._boot.watch.end is None

    @property
    def has_booted(self) -> bool:
        """Whether the agent has answered, in this boot or an earlier one."""
        return self.boots > 0

    @property
    def end(self) -> End | None:
        """Return what ended the VM, None before that."""
        return self._last_end if self._boot is None else self._boot.watch.end

    @property
    def verdict(self) -> Verdict | None:
        """Return the verdict so far: that of the end, or WARNED; None for nothing wrong yet."""
        if self.end is not None and not self.end.expected:
            return self.end.verdict
        return Verdict.WARNED if self.faults() else None

    def faults(self) -> list[Splat]:
        """Return the kernel's reports about itself that are not allowed."""
        return [splat for splat in self.splats() if not self._allows(splat)]

    def splats(self) -> list[Splat]:
        """Return all of the kernel's reports, those of earlier boots too."""
        return [*self._past, *self.console.splats]

    def _allows(self, splat: Splat) -> bool:
        text = "\n".join((splat.title, *splat.lines))
        return any(pattern.search(text) for pattern in self._allowed)

    def start(self) -> Self:
        """Boot, unless it runs; return when the agent answers. VerdictError, PyvirtError."""
        self._begin()
        return self

    def _begin(self) -> Boot:
        """Return the boot that there is, or a new one; raise what its end is to a verb."""
        if self._boot is None and self._last_end is None:
            self._start()
        self._check()
        assert self._boot is not None
        return self._boot

    def _there(self) -> Boot:
        """Return the boot that there is, be it at its end, or a new one."""
        return self._boot or self._begin()

    def _start(self) -> None:
        if self._is_closed:
            raise PyvirtError(f"{self.name}: it has been put away with its test")
        try:
            self.log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"log folder {self.log_dir}: {error.strerror}; name one that can be written"
            ) from None
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="pyvirt-vm-"))
        is_first = not self.words
        origin = self._origin() if is_first else None
        if is_first:
            self._disks = origin.disks if origin else configuration.disks(self.config, self._folder)
            self.words = configuration.words(
                self.config,
                self.kernel.image,
                self.config.initrd or self._initramfs(),
                self._disks,
                self._cmdline,
                self._links.path,
                self.kernel.modules,
            )
        self._wait_for_boot(origin)
        self._check()
        if is_first and origin is None and self.config.prepare is not None:
            self.config.prepare(self)

    def _wait_for_boot(self, origin: Snapshot | None) -> None:
        self._put_away()
        suffix = f"-{self.boots + 1}" if self.boots else ""
        server = self._place.server()
        self._links.start(self.config.nets, server)
        words = self.words
        if origin is not None:
            words = configuration.fork_words(self.config, self._disks, self._links.path)
        self._boot = Boot(
            server,
            [*words, "-name", self.name],
            self.log_dir / f"console{suffix}.log",
            self.config.limits,
            allows=self._allows,
            echo=self._echo,
            origin=origin,
        )
        self.console = self._boot.console
        try:
            self._boot.wait_ready()
        except AgentError:
            if self._boot.watch.end is None:
                raise
        else:
            self.boots += 1

    def _initramfs(self) -> Path:
        modules = self.config.modules
        if self.config.root:
            hostboot.check_kernel(f"vm: root {self.config.root}", self.kernel)
        if self.kernel.modules is not None:
            # A slot's driver is wanted by whoever plugs something later, too.
            modules = ("virtio_blk", "virtio_net", *modules)
            if self.config.root:
                modules = (*hostboot.NEEDS, *modules)
            elif self.config.share:
                modules = ("virtiofs", *modules)
        elif self.config.share and (self.kernel.config or {}).get("CONFIG_VIRTIO_FS") != "y":
            raise ConfigError(
                f"vm: share: the kernel {self.kernel.name} has no virtiofs; take another, as by "
                "--vm-kernel cloud"
            )
        if self.config.files:
            return image.initramfs(self.kernel, files=self.config.files, modules=modules)
        return _plain_initramfs(self.kernel, modules)

    def _check(self) -> None:
        """Raise what the VM's end is to a verb, if it has ended."""
        error = self._end_error()
        if error is not None:
            raise error from None

    def _end_error(self) -> VerdictError | None:
        end = self.end
        if end is None:
            return None
        # A guest may well be silent because the whole lab has stopped.
        silent = end.verdict in {Verdict.HUNG, Verdict.BOOT_FAILED}
        lost = self._lost() if end.lost or silent else None
        return lost or error_of(end, self.evidence)

    def _lost(self) -> LabLostError | None:
        """Return the error for a server that does not answer."""
        if self._boot is None or self._place.is_alive(self._boot.server):
            return None
        return LabLostError(self._place.why(self._boot.server), self.evidence)

    def _late(self, what: str, limit: float) -> VerdictError:
        """Return the error for a verb whose time is up."""
        late = GuestTimeoutError(f"{what}: not within {limit:g} s", self.evidence)
        return self._end_error() or self._lost() or late

    @contextlib.contextmanager
    def _guest(self, what: str, limit: float) -> Iterator[Agent]:
        """Boot if need be; in the context errors of the agent become those of the VM's end."""
        boot = self._begin()
        try:
            with boot.watch.waiting():
                yield boot.agent
        except AgentTimeoutError:
            raise self._late(what, limit) from None
        except AgentError as failure:
            if boot.agent.why:
                boot.watch.ended.wait(CLOSE_S)
            raise self._end_error() or failure from None

    def _wait_until(self, what: str, timeout: float | None, look: Callable[[float], Any]) -> Any:
        """Return the first true thing that `look` returns; it is told how long it may take."""
        limit = self.config.limits.call if timeout is None else timeout
        until, pause = time.monotonic() + limit, _POLL_S[0]
        while True:
            found = look(max(until - time.monotonic(), _POLL_S[0]))
            if found:
                return found
            if time.monotonic() + pause >= until:
                raise self._late(what, limit) from None
            self._there().watch.ended.wait(pause)
            pause = min(2 * pause, _POLL_S[1])

    def wait_for_end(self, timeout: float | None = None) -> End:
        """Wait until the VM has ended, for whatever reason, and return that."""
        self._there()
        found: End = self._wait_until("the VM's end", timeout, lambda _: self.end)
        return found

    def charges(self) -> list[str]:
        """Return what there is against the guest's kernel: its reports, else its taint mask.

        Reports that are allowed speak for their bits of the mask. VerdictError.
        """
        mask = self.new_taint() if self.is_running else 0
        if mask & sum(1 << bit for bit in _FAULTS):
            self._let_console_end()
        for splat in self.splats():
            if splat.kind in _BITS and self._allows(splat):
                mask &= ~(1 << _BITS[splat.kind])
        tainted = [
            f"the kernel is tainted: {text}" for bit, text in _FAULTS.items() if mask >> bit & 1
        ]
        return [f"the kernel {splat.kind}: {splat.title}" for splat in self.faults()] or tainted

    def new_taint(self) -> int:
        """Return the bits of the kernel's taint mask that were not there at the boot's end."""
        with self._guest("taint", self.config.limits.call) as agent:
            return agent.taint(timeout=self.config.limits.call) & ~self._there().taint

    def _let_console_end(self) -> None:
        """Wait for reports that are still on their way here."""
        until = time.monotonic() + SETTLE_S
        quiet = self.console.quiet + _REPORT_S
        while time.monotonic() < min(until, self.console.last_byte_at + quiet):
            time.sleep(_POLL_S[0])

    def evidence(self) -> dict[str, str]:
        """Return what is known of the VM as texts by the titles of their sections."""
        return report.sections(self)

    def symbols(self) -> Symbols:
        """Return the kernel's symbols, without those of modules; none where they are hidden.

        May boot another VM.
        """
        with contextlib.suppress(PyvirtError):
            return symbols.for_kernel(self.kernel, self._kallsyms)
        return symbols.Symbols([])

    def symbols_of_boot(self) -> Symbols:
        """Return the symbols of the kernel and its modules as they lie now; PyvirtError."""
        with self._guest(_KALLSYMS, _SYMBOLS_S) as agent:
            text = agent.get(_KALLSYMS, timeout=_SYMBOLS_S).decode(errors="replace")
        return symbols.Symbols.from_kallsyms(text)

    def _kallsyms(self) -> str:
        with (
            tempfile.TemporaryDirectory(prefix="pyvirt-vm-") as folder,
            Life(self.kernel, configuration.VmConfig(), self._place, Path(folder)) as healthy,
        ):
            return healthy.start().agent.get(_KALLSYMS).decode(errors="replace")

    @property
    def qmp(self) -> Monitor:
        """Return the client of the VM's monitor; boots the VM."""
        return self._there().qmp

    @property
    def agent(self) -> Agent:
        """Return the client of the guest's agent; boots the VM."""
        return self._begin().agent

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the monitor's events of this boot so far, or those of one name."""
        if self._boot is None:
            return []
        watch = self._boot.watch
        with watch.changed:
            return [event for event in watch.events if name in {None, event["event"]}]

    @property
    def has_monitor(self) -> bool:
        """Whether there is a monitor that can be asked, be it of a guest that stands."""
        return self._boot is not None and self._boot.has_monitor

    @property
    def messages(self) -> str:
        """Return what the monitor wrote to its stderr."""
        return "" if self._boot is None else self._boot.watch.messages

    @property
    def qmp_log(self) -> list[str]:
        """Return what was said to the monitor, and its events."""
        said = [] if self._boot is None else self._boot.said
        return [*said, *(json.dumps(event) for event in self.events())]

    def reproduce(self) -> str:
        """Return the command line that boots the same guest by hand, to a shell."""
        prepare = self.config.prepare
        then = f"\n# and then: {getattr(prepare, '__qualname__', prepare)}" if prepare else ""
        return f"pyvirt run {shlex.join(self.words)}{then}"

    def folder(self) -> Path:
        """Return a folder of the host that is removed with the VM."""
        self.start()
        assert self._folder is not None
        return self._folder

    def snapshot(self) -> Snapshot:
        """Return where the guest stands; it runs on. Its memory is given back with the VM.

        PyvirtError: the guest, or the KVM here, cannot be saved.
        """
        found = self._snapshot()
        self._snapshots.append(found)
        self.qmp.execute("cont")
        return found

    def _snapshot(self) -> Snapshot:
        reason = fork.obstacle(self.config)
        if reason:
            raise ConfigError(f"{self.name}: snapshot: not with {reason}")
        limit = self.config.limits.call
        with self._guest("snapshot", limit):
            return self._begin().snapshot(self._disks, limit)

    def restore(self, origin: Snapshot) -> Self:
        """Have the guest go on from where it stood, whatever it does now; return it.

        Commands that tests had started in it have ended.
        """
        if origin.server != self._place.server():
            raise LabLostError(f"{self.name}: the snapshot was lost with where VMs ran")
        self._next_boot()
        self._wait_for_boot(origin)
        self._check()
        return self

    def into_snapshot(self) -> Snapshot:
        """End the VM; return where it stood, which the caller owns. As `snapshot`."""
        found = self._snapshot()
        self._put_away()
        found.history = self.console.history()  # which is whole now
        found.folder, self._folder = self._folder, None
        self.close()
        return found

    def _next_boot(self) -> None:
        """Put the boot that there is away, for another."""
        if self._boot is not None:
            begin = self._boot.begin
            self._past += [splat for splat in self.console.splats if splat.mark >= begin]
        self._put_away()
        self.console = Console()
        self._last_end = None

    def _put_away(self) -> None:
        """End the run of the monitor that there is."""
        if self._boot is not None:
            self._boot.close()
            self._last_end = self._boot.watch.end
            self._boot = None

    def close(self) -> None:
        """End the VM, whatever it does, and remove its scratch disks."""
        self._is_closed = True
        self._put_away()
        for origin in self._snapshots:
            origin.close()
        if self._owns_links:
            self._links.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
