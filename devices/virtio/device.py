"""The shape of every virtio device, whatever its transport.

A device is made once and then lives through any number of activations: the driver negotiates
features, sets up queues and says DRIVER_OK (`activate`); later it resets the device (`reset`),
and may begin anew. In between the data path belongs to C threads that the device started. What is
behind a `Pluggable` device comes and goes meanwhile. Source: virtio 1.2, chapters 2 and 3.
"""

from __future__ import annotations

from . import registers as r

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from ...state import Fields
    from ..chardev import Chardev
    from ..overlay import Overlay
    from .fault import Faults

    class DeviceConfig(Protocol):
        """A device that is always there, as it was asked for; never changed."""

        @property
        def id(self) -> str:
            """What messages and monitors call it."""

        def make(self) -> Device:
            """Return it, with all that it needs of the host; PyvirtError, and nothing stays."""


class Queue:
    """One virtqueue of an activated device; all of it is valid until `Device.reset` returns."""

    __slots__ = ("handle", "index", "kick_fd")

    def __init__(self, index: int, handle: Any, kick_fd: int) -> None:
        """`handle` is the struct pv_virtqueue, checked and translated.

        `kick_fd` is an eventfd that becomes readable when the driver notifies the queue. Both
        are borrowed from the transport; one thread at a time may use the first.
        """
        self.index = index
        self.handle = handle
        self.kick_fd = kick_fd


class Activation:
    """What a device needs to run; valid until `Device.reset` returns."""

    __slots__ = ("features", "irq", "memory", "queues")

    def __init__(self, features: int, queues: list[Queue | None], irq: Any, memory: Any) -> None:
        """`features` are the bits that both sides agreed on, those of the transport among them.

        `queues` has an entry for each of `Device.queue_sizes`: None where the driver did not make
        the queue ready. `irq` is the struct pv_virtio_irq, for any thread; `memory` the struct
        pv_memory.
        """
        self.features = features
        self.queues = queues
        self.irq = irq
        self.memory = memory


class Device:
    """What a transport asks of a device.

    `write_config`, `activate` and `reset` come from the transport, one at a time, on a vCPU's
    thread or the one that closes the machine; they may wait, for the guest waits with them, but
    not without a limit.
    """

    __slots__ = (
        "config_changed",
        "device_type",
        "exchange",
        "faults",
        "features",
        "name",
        "queue_sizes",
    )

    def __init__(
        self, name: str, *, device_type: int, features: int, queue_sizes: tuple[int, ...]
    ) -> None:
        """`name` is how messages call the device; `device_type` is its virtio device ID.

        `features` are the device's own bits (0 to 23, 50 to 127): VERSION_1 and those of rings
        belong to the transport. `queue_sizes` is the largest size of each queue, a power of two
        up to 32768.
        """
        self.name = name
        self.device_type = device_type
        self.features = features
        self.queue_sizes = queue_sizes
        # Set by the transport: return the device's faults.
        self.faults: Callable[[], Faults]
        self.leave()

    def leave(self) -> None:
        """Be as before there was a transport, which has gone; nothing was in its queues."""
        # Set by the transport: the device calls it from any thread when `config` answers
        # differently; the driver is told, now or as soon as may be. It never waits.
        self.config_changed: Callable[[], None] = lambda: None
        # Set by the transport, for a Pluggable device.
        self.exchange: Callable[[Callable[[bool], None]], None] = lambda change: change(False)

    def offer(self) -> int:
        """Return the device's own feature bits, for a driver that begins now.

        Until the next call the device keeps to them, and so does `config` to what goes with them.
        """
        return self.features

    def offer_again(self, features: int) -> int:
        """Return those of `features`, offered to a driver before a save, that it can keep to.

        After `restore`, and in place of `offer`.
        """
        return features & self.features

    def ring_features(self) -> int:
        """Return the features of rings that whoever serves the queues has."""
        return r.INDIRECT_DESC | r.EVENT_IDX

    def config(self) -> bytes:
        """Return the device configuration space of this moment; its length never changes."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """Take bytes that the driver wrote, all of them within `config`.

        What may not be written is ignored. `config` is asked again after it.
        """

    def activate(self, activation: Activation) -> None:
        """Begin to serve the queues; what is in them already counts as notified.

        PyvirtError: the device cannot run, and nothing of it does; the driver finds
        DEVICE_NEEDS_RESET, the log the message, which names the device.
        """
        raise NotImplementedError

    def reset(self, limit: float) -> None:
        """Stop serving: when this returns no thread touches the queues or guest memory.

        Requests in flight have come to their end. Called for each `activate` that succeeded, and
        for a `restore` that none has followed, until it succeeds. BackendError: that is not so
        after `limit` seconds (0: look only), and all of the Activation stays valid.
        """
        raise NotImplementedError

    def halt(self) -> None:
        """Begin with a `reset` that is to come, and wait for nothing."""

    def drain(self, limit: float) -> None:
        """Complete the requests in flight, and begin no more until `resume` or `reset`.

        Nothing touches the queues, guest memory or what `save` returns meanwhile; buffers that were
        taken but not used are back in their queues. Only of an activated device. BackendError:
        that is not so after `limit` seconds, and all goes on.
        """

    def resume(self) -> None:
        """Go on after `drain`; what is in the queues counts as notified.

        PyvirtError: it cannot, as of `activate`, but that a `reset` is to follow.
        """

    def save(self) -> dict[str, object]:
        """Return the device's own fields (state.py); registers and queues are the transport's.

        After `drain` if the device is activated. PyvirtError: it cannot be told, and why.
        """
        raise NotImplementedError

    def restore(self, fields: Fields) -> None:
        """Take what `save` of a device of this configuration returned; nothing begins.

        Once at most, before all else; `activate` follows if a driver was at work, with queues that
        go on where they were. StateError: only `close` may follow.
        """
        raise NotImplementedError

    def operations(self) -> tuple[str, ...]:
        """Return what of the device's doings faults can strike (`fault.OPERATIONS`)."""
        return ("interrupt",)

    def news(self) -> str:
        """Return a line for the log on what the data path met with, empty for nothing.

        Asked by a thread of the monitor when the data path called pv_virtio_irq_news; the device
        may call `config_changed`, but not wait.
        """
        return ""

    def chardevs(self) -> tuple[tuple[Chardev, bool, bool], ...]:
        """Return the character devices that it has; any thread, until `close`.

        Each with whether the guest has it open, and whether somebody on the host has.
        """
        return ()

    def terminal_resized(self) -> None:
        """See what size the user's terminal has now; the main thread, and it never waits."""

    def take_events(self) -> tuple[tuple[str, dict[str, object]], ...]:
        """Return what monitors are to be told, each by its name and data, and once.

        Asked as `news` is, after it.
        """
        return ()

    def close(self) -> None:
        """Give back what the device owns; it is reset, and no vCPU runs any more."""


class Pluggable(Device):
    """A device that is there whether something is behind it or not, as the guest sees.

    What comes with it is exchanged by `exchange(change)`, which calls `change` between two
    accesses of the driver and then shows it the configuration as it is. `change` is told whether
    a driver is at work; then all that it was offered stays until its reset. If `change` raises,
    so does `exchange`, and the driver sees nothing. BackendError when the device is kept busy.
    """

    __slots__ = ()
    KIND = ""  # "block" or "net"

    @property
    def backend(self) -> str:
        """Return the id of what is behind the device; "" when nothing is."""
        raise NotImplementedError

    @property
    def resource(self) -> Any:
        """Return what is behind the device, which `attach` put there; None when nothing is."""
        raise NotImplementedError

    def attach(self, backend: Any) -> None:
        """Put `backend` behind the device, where nothing is; any thread but a vCPU's.

        It is in use until `detach` has returned, or `close`, which closes it too; its maker closes
        it in the first case. PyvirtError: it cannot be, and all is as it was.
        """
        raise NotImplementedError

    def detach(self) -> Any:
        """Take away and return what is behind the device; nothing uses it any more then.

        Requests in flight are complete then, and the queues are served on as those of a device
        with nothing behind it. Nothing happens to such a one; None.
        """
        raise NotImplementedError

    def freeze(self) -> tuple[int, ...]:
        """Freeze what the guest has written beside what is behind the device, and return it.

        As descriptors of layers, the oldest first, which stay the device's own. The machine stands,
        and the device is drained. BackendError, and nothing has changed.
        """
        return ()

    def overlay(self) -> Overlay | None:
        """Return where what the guest writes goes beside what is behind the device, if it does."""
        return None

    def take_failure(self) -> tuple[str, int] | None:
        """Return what failed on the host since the last call, in a word, and its errno.

        Asked when the data path called pv_virtio_irq_news; any thread.
        """
        return None

    def take_filter_change(self) -> bool:
        """Say whether the driver of a NIC has changed what it wants to receive.

        Asked when the data path called pv_virtio_irq_news; any thread.
        """
        return False
