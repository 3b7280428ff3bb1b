"""Virtio devices written in Python, for drivers under development; docs/python-devices.md.

A user derives a class from PythonDevice, says which device it is, and handles one chain of
descriptors at a time; the rings are the C ones, with all their checks. A thread of Python serves
all queues: tens of microseconds a chain, and it shares the interpreter with the monitor's control
plane, never with vCPUs that run. What goes wrong in a user's code is a line in the log and a
device that needs a reset.
"""

from __future__ import annotations

import _thread
import json
import os
import select
import time

from ...errors import BackendError, ConfigError, unexpected
from ...native import check, ffi, lib
from . import turn
from .device import Device
from .queue import Chain
from .registers import CONFIG_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from ...state import Fields
    from .device import Activation

QUEUES_MAX = 64
QUEUE_SIZE_MAX = 1024
_ID_MAX = 0xFFFF
# Bits of the transport and the rings, which it negotiates itself (virtio 1.2, chapter 6).
_RESERVED = ((1 << 42) - 1) ^ ((1 << 24) - 1)
# Where no user's code is: here, and in modules of Python's that have no folder.
_OURS = (os.path.dirname(__file__), "")
_BATCH = 64  # chains of a queue, before others have their turn

# What `handle` returns of a chain that `complete` is called for later.
LATER: Final = object()


class Request(Chain):
    """A chain that a driver offers: what it says, and the room for what the device says.

    `readable` and `writable` are views of guest memory, until the chain is complete; the driver
    may change it meanwhile, so look at a copy, which `read` returns.
    """

    __slots__ = ("queue",)

    def __init__(self, queue: int, chain: Any) -> None:
        """`queue` is the queue's number, `chain` the struct pv_chain."""
        super().__init__(chain.head)
        self.queue = queue
        views = [
            memoryview(ffi.buffer(chain.iov[i].iov_base, chain.iov[i].iov_len)).cast("B")
            for i in range(chain.readable + chain.writable)
        ]
        self.readable = [view.toreadonly() for view in views[: chain.readable]]
        self.writable = views[chain.readable :]

    def release(self) -> None:
        """Let go of the guest's memory; a view of it is of no use any more."""
        for view in self.readable + self.writable:
            try:
                view.release()
            except BufferError:  # a user's code has made something else of it
                continue


class _Service:
    """The queues of one activation, and the thread that serves them."""

    def __init__(self, device: PythonDevice, activation: Activation) -> None:
        # Not for who only asks whether a device is of this kind: once loaded it takes part in every
        # fork of the process, which writes to memory that could be shared.
        import threading  # noqa: PLC0415

        self._device = device
        self._irq = activation.irq
        self._rings = {queue.index: queue.handle for queue in activation.queues if queue}
        self._kicks = {queue.kick_fd: queue.index for queue in activation.queues if queue}
        self._chain = ffi.new("struct pv_chain *")
        self._in_flight: set[Request] = set()
        # Guards the rings, which are there as long as it is alive, and none of which is served
        # while it stands; it is notified of chains that are complete.
        self._lock = threading.Condition(threading.Lock())
        self._is_alive = True
        self._is_standing = False
        self._end_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ended = _thread.allocate_lock()
        self._ended.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:
            raise BackendError(f"{device.name}: {error}; raise ulimit -u") from None

    def stop(self, limit: float) -> None:
        """End the service; when this returns nothing touches the rings or guest memory."""
        with self._lock:
            self._is_alive = False
        os.eventfd_write(self._end_fd, 1)
        if not self._ended.acquire(timeout=limit):
            # The thread has a reference to this still, and comes to nothing.
            why = f"handle takes more than {limit:g} s; it is left alone"
            lib.pv_virtio_irq_broken(self._irq, why.encode())
        while self._in_flight:
            self._in_flight.pop().release()

    def drain(self, limit: float) -> None:
        """Have what was taken completed, and take no more."""
        until = time.monotonic() + limit
        with self._lock:
            self._is_standing = True
            while self._in_flight and not lib.pv_virtio_irq_is_broken(self._irq):
                if not self._lock.wait(until - time.monotonic()) and time.monotonic() >= until:
                    self._is_standing = False
                    left = len(self._in_flight)
                    break
            else:
                return
        self._wake()
        raise BackendError(
            f"{self._device.name}: its class has not completed {left} chains within {limit:g} s"
        )

    def resume(self) -> None:
        """Go on."""
        with self._lock:
            self._is_standing = False
        self._wake()

    def _wake(self) -> None:
        for fd in self._kicks:
            os.eventfd_write(fd, 1)

    def fail(self, why: str) -> None:
        """Let the device need a reset."""
        with self._lock:
            if self._is_alive:
                lib.pv_virtio_irq_broken(self._irq, why.encode(errors="replace"))

    def tell(self) -> None:
        """Have the monitor ask the device for news."""
        with self._lock:
            if self._is_alive:
                lib.pv_virtio_irq_news(self._irq)

    def __del__(self) -> None:
        os.close(self._end_fd)

    def _run(self) -> None:
        lib.pv_crash_thread(self._device.name.encode(errors="replace"))
        poll = select.poll()
        for fd in (self._end_fd, *self._kicks):
            poll.register(fd, select.POLLIN)
        busy = set(self._rings)
        try:
            check(lib.pv_sandbox_enter_control(), "sandbox")
            while self._is_alive:
                for fd, _ in poll.poll(0 if busy else None):
                    os.eventfd_read(fd)
                    if fd in self._kicks:
                        busy.add(self._kicks[fd])
                busy = {queue for queue in busy if self._serve(queue)}
        except BaseException as error:  # noqa: BLE001  (a user's code may raise anything)
            self.fail(described(error))
        finally:
            self._ended.release()

    @property
    def _is_serving(self) -> bool:
        return self._is_alive and not self._is_standing

    def _serve(self, queue: int) -> bool:
        """Handle what there is in a queue, up to the budget; True: there may be more."""
        for _ in range(_BATCH):
            request = self._pop(queue)
            if request is None:
                return False
            written = self._device.handle(queue, request)
            if written is not LATER:
                self.complete(request, written)
        return True

    def _pop(self, queue: int) -> Request | None:
        """Take the next chain; None when there is none, and the driver tells of the next."""
        with self._lock:
            while self._is_serving and not lib.pv_virtio_irq_is_broken(self._irq):
                ring = self._rings[queue]
                result = lib.pv_virtqueue_pop(ring, self._chain)
                if result > 0:
                    request = Request(queue, self._chain)
                    self._in_flight.add(request)
                    return request
                if result < 0:
                    lib.pv_virtio_irq_broken(self._irq, lib.pv_virtqueue_error(ring))
                elif not lib.pv_virtqueue_enable_kicks(ring):
                    break
        return None

    def complete(self, request: Request, written: object) -> None:
        """Give a chain back; nothing happens to one that a reset has taken."""
        if not isinstance(written, int) or isinstance(written, bool):
            raise TypeError(f"handle returned {written!r}, not how many bytes it wrote, or LATER")
        with self._lock:
            if not self._is_alive or request not in self._in_flight:
                return
            room = request.writable_bytes
            if not 0 <= written <= room:
                raise ValueError(f"{written} bytes written to a chain of {room}")
            self._in_flight.remove(request)
            self._lock.notify_all()
            request.release()
            ring = self._rings[request.queue]
            lib.pv_virtqueue_push(ring, request.head, written)
            lib.pv_virtqueue_publish(ring)
            if lib.pv_virtqueue_needs_notify(ring):
                lib.pv_virtio_irq_used(self._irq)


class PythonDevice(Device):
    """What a user's device is derived from.

    `device_id` is its number in chapter 5 of the specification (or one that a driver under
    development has), `queue_sizes` the largest size of each of its queues, `features` its own
    feature bits, `config_space` what its driver reads there; all of them may be set by `__init__`,
    which gets the members of `-device python` that are not pyvirt's own, as strings.
    """

    device_id: int = 0
    features: int = 0
    queue_sizes: tuple[int, ...] = (64,)
    config_space: bytes | bytearray = b""

    # Of the time between `activate` and `reset`.
    negotiated: int = 0
    _service: _Service | None = None
    _config_due = False
    _size = 0
    _writing: _thread.LockType | None = None  # held while a user's code takes what was written

    def __init__(self) -> None:
        """Take no keywords; a derived class may, and need not call this."""

    def handle(self, queue: int, request: Request) -> object:
        """Serve a chain of the queue; return how many bytes were written, or LATER.

        On the device's thread. Whatever it raises, the device needs a reset then.
        """
        raise NotImplementedError

    def config_written(self, offset: int, data: bytes) -> None:
        """Take what the driver wrote to the configuration space; by itself it changes nothing.

        The driver waits for it, LIMIT_S at most.
        """

    def save_state(self) -> object:
        """Return what `restore_state` needs of another object of this class: JSON values.

        No chain is in flight meanwhile. What is in `config_space` need not be in it.
        """
        raise NotImplementedError

    def restore_state(self, state: object) -> None:
        """Take what `save_state` of another returned, by way of a file that may have been changed.

        Before all chains. `config_space` is that of the other. What it raises refuses the state.
        """
        raise NotImplementedError

    def complete(self, request: Request, written: int = 0) -> None:
        """Complete a chain that `handle` put off; any thread. Without effect after a reset."""
        service = self._service
        if service is not None:
            service.complete(request, written)

    def update_config(self) -> None:
        """Tell the driver that `config_space` has changed; any thread."""
        self._config_due = True
        service = self._service
        if service is not None:
            service.tell()

    # The transport's side.

    def prepare(self, name: str) -> None:
        """Make it a device that messages call `name`; ConfigError when it cannot be one."""
        _check(self)
        self._size = len(self.config_space)
        super().__init__(
            name,
            device_type=self.device_id,
            features=self.features,
            queue_sizes=tuple(self.queue_sizes),
        )

    def config(self) -> bytes:
        """Return the configuration space, whose length never changes."""
        config = b""

        def read() -> None:
            nonlocal config
            config = bytes(self.config_space[: self._size])

        self._guarded(read)
        return config.ljust(self._size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Hand on what the driver wrote; code that does not return is left alone."""
        before = self._writing
        if before is not None and before.locked():
            return
        done = self._writing = _thread.allocate_lock()
        done.acquire()

        def write() -> None:
            self._guarded(lambda: self.config_written(offset, data))
            done.release()

        why = f"config_written takes more than {turn.LIMIT_S:g} s; it is left alone"
        try:
            _thread.start_new_thread(write, ())
        except RuntimeError as error:
            why = f"{error}; raise ulimit -u"
            done.release()
        else:
            if done.acquire(timeout=turn.LIMIT_S):
                done.release()
                return
        service = self._service
        if service is not None:
            service.fail(why)

    def drain(self, limit: float) -> None:
        """Wait for chains that were put off, too."""
        if self._service is not None:
            self._service.drain(limit)

    def resume(self) -> None:
        """Go on."""
        if self._service is not None:
            self._service.resume()

    def save(self) -> dict[str, object]:
        """Return the configuration space, and what the user's code says."""
        if type(self).save_state is PythonDevice.save_state:
            raise ConfigError(
                f"{self.name}: cannot be saved: its class has no save_state and restore_state"
            )
        own: object = None

        def ask() -> None:
            nonlocal own
            own = json.loads(json.dumps(self.save_state(), allow_nan=False))

        self._ask("save_state", ask)
        return {"config_space": self.config().hex(), "own": own}

    def restore(self, fields: Fields) -> None:
        """Hand on what `save` returned."""
        space, own = fields.data("config_space", self._size), fields.value("own")

        def tell() -> None:
            is_array = isinstance(self.config_space, bytearray)
            self.config_space = bytearray(space) if is_array else space
            self.restore_state(own)

        try:
            self._ask("restore_state", tell)
        except BackendError as error:
            raise fields.wrong("own", str(error)) from None

    def _ask(self, name: str, call: Callable[[], None]) -> None:
        """Call a user's code on a thread of its own, which is left alone if it does not return."""
        done = _thread.allocate_lock()
        done.acquire()
        failures: list[str] = []

        def run() -> None:
            try:
                call()
            except BaseException as error:  # noqa: BLE001  (a user's code may raise anything)
                failures.append(described(error))
            finally:
                done.release()

        try:
            _thread.start_new_thread(run, ())
        except RuntimeError as error:
            raise BackendError(f"{self.name}: {error}; raise ulimit -u") from None
        if not done.acquire(timeout=turn.LIMIT_S):
            raise BackendError(f"{self.name}: {name} takes more than {turn.LIMIT_S:g} s")
        if failures:
            raise BackendError(f"{self.name}: {name}: {failures[0]}")

    def activate(self, activation: Activation) -> None:
        """Start the thread."""
        self.negotiated = activation.features
        self._service = _Service(self, activation)

    def reset(self, limit: float) -> None:
        """End it."""
        service, self._service = self._service, None
        if service is not None:
            service.stop(limit)

    def news(self) -> str:
        """Show the driver a new configuration."""
        if self._config_due:
            self._config_due = False
            self.config_changed()
        return ""

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001  (a user's code may raise anything)
            service = self._service
            if service is not None:
                service.fail(described(error))


def _check(device: PythonDevice) -> None:
    name, sizes = type(device).__name__, device.queue_sizes
    if not isinstance(device.device_id, int) or not 0 < device.device_id <= _ID_MAX:
        raise ConfigError(
            f"{name}.device_id is {device.device_id!r}; give a virtio device ID, from 1"
        )
    if not isinstance(sizes, tuple | list) or not 1 <= len(sizes) <= QUEUES_MAX:
        raise ConfigError(f"{name}.queue_sizes is {sizes!r}; give the size of each queue")
    for size in sizes:
        if not isinstance(size, int) or not 1 <= size <= QUEUE_SIZE_MAX or size & (size - 1):
            raise ConfigError(
                f"{name}.queue_sizes has {size!r}; give powers of two, to {QUEUE_SIZE_MAX}"
            )
    if not isinstance(device.features, int) or device.features & _RESERVED or device.features < 0:
        raise ConfigError(f"{name}.features is {device.features!r}; give the device's own bits")
    if not isinstance(device.config_space, bytes | bytearray):
        raise ConfigError(f"{name}.config_space is {device.config_space!r}; give bytes")
    if len(device.config_space) > CONFIG_SIZE:
        raise ConfigError(
            f"{name}.config_space has {len(device.config_space)} bytes; {CONFIG_SIZE} is the most"
        )


def described(error: BaseException) -> str:
    """Return an exception of a user's code in a line, with the place where it was raised."""
    return unexpected(error, _OURS)
