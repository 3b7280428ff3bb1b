"""The two implementations of a virtqueue under one interface, for tests that hold for both."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from pyvirt.devices.virtio import queue
from pyvirt.errors import BackendError
from pyvirt.native import check, ffi, lib

from .mock_driver import Layout, Ram, Span

EPROTO = -71


class Popped(NamedTuple):
    """A chain, as guest-physical addresses and lengths."""

    head: int
    readable: list[Span]
    writable: list[Span]


class DeviceSide(Protocol):
    """A virtqueue as a device uses it; BrokenError is raised for what a driver may not do."""

    def pop(self) -> Popped | None: ...
    def push(self, head: int, written: int) -> bool: ...
    def publish(self) -> None: ...
    def needs_notify(self) -> bool: ...
    def enable_kicks(self) -> bool: ...
    def disable_kicks(self) -> None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def error(self) -> str | None: ...


class BrokenError(Exception):
    """The queue is broken; the text is its reason."""


class RefusedError(Exception):
    """The queue could not be made."""


class ModelSide:
    """devices/virtio/queue.py."""

    def __init__(self, ram: Ram, layout: Layout) -> None:
        self._ram = ram
        try:
            self.queue = queue.Virtqueue(ram, **vars(layout))
        except queue.DriverError as error:
            raise RefusedError(str(error)) from None

    def pop(self) -> Popped | None:
        try:
            chain = self.queue.pop()
        except queue.DriverError as error:
            raise BrokenError(str(error)) from None
        if chain is None:
            return None
        assert chain.readable_bytes == sum(map(len, chain.readable))
        return Popped(chain.head, self._spans(chain.readable), self._spans(chain.writable))

    def _spans(self, views: list[memoryview]) -> list[Span]:
        return [(self._ram.address(ffi.from_buffer(view)), len(view)) for view in views]

    def push(self, head: int, written: int) -> bool:
        """Return whether `head` was in flight."""
        try:
            self.queue.push(head, written)
        except ValueError:
            return False
        return True

    def publish(self) -> None:
        self.queue.publish()

    def needs_notify(self) -> bool:
        return self.queue.needs_notify()

    def enable_kicks(self) -> bool:
        return self.queue.enable_kicks()

    def disable_kicks(self) -> None:
        self.queue.disable_kicks()

    @property
    def in_flight(self) -> int:
        return len(self.queue.in_flight)

    @property
    def error(self) -> str | None:
        return self.queue.error


class NativeSide:
    """native/virtio/virtqueue.c."""

    def __init__(self, ram: Ram, layout: Layout) -> None:
        self._ram = ram
        self._memory = ram.native()
        self._chain = ffi.new("struct pv_chain *")
        out = ffi.new("struct pv_virtqueue **")
        config = ffi.new("struct pv_virtqueue_config *", vars(layout))
        try:
            check(lib.pv_virtqueue_new(self._memory, config, out), "pv_virtqueue_new")
        except BackendError as error:
            raise RefusedError(str(error)) from None
        self._queue: Any = ffi.gc(out[0], lib.pv_virtqueue_free)

    def pop(self) -> Popped | None:
        result = lib.pv_virtqueue_pop(self._queue, self._chain)
        if result < 0:
            assert result == EPROTO
            raise BrokenError(self.error)
        if result == 0:
            return None
        chain = self._chain
        spans = [
            (self._ram.address(chain.iov[i].iov_base), chain.iov[i].iov_len)
            for i in range(chain.readable + chain.writable)
        ]
        readable, writable = spans[: chain.readable], spans[chain.readable :]
        assert chain.readable_bytes == sum(length for _, length in readable)
        assert chain.writable_bytes == sum(length for _, length in writable)
        return Popped(chain.head, readable, writable)

    def push(self, head: int, written: int) -> bool:
        """Return whether `head` was in flight."""
        result = lib.pv_virtqueue_push(self._queue, head, written)
        assert result in {0, EPROTO}
        return bool(result == 0)

    def publish(self) -> None:
        lib.pv_virtqueue_publish(self._queue)

    def needs_notify(self) -> bool:
        return bool(lib.pv_virtqueue_needs_notify(self._queue))

    def enable_kicks(self) -> bool:
        return bool(lib.pv_virtqueue_enable_kicks(self._queue))

    def disable_kicks(self) -> None:
        lib.pv_virtqueue_disable_kicks(self._queue)

    @property
    def in_flight(self) -> int:
        return int(lib.pv_virtqueue_in_flight(self._queue))

    @property
    def error(self) -> str | None:
        reason = lib.pv_virtqueue_error(self._queue)
        return None if reason == ffi.NULL else ffi.string(reason).decode()


SIDES: dict[str, type[ModelSide | NativeSide]] = {"native": NativeSide, "model": ModelSide}


def take(device: DeviceSide) -> list[int]:
    """Pop all there is; return the heads."""
    heads = []
    while chain := device.pop():
        heads.append(chain.head)
    return heads


def serve(device: DeviceSide, written: int = 0) -> list[int]:
    """Pop all there is one by one, complete each and publish all; return the heads."""
    heads = []
    while chain := device.pop():
        heads.append(chain.head)
        assert device.push(chain.head, written)
    device.publish()
    return heads
