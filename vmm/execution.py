"""Whether the guest runs: the vCPUs' threads, the gate that they stand at, and their end.

A vCPU's thread runs the guest in C without the GIL, and comes here only for exits that end the
guest or reset it. What else is here may be called from any thread; one that pauses is no vCPU's.
"""

from __future__ import annotations

import _thread
import os

from ..errors import GuestError, PyvirtError, unexpected
from ..native import check, ffi, lib
from .end import CRASH, TRIPLE_FAULT, End

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .end import Reaction
    from .log import Log
    from .timed import TimedDevices
    from .vcpu import Vcpu

_BEGUN_S = 0.1
RUNNING, PAUSED, ENDED = "running", "paused", "ended"


class Execution:
    """Owns the vCPUs' threads, which leave at the end, and until `close` a descriptor."""

    __slots__ = (
        "_fault_log",
        "_first",
        "_gate",
        "_log",
        "_mark",
        "_reaction",
        "_vcpus",
        "end",
        "ended_fd",
        "lock",
        "perform",
        "state",
        "thread_ids",
        "timed",
    )

    def __init__(
        self,
        count: int,
        vcpus: Callable[[], list[Vcpu]],
        reaction: Reaction,
        log: Log,
        mark: Callable[[str], None],
    ) -> None:
        """Begin paused; `vcpus` returns the `count` that there are now, or [] before and after."""
        self._vcpus = vcpus
        self._reaction = reaction
        self._log = log
        self._fault_log = log.limited()
        self._mark = mark
        self.state = PAUSED
        self.end: End | None = None
        self.timed: TimedDevices | None = None  # whose time stands with the vCPUs
        # Carries out what a vCPU's thread may not in a sandbox.
        self.perform: Callable[[Callable[[], None]], None] = lambda what: what()
        # Of the threads, as the kernel counts them; 0 before they run.
        self.thread_ids = [0] * count
        # Guards the state, its reason and which vCPUs there are; their threads stand at the gate.
        self.lock = _thread.allocate_lock()
        self._first = _thread.allocate_lock()  # held until the boot vCPU's thread runs the guest
        self._first.acquire()
        gate = ffi.new("struct pv_gate **")
        check(lib.pv_gate_new(gate), "machine")
        self._gate = ffi.gc(gate[0], lib.pv_gate_free)
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def start(self) -> None:
        """Start the threads, which stand until `resume`; PyvirtError."""
        for vcpu in self._vcpus():
            lib.pv_gate_enter(self._gate)
            try:
                _thread.start_new_thread(self._run, (vcpu,))
            except RuntimeError as error:
                lib.pv_gate_leave(self._gate)
                raise PyvirtError(f"vCPU {vcpu.index}: {error}; raise ulimit -u") from None

    def wait_begun(self) -> None:
        """Return when the boot vCPU runs, or the machine has ended; after `start` and `resume`.

        Else its thread would wait for the caller's, which goes on with Python. If another vCPU has
        had all of them stand before that, it returns as well, a moment later.
        """
        if self._first.acquire(timeout=_BEGUN_S):
            self._first.release()

    def check_alive(self) -> None:
        """Raise PyvirtError when the machine has ended."""
        if self.state == ENDED:
            raise PyvirtError("the machine has ended; start another")

    def pause(self) -> bool:
        """Return when all vCPUs stand between two instructions, and whether they were running."""
        with self.lock:
            if self.state != RUNNING:
                return False
            self.state = PAUSED
            self._stand()
            if self.timed is not None:
                self.timed.freeze()
        lib.pv_gate_wait_parked(self._gate)
        return True

    def hold(self) -> bool:
        """Have the vCPUs stand before their next instruction, until somebody lets them run.

        For a vCPU's thread, which cannot wait for that. False: the machine has ended.
        """
        with self.lock:
            if self.state == ENDED:
                return False
            self._stand()
            return True

    def _stand(self) -> None:
        lib.pv_gate_close(self._gate)
        self._kick()

    def resume(self) -> bool:
        """Let the vCPUs run; return whether they were paused."""
        with self.lock:
            if self.state != PAUSED:
                return False
            self.state = RUNNING
            self._let_run()
            return True

    def take_pause_back(self) -> None:
        """Resume, as if the pause had not been."""
        with self.lock:
            if self.state == PAUSED:
                self.state = RUNNING
                # What the guest has asked for comes first, and pauses by itself.
                if not self._reaction.is_busy:
                    self._let_run()

    def _let_run(self) -> None:
        if self.timed is not None:
            self.timed.thaw()
        lib.pv_gate_open(self._gate)

    def finish(self, end: End) -> None:
        """End for the reason given; the first reason holds."""
        with self.lock:
            if self.state == ENDED:
                return
            self.end = end
            self.state = ENDED
            self._mark("end")
            lib.pv_gate_end(self._gate)
            self._kick()
            # Under the lock: who sees the end may close the descriptor.
            os.eventfd_write(self.ended_fd, 1)

    def wait_left(self) -> None:
        """Wait until the threads are gone, after the end."""
        lib.pv_gate_wait_left(self._gate)

    def close(self) -> None:
        """Close the descriptor, when the threads are gone."""
        if self.ended_fd >= 0:
            os.close(self.ended_fd)
            self.ended_fd = -1

    def _kick(self) -> None:
        for vcpu in self._vcpus():
            vcpu.kick()

    def _run(self, vcpu: Vcpu) -> None:
        self.thread_ids[vcpu.index] = _thread.get_native_id()
        lib.pv_crash_thread(f"vcpu{vcpu.index}".encode())
        is_first = vcpu.index == 0
        try:
            check(lib.pv_sandbox_enter(lib.PV_SANDBOX_VCPU), f"vCPU {vcpu.index}: sandbox")
            while lib.pv_gate_pass(self._gate):
                # After a reset it is another.
                vcpu = self._vcpus()[vcpu.index]
                if is_first:
                    is_first = False
                    self._first.release()
                reason = vcpu.run()
                if reason != lib.KVM_EXIT_INTR:
                    self._elsewhere(self._judge, vcpu, reason)
        except PyvirtError as error:
            self._elsewhere(self._lament, vcpu, error)
        except BaseException as error:  # noqa: BLE001  (a fault of ours ends this guest, in one line)
            self._log.error(f"vCPU {vcpu.index}: {unexpected(error)}; please report")
        finally:
            # Of a machine that has ended already, the reason stays.
            self.finish(End(CRASH, 1))
            lib.pv_gate_leave(self._gate)
            if is_first:
                self._first.release()

    def _elsewhere(self, what: Callable[..., None], *arguments: object) -> None:
        self.perform(lambda: what(*arguments))

    def _judge(self, vcpu: Vcpu, reason: int) -> None:
        """Handle an exit that no device serves: each of them ends or resets the guest."""
        if reason == lib.KVM_EXIT_SHUTDOWN:
            if self._reaction.on_triple_fault():
                self._fault_log(f"vCPU {vcpu.index}: the guest triple-faulted, and is reset")
                return
            end = End(TRIPLE_FAULT, 1)
            error = GuestError("the guest triple-faulted")
        else:
            from .report import describe_exit  # noqa: PLC0415  (hardly ever)

            end = End(CRASH, 1)
            error = GuestError(describe_exit(vcpu, reason))
        self._lament(vcpu, error)
        self.finish(end)

    def _lament(self, vcpu: Vcpu, error: PyvirtError) -> None:
        from .report import registers  # noqa: PLC0415  (few guests end badly)

        self._log.error(f"vCPU {vcpu.index}: {error}\n{registers(vcpu)}")
