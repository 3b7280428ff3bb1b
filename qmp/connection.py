"""One client's connection: its bytes in and out, bounded both ways."""

from __future__ import annotations

import array
import socket
from collections import deque
from typing import TYPE_CHECKING

from .framing import Decoder, encode
from .session import Session
from .version import GREETING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..vmm.steps import Steps
    from .framing import Fault
    from .monitor import Answer, Monitor

# Small, so that one client's turn is short and what its requests give is bounded.
_READ_BYTES = 4096
_FDS_MAX = 16  # in one message
# Above this the client's requests wait until it has read; a client that does not even read its
# events is dropped above the second.
_OUTPUT_HIGH = 64 << 10
OUTPUT_MAX = 1 << 20


class Connection:
    """A client. Used by the server's thread only; owns the socket until `close`.

    `is_open` is False when the client is to be closed, for the reason in `problem` if it is the
    client's fault. One that is not on a Unix socket, whose mode keeps strangers out, may be
    anybody's web browser: it is closed at the first bytes that are no JSON, and has no command
    before qmp_capabilities.
    """

    def __init__(
        self,
        client: socket.socket,
        monitor: Monitor,
        *,
        throttled: bool = True,
        events_last: bool = False,
    ) -> None:
        """Greet the client; `client` is connected and non-blocking."""
        self.socket = client
        self._is_public = client.family != socket.AF_UNIX
        self.session = Session(monitor, throttled=throttled, must_greet=self._is_public)
        self.is_open = True
        self.problem = ""
        self._monitor = monitor
        self._events_last = events_last
        self._decoder = Decoder()
        self._steps: Steps[Answer] | None = None  # of the request that waits for the guest
        self._output: deque[bytes] = deque()
        self._size = 0  # of the output
        self._ended = False  # the client sends no more
        self.send(encode(GREETING))

    def wants(self) -> tuple[bool, bool]:
        """Return whether to `read` when bytes are here, and to `write` when there is room."""
        return not self._ended and self._size <= _OUTPUT_HIGH, bool(self._output)

    def read(self) -> None:
        """Take what the client has sent; `requests` are to be looked at then."""
        try:
            data, ancillary, _, _ = self.socket.recvmsg(
                _READ_BYTES, socket.CMSG_SPACE(_FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self.is_open = False
            return
        self.session.descriptors.arrive(_descriptors(ancillary))
        if data:
            self._decoder.feed(data)
        else:
            self._ended = True

    def serve(self, take_events: Callable[[Connection], list[bytes]]) -> None:
        """Answer the requests that are here, as long as the client reads the answers.

        One that waits for the guest lets those behind it wait, and is gone on with by each call.

        `take_events` gives the events that have come up to now to everybody else, and returns
        what this client is to get.
        """
        while self.is_waiting or (self.is_open and self._size <= _OUTPUT_HIGH):
            if self._steps is None:
                item = self._decoder.next()
                if item is None and self._ended:
                    item = self._decoder.end()
                if item is None:
                    break
                self._steps = self._monitor.answer(self.session, item)
            answer = self._go_on(self._steps)
            if answer is None:
                return
            if answer.fault and self._is_stranger(answer.fault):
                self.is_open = False
                self.problem = f"a client of TCP does not speak QMP: {answer.fault.description}"
                return
            events = take_events(self)
            last = answer.first or self._events_last
            message = encode(answer.message)
            parts = (message, *events) if last else (*events, message)
            self.send(b"".join(parts))
        if self._ended and not self._output:
            self.is_open = False

    @property
    def is_waiting(self) -> bool:
        """Tell whether a request of the client waits for the guest."""
        return self._steps is not None

    def _go_on(self, steps: Steps[Answer]) -> Answer | None:
        """Do the next step of the request; return the answer behind the last."""
        try:
            next(steps)
        except StopIteration as end:
            self._steps = None
            return end.value  # type: ignore[no-any-return]
        except BaseException:
            self._steps = None
            raise
        return None

    def _is_stranger(self, fault: Fault) -> bool:
        return self._is_public and (fault.is_stray or not self.session.is_ready)

    def send(self, data: bytes) -> None:
        """Send now, in one piece where the client has room, else when it has read."""
        self._output.append(data)
        self._size += len(data)
        self.write()
        if self._size > OUTPUT_MAX:
            self.is_open = False
            self.problem = f"a client does not read: {self._size} bytes wait for it"

    def write(self) -> None:
        """Send what waits, as far as the client has room."""
        while self._output and self.is_open:
            data = self._output.popleft()
            try:
                count = self.socket.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                count = 0
            except OSError:
                self.is_open = False
                return
            self._size -= count
            if count < len(data):
                self._output.appendleft(data[count:])
                return

    def is_idle(self) -> bool:
        """Return whether nothing waits to be sent."""
        return not self._output

    def close(self) -> None:
        """Close the socket and every descriptor that came over it; take back what waits."""
        self.is_open = False
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()
        self.socket.close()
        self.session.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
