"""The connection to a back end: requests and their answers, each within a limit."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time

from ...errors import BackendError
from .protocol import (
    FDS_MAX,
    REPLY_ACK,
    U64,
    Inbox,
    Message,
    ProtocolError,
    check_reply,
    message,
    reply,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_FD_BYTES = array.array("i").itemsize
_ANCILLARY = socket.CMSG_SPACE(FDS_MAX * _FD_BYTES)


class TooLateError(BackendError):
    """A back end has not answered within its limit."""


class GoneError(BackendError):
    """A back end has closed the connection, or its process has ended."""


class Connection:
    """A connected stream socket; owns it until `close`. One thread at a time.

    Every call that speaks or listens has until `deadline`, of time.monotonic(). GoneError and
    ProtocolError: the connection is of no use any more; TooLateError: an answer may still come. The
    text of each goes on after "the back end".
    """

    __slots__ = ("_fds", "_inbox", "_socket", "protocol")

    def __init__(self, stream: socket.socket) -> None:
        """Take the socket over."""
        stream.setblocking(False)
        self._socket = stream
        self._inbox = Inbox()
        self._fds: list[int] = []  # that came with what is in the inbox
        self.protocol = 0  # features of the protocol that both sides have

    @property
    def fd(self) -> int:
        """Return the descriptor, to be waited for."""
        return self._socket.fileno()

    def tell(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, deadline: float
    ) -> None:
        """Send what is not answered; where the back end can say that it failed, hear that."""
        acknowledged = bool(self.protocol & REPLY_ACK)
        self.send(message(request, payload, need_reply=acknowledged), fds, deadline)
        if acknowledged:
            (status,) = U64.unpack(self.answer(request, (U64.size,), deadline=deadline).payload)
            if status != 0:
                raise ProtocolError(f"refuses message {request} with {status}")

    def ask(
        self,
        request: int,
        payload: bytes = b"",
        *,
        sizes: Sequence[int] = (U64.size,),
        fds: int = 0,
        deadline: float,
    ) -> Message:
        """Return the answer, of one of `sizes`, with `fds` descriptors that are the caller's."""
        self.send(message(request, payload), (), deadline)
        return self.answer(request, sizes, fds, deadline=deadline)

    def ask_number(self, request: int, deadline: float) -> int:
        """Return the 64 bits that a request is answered with."""
        return int(U64.unpack(self.ask(request, deadline=deadline).payload)[0])

    def answer(
        self, request: int, sizes: Sequence[int], fds: int = 0, *, deadline: float
    ) -> Message:
        """Return the answer to what was sent before, as `ask` does."""
        got = self._wait(deadline)
        try:
            check_reply(got, request, sizes, fds)
        except ProtocolError:
            _close(got.fds)
            raise
        return got

    def send(self, data: bytes, fds: Sequence[int], deadline: float) -> None:
        """Send all of it, the descriptors with the first byte."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while data:
            try:
                sent = self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._poll(select.POLLOUT, deadline)
                continue
            except OSError as error:
                raise GoneError(f"has gone ({error.strerror})") from None
            data, ancillary = data[sent:], []

    def _wait(self, deadline: float) -> Message:
        """Return the next message."""
        while (got := self.receive()) is None:
            self._poll(select.POLLIN, deadline)
        return got

    def receive(self) -> Message | None:
        """Return the next message if it is there already; its descriptors are the caller's."""
        while True:
            got = self._inbox.take()
            if got is not None:
                got.fds, self._fds = self._fds, []
                return got
            try:
                data = self._read(self._inbox.wants)
            except BlockingIOError:
                return None
            except OSError as error:
                raise GoneError(f"has gone ({error.strerror})") from None
            if not data:
                raise GoneError("has gone")
            self._inbox.feed(data)

    def _read(self, length: int) -> bytes:
        flags = socket.MSG_CMSG_CLOEXEC
        data, ancillary, told, _ = self._socket.recvmsg(length, _ANCILLARY, flags)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(content) - len(content) % _FD_BYTES
                self._fds += array.array("i", content[:whole])
        if told & socket.MSG_CTRUNC or len(self._fds) > FDS_MAX:
            raise ProtocolError("sends more open files than a message can have")
        return data

    def _poll(self, events: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._socket, events)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TooLateError("does not answer")

    def acknowledge(self, to: Message, status: int) -> None:
        """Answer a request of the back end, if it asks for that; without waiting."""
        if to.needs_reply:
            self.send(reply(to, status), (), 0)

    def close(self) -> None:
        """Close the socket, and files that came and nobody took."""
        _close(self._fds)
        # Whoever waits for the descriptor keeps the connection; this ends it all the same.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def discard(got: Message) -> None:
    """Close the files of a message that nobody wants."""
    _close(got.fds)
