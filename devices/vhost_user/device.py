"""A virtio device whose queues a back end serves: what all kinds of them have in common.

The guest's kicks go straight to the back end, and its interrupts straight to the guest: both have
the transport's eventfds. Here is what is said between, and what becomes of the device when the back
end has gone:

- Its requests wait in their rings for LIMIT_S. A back end that comes in that time gets all queues
  anew, with the record of what the one before had begun (INFLIGHT_SHMFD), or, where that kept
  none, from the last entry of the used ring on, which is right for one that works in order.
- If none comes, or if it says what it may not, the device needs a reset. Requests end in an error
  then, as far as the kind of device knows one, unless a back end that broke the rules still has the
  guest's memory. The driver's next DRIVER_OK tries the connection again.
- One that does not answer within LIMIT_S is given up as any device is: see mmio.py.
"""

from __future__ import annotations

import contextlib
import os
import time

from ...errors import BackendError, ConfigError
from ...native import ffi, lib
from ..virtio import registers as r
from ..virtio import turn
from ..virtio.device import Device
from ..virtio.served import Vacant
from .attendant import Attendant
from .connection import GoneError, TooLateError
from .layout import regions, ring
from .link import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...state import Fields
    from ..virtio.device import Activation, Queue
    from .back_end import BackEnd
    from .session import Session

_RETRY_S = 0.1
_NEWS = 4  # lines that wait to be logged
_RING_FEATURES = r.INDIRECT_DESC | r.EVENT_IDX


class VhostUser(Device):
    """Owns the back end's place, its connection, and who looks after it until `close`."""

    __slots__ = (
        "_activation",
        "_attendant",
        "_config_due",
        "_is_broken",
        "_is_halting",
        "_is_late",
        "_is_standing",
        "_is_stopping",
        "_link",
        "_lost_at",
        "_news",
        "_own",
        "_ring_features",
        "_turn",
        "_vacant",
        "_waiting",
    )
    CONFIG_SIZE = 0  # bytes of the back end's configuration space that the device shows
    NEEDED = r.VERSION_1  # features that a back end must have
    VACANT = -1  # how requests are answered that nobody serves; -1: not at all

    def __init__(
        self,
        name: str,
        back_end: BackEnd,
        *,
        device_type: int,
        known: int,
        own: int = 0,
        queue_sizes: tuple[int, ...],
    ) -> None:
        """Connect to `back_end`, which is taken over; ConfigError, BackendError.

        Of the back end's features the driver is offered those that are `known`, and with them its
        `own`, which the back end does not see.
        """
        self._link = Link(back_end, self.CONFIG_SIZE)
        self._activation: Activation | None = None
        self._config_due = False
        self._own = own
        self._news: list[str] = []
        self._is_broken = self._is_halting = self._is_stopping = False
        self._is_standing = False  # by `drain`
        self._is_late = False  # a `drain` took too long; to go on once the back end has answered
        self._lost_at = 0.0
        self._waiting = 0
        self._vacant = Vacant(name, self.VACANT)
        self._turn = turn.Turn(name)
        self._attendant = Attendant(
            name, self._turn, sources=self._sources, attend=self._attend, fail=self._fail
        )
        super().__init__(name, device_type=device_type, features=own, queue_sizes=queue_sizes)
        try:
            session = self._link.begin()
            self.check(session)
            self._link.session = session
            self.features |= session.features & known
            self._ring_features = session.features & _RING_FEATURES
            self._attendant.start()
        except BaseException:
            self.close()
            raise

    def check(self, session: Session) -> None:
        """Raise ConfigError unless the back end can be that of this device."""
        where, queues = self._link.where, self.needed_queues()
        if self.NEEDED & ~session.features:
            lacks = f"the features {self.NEEDED & ~session.features:#x}"
        elif 0 < session.queue_max < queues:
            lacks = f"queues: it has {session.queue_max}, and {queues} are asked for"
        elif self.CONFIG_SIZE and not session.has_config:
            lacks = "a configuration space"
        else:
            return
        session.close()
        raise ConfigError(f"{where}: the back end lacks {lacks}; give one that fits the device")

    # The transport's side

    def given(self, activation: Activation) -> list[Queue]:
        """Return the queues that are the back end's."""
        return [queue for queue in activation.queues if queue is not None]

    def is_enabled(self, index: int) -> bool:
        """Tell whether a queue takes part in what the device does."""
        return index >= 0

    def control(self) -> Queue | None:
        """Return the queue that `serve_control` serves, if there is one now."""
        return None

    def serve_control(self) -> bool:
        """Serve a little of that queue, in a turn of the thread; return whether there is more."""
        return False

    def needed_queues(self) -> int:
        """Return how many a back end has to have, as GET_QUEUE_NUM counts them."""
        return len(self.queue_sizes)

    @property
    def where(self) -> str:
        """Return where its back end is, for messages."""
        return self._link.where

    @property
    def is_connected(self) -> bool:
        """Tell whether there is a back end; any thread."""
        return self._link.session is not None

    def connection_changed(self) -> None:
        """Take note that a back end has come or gone."""

    def _show_config(self) -> None:
        """Have the driver find what `config` returns now, if there is one."""
        self._config_due = True
        if self._activation is not None:
            lib.pv_virtio_irq_news(self._activation.irq)

    def ring_features(self) -> int:
        """Return those that the back end has."""
        return self._ring_features

    def operations(self) -> tuple[str, ...]:
        """Return nothing: requests and interrupts are the back end's."""
        return ()

    def activate(self, activation: Activation) -> None:
        """Give the queues to the back end, to a new one if the one before has gone."""
        with self._turn.soon():
            deadline = time.monotonic() + turn.LIMIT_S
            self._is_broken = False
            try:
                if self._link.session is None:
                    self._reconnect(deadline)
                self._start(activation, deadline, is_known=True)
            except (OSError, BackendError) as error:
                self._link.drop()
                text = f"has gone ({error.strerror})" if isinstance(error, OSError) else str(error)
                raise BackendError(f"{self.name}: its back end {text}{self._link.why()}") from None
            self._activation = activation
            if self._config_due:
                self._show_config()
        self._attendant.stir()

    def _reconnect(self, deadline: float) -> None:
        """Connect again; OSError, BackendError."""
        before = self._link.config
        session = self._link.connect(deadline)
        known = self._shared(self.features | self._ring_features) | self.NEEDED
        if known & ~session.features:
            session.close()
            raise BackendError("is another than before: it lacks features that the guest knows")
        self._link.session = session
        if self._link.config != before:
            self._show_config()
        self.connection_changed()

    def _shared(self, features: int) -> int:
        """Return those of the features that are the back end's, too."""
        return features & ~self._own

    def _start(self, activation: Activation, deadline: float, *, is_known: bool) -> None:
        """Give the queues to the back end; `is_known`: they know how far they are served."""
        queues = self.given(activation)
        if not queues:
            return
        call_fd = lib.pv_virtio_irq_lend(activation.irq)
        self._link.start(
            self._shared(activation.features),
            regions(activation.memory),
            [
                ring(queue, call_fd, is_known=is_known, is_enabled=self.is_enabled(queue.index))
                for queue in queues
            ],
            len(self.queue_sizes),
            deadline,
        )
        for queue in queues:
            # The file is the back end's, too, which may have made it one that lets writers wait.
            os.set_blocking(queue.kick_fd, False)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(queue.kick_fd, 1)

    def reset(self, limit: float) -> None:
        """Have the back end let go of the queues."""
        with self._turn.soon(limit):
            self._vacant.stop(limit)
            if self._link.session is not None and self._activation is not None:
                self._stop(self._link.session, limit)
            self._is_stopping = self._is_standing = self._is_late = False
            self._activation = None
            self._link.forget()
        self._attendant.stir()

    def _stop(self, session: Session, limit: float) -> None:
        self._is_stopping = True
        try:
            session.stop(time.monotonic() + limit)
        except TooLateError:
            if not self._is_halting:
                raise BackendError(
                    f"{self.name}: its back end has not let go of its queues within {limit:g} s; "
                    "see to that process"
                ) from None
            # At the machine's end nobody is there to use its memory for something else.
            self._link.drop()
        except BackendError:
            self._link.drop()

    def halt(self) -> None:
        """Do not wait for ever at the machine's end."""
        self._is_halting = True

    def drain(self, limit: float) -> None:
        """Have the back end complete what it has begun with, and let go of the queues."""
        deadline = time.monotonic() + limit
        with self._turn.soon(limit):
            activation = self._activation
            if activation is None:
                return
            self._vacant.drain(limit)
            if self._link.session is not None:
                self._drain(self._link.session, activation, deadline)
            self._take_back(activation)
            self._is_standing = True

    def _drain(self, session: Session, activation: Activation, deadline: float) -> None:
        try:
            # Whoever does not answer this would not stop either, and can go on as it was.
            session.ping(deadline)
            self._is_stopping = True
            session.stop(deadline)
        except TooLateError as error:
            self._is_late = self._is_stopping
            self._attendant.stir()
            raise BackendError(f"{self.name}: its back end {error}; see to it") from None
        except BackendError as error:
            self._is_stopping = False
            self._lose(error)
            raise BackendError(f"{self.name}: its back end {error}; see to it") from None
        self._is_stopping = False
        if not self._is_done(session, activation):
            self._go_on(is_known=False)
            raise BackendError(
                f"{self.name}: its back end has stopped, and not completed what it has begun with; "
                "see to it"
            )
        self._link.forget()

    def _is_done(self, session: Session, activation: Activation) -> bool:
        """Tell whether the back end left nothing in the queues that it let go of."""
        return self._is_broken or all(
            session.bases.get(queue.index) == lib.pv_virtqueue_served(queue.handle)
            for queue in self.given(activation)
        )

    def _take_back(self, activation: Activation) -> None:
        """Let the queues know how far they are served."""
        bases = self._link.session.bases if self._link.session is not None else {}
        for queue in self.given(activation):
            served = lib.pv_virtqueue_served(queue.handle)
            lib.pv_virtqueue_seek(queue.handle, bases.get(queue.index, served))

    def resume(self) -> None:
        """Give the queues to the back end again; if it has gone meanwhile, wait for another."""
        with self._turn.soon():
            self._is_standing = False
            self._go_on(is_known=True)
        self._attendant.stir()

    def _go_on(self, *, is_known: bool) -> None:
        self._vacant.resume()
        if self._link.session is None or self._activation is None or self._is_broken:
            return
        try:
            deadline = time.monotonic() + turn.LIMIT_S
            self._start(self._activation, deadline, is_known=is_known)
        except BackendError as error:
            self._lose(error)

    def _try_again(self, session: Session) -> None:
        """Go on after a `drain` that was given up, if the back end has stopped by now."""
        try:
            session.stop(time.monotonic())
        except TooLateError:
            return
        except BackendError as error:
            self._is_late = self._is_stopping = False
            self._lose(error)
            return
        self._is_late = self._is_stopping = False
        self._go_on(is_known=False)

    def save(self) -> dict[str, object]:
        """Return nothing: a back end has no more than its configuration space."""
        return {}

    def restore(self, fields: Fields) -> None:
        """Take nothing."""

    def config(self) -> bytes:
        """Return what the back end has said last."""
        return self._link.config

    def news(self) -> str:
        """Return what has become of the back end; show its configuration."""
        if self._config_due:
            self._config_due = False
            self.config_changed()
        news, self._news = self._news, []
        return "; ".join(news)

    def stats(self) -> dict[str, int]:
        """Return whether there is a back end, how many there were, and what they told; any thread.

        With them the buffers that wait in its queues, as both sides say; what has passed through
        them is for the back end to count, and so are kicks and interrupts, which it has itself.
        """
        return {
            "connected": int(self.is_connected),
            "connections": self._link.connections,
            "config_changes": self._link.config_changes,
            "waiting": self._count_waiting(),
        }

    def _count_waiting(self) -> int:
        """Return the sum over the queues; that of before while somebody has the turn."""
        with contextlib.suppress(BackendError), self._turn.soon(0):
            activation = self._activation
            queues = self.given(activation) if activation is not None else []
            self._waiting = sum(lib.pv_virtqueue_waiting(queue.handle) for queue in queues)
        return self._waiting

    def close(self) -> None:
        """End the thread, and let go of the back end."""
        if self._attendant.close():
            self._link.close()

    # The thread's side

    def _sources(self) -> tuple[list[int], float | None]:
        """Return what the thread is to wait for, and for how many ms."""
        session = self._link.session
        fds: list[int] = []
        limit = _RETRY_S * 1000 if self._is_waiting else None
        if session is not None and not self._is_standing and self._is_late >= self._is_stopping:
            for connection in (session.connection, session.channel):
                fd = connection.fd if connection is not None else -1
                if fd >= 0:
                    fds.append(fd)
        control = self.control()
        if control is not None:
            fds.append(control.kick_fd)
        return fds, limit

    @property
    def _is_waiting(self) -> bool:
        """Tell whether a driver's requests wait for a back end."""
        is_idle = self._is_broken or self._is_standing
        return self._link.session is None and self._activation is not None and not is_idle

    def _attend(self) -> bool:
        """Do what is to do in a turn; return whether there may be more at once."""
        if self._is_standing:
            return False
        if self._is_late and self._link.session is not None:
            self._try_again(self._link.session)
        if self._is_stopping:
            return False
        if self._is_waiting:
            self._retry()
        is_busy = self.serve_control()
        session = self._link.session
        if session is None:
            return is_busy
        before = self._link.config
        try:
            is_busy |= self._link.hear(session)
        except BackendError as error:
            self._lose(error)
            return is_busy
        if self._link.config != before:
            self._show_config()
        return is_busy

    def _lose(self, error: BackendError) -> None:
        """Go on without the back end, and wait for another if it has gone by itself."""
        self._link.drop()
        self.connection_changed()
        if self._activation is None:
            return
        if not isinstance(error, GoneError):
            self._fail(f"its back end {error}")
            return
        self._lost_at = time.monotonic()
        self._say(
            f"its back end {error}{self._link.why()}; requests wait {turn.LIMIT_S:g} s for another"
        )

    def _say(self, text: str) -> None:
        self._news.append(text)
        del self._news[:-_NEWS]
        if self._activation is not None:
            lib.pv_virtio_irq_news(self._activation.irq)

    def _retry(self) -> None:
        """Give the queues to a back end that has come."""
        activation = self._activation
        assert activation is not None
        deadline = time.monotonic() + turn.LIMIT_S
        try:
            self._reconnect(deadline)
            self._start(activation, deadline, is_known=False)
        except (OSError, GoneError):
            self._link.drop()
            if time.monotonic() - self._lost_at >= turn.LIMIT_S:
                self._fail(f"no back end has come within {turn.LIMIT_S:g} s{self._link.why()}")
                self._start_vacant(activation)
            return
        except BackendError as error:
            self._link.drop()
            self._fail(f"its back end {error}")
            return
        except ConfigError as error:
            self._fail(str(error))
            return
        # The one before may have used buffers and not said so.
        lib.pv_virtio_irq_used(activation.irq)
        self._say("there is a back end again")

    def _fail(self, why: str) -> None:
        """Let the driver find that the device needs a reset."""
        self._is_broken = True
        if self._activation is not None:
            lib.pv_virtio_irq_broken(self._activation.irq, why.encode(errors="replace"))

    def _start_vacant(self, activation: Activation) -> None:
        """Answer requests with errors; nobody else has the queues."""
        queues = self.given(activation)
        if self.VACANT < 0 or not queues:
            return
        pairs = [(queue.handle, queue.kick_fd) for queue in queues]
        for handle, _ in pairs:
            lib.pv_virtqueue_seek(handle, lib.pv_virtqueue_served(handle))
        self._vacant.start(0, ffi.new("struct pv_queue[]", pairs), activation.irq)
