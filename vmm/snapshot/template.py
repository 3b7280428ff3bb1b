"""A machine in memory that others are forked from: its state, parsed once, and a sealed memfd.

Who has one is a process of `pyvirt template` or `pyvirt serve`. A machine gets there by
`migrate`, with the uri `template:SOCKET[,name=NAME]`: it connects to that process's socket and says

    {"give": NAME}

to which the answer is {}, or {"error": TEXT} and the end. When it has written all there follows

    {"given": true}      with descriptors (SCM_RIGHTS): of the state, of the memory, and of the
                         layers that disks' overlays have, of which `layers` in the state tells

and the same answers. The first two are memfds, and what is in them is what the files of a snapshot
have; nobody can write to them any more, or change their size. Source: fcntl(2), F_ADD_SEALS.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import closing, suppress

from ...errors import BackendError, PyvirtError, StateError
from ...files import write_all
from .. import kvm, slots
from ..memory import GuestMemory
from . import folder, overlays, state_file
from .kvm_state import KvmState
from .layers import Stack, open_layers
from .memory_file import MemoryFile, Writer, copy_sparse
from .restore import Incoming, read_devices, read_shape
from .shape import vacancies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ...devices.virtio.device import Pluggable
    from ...state import Fields
    from .shape import Shape

SCHEME = "template:"
_NAME = ",name="
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_PAGE = 4096
_LAYERS_MAX = 62  # of all disks: 64 descriptors come at once
_LINE_MAX = 4096
# For an answer. That to {"given": true} comes when the state is read.
_PATIENCE_S = 20.0


def uri(path: str, name: str = "") -> str:
    """Return that by which a machine becomes the template `name` of the process at a socket."""
    return f"{SCHEME}{path}{_NAME}{name}" if name else SCHEME + path


class Template:
    """The template; owns its memory and its disks' layers until `close`. One thread."""

    __slots__ = ("_devices", "_file", "_kvm_state", "_layers", "_shape", "_vacant", "fields")

    def __init__(self, fields: Fields, shape: Shape, file: MemoryFile) -> None:
        self.fields = fields
        self._layers: dict[int, tuple[int, ...]] = {}  # by slots
        self._shape = shape
        self._file = file
        # Of these each fork has a copy.
        file.extents()
        self._kvm_state = _read_kvm_state(fields)
        self._devices: list[Fields] = []
        self._vacant: dict[int, Pluggable] = {}
        # Where it cannot be read, each fork tells of it.
        with suppress(PyvirtError):
            self._devices = read_devices(fields)
            for slot, (kind, addr) in vacancies(self._devices).items():
                self._vacant[slot] = slots.vacant(kind, addr, "")

    @property
    def fds(self) -> list[int]:
        """Return the descriptors: the memory's, then those of layers."""
        return [self._file.fd, *(fd for own in self._layers.values() for fd in own)]

    def own(self, layers: dict[int, tuple[int, ...]]) -> None:
        """Take over the layers of disks, by slots."""
        self._layers = layers

    def incoming(self) -> Incoming:
        """Return what one machine is restored from; in a process of its own, once."""
        names = "template", "the template"
        incoming = Incoming(self.fields, self._shape, self._file, names, mapped=True)
        incoming.layers = self._layers
        incoming.kvm_state = self._kvm_state
        incoming.devices, incoming.vacant = self._devices, self._vacant
        return incoming

    def close(self) -> None:
        """Give it all back, when its forks have."""
        for device in self._vacant.values():
            device.close()
        self.incoming().close()


def _read_kvm_state(fields: Fields) -> KvmState | None:
    """Read what is KVM's; None: it cannot be, of which each fork tells."""
    try:
        kvm_fd = kvm.open_device()
    except PyvirtError:
        return None
    try:
        return KvmState(fields, kvm_fd)
    except PyvirtError:
        return None
    finally:
        os.close(kvm_fd)


def take(state_fd: int, memory_fd: int, *layers: int) -> Template:
    """Return the template of descriptors that somebody has sent, which are taken over.

    StateError; nothing waits for that somebody.
    """
    try:
        template = _take(state_fd, memory_fd)
        try:
            template.own(overlays.sort(template.fields, layers))
        except BaseException:
            template.close()
            raise
    except BaseException:
        for fd in layers:
            os.close(fd)
        raise
    return template


def _take(state_fd: int, memory_fd: int) -> Template:
    try:
        for fd in (state_fd, memory_fd):
            _check_sealed(fd)
        fields = state_file.decode(_read(state_fd))
        shape, identity = read_shape(fields)
    except BaseException:
        os.close(memory_fd)
        raise
    finally:
        os.close(state_fd)
    return Template(fields, shape, MemoryFile(memory_fd, "memory", shape.memory, identity))


def _check_sealed(fd: int) -> None:
    """Refuse what is not a memfd, of small pages, that stays as it is."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        page = os.fstatvfs(fd).f_bsize
    except OSError:
        raise StateError("template: is not given as memfds; use migrate of pyvirt") from None
    if seals & _SEALS != _SEALS or page != _PAGE:
        raise StateError("template: its memfds are not sealed, or of huge pages; use migrate")


def _read(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > state_file.SIZE_MAX:
        raise StateError(f"state: is larger than {state_file.SIZE_MAX >> 20} MiB")
    return os.pread(fd, size, 0)


def read_folder(path: str) -> Template:
    """Return the template that a snapshot's folder makes, whose memory is copied.

    StateError, BackendError. The folder may go then; its disks' layers stay open.
    """
    fields = state_file.read(os.path.join(path, folder.STATE))
    try:
        shape, identity = read_shape(fields)
    except StateError as error:
        raise StateError(f"{path}: {error}") from None
    name = os.path.join(path, folder.MEMORY)
    with closing(open_layers(path, fields, shape.memory, identity)) as content:
        try:
            fd = _sealed("memory", lambda fd: _copy(content, shape.memory, identity, fd))
        except OSError as error:
            raise BackendError(f"{name}: {error.strerror}; free some memory") from None
    template = Template(fields, shape, MemoryFile(fd, name, shape.memory, identity))
    try:
        template.own(overlays.open_files(path, fields, identity))
    except BaseException:
        template.close()
        raise
    return template


def _copy(content: MemoryFile | Stack, size: int, identity: bytes, fd: int) -> None:
    """Copy the memory of a folder to a new file; OSError, BackendError."""
    if isinstance(content, MemoryFile):
        copy_sparse(content.fd, fd)
        return
    with closing(GuestMemory(size, content=content)) as memory:
        Writer(memory, identity).write(fd)


def _sealed(name: str, fill: Callable[[int], None]) -> int:
    """Return a memfd that `fill` has filled, and nobody changes any more; OSError."""
    fd = os.memfd_create(f"pyvirt-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fill(fd)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Handover:
    """Where a machine goes that becomes a template: a socket, and the name that is to have there.

    Used once: `check`, then `take` for each disk, then `write`, from any one thread.
    """

    __slots__ = ("_layers", "_name", "_path", "_socket")

    def __init__(self, text: str) -> None:
        """Read what is behind the scheme of a uri."""
        self._path, _, self._name = text.partition(_NAME)
        self._layers: list[int] = []
        self._socket: socket.socket | None = None

    def check(self) -> None:
        """Connect, and ask whether it is wanted there; BackendError."""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(_PATIENCE_S)
            try:
                self._socket.connect(self._path)
                self._ask({"give": self._name})
            except OSError as error:
                raise self._failure(error) from None
        except BaseException:
            self.close()
            raise

    def take(self, _slot: int, device: Pluggable, _writer: Writer) -> int:
        """Freeze what the device's overlay has, and borrow that; return the layers' number.

        BackendError.
        """
        layers = device.freeze()
        self._layers += layers
        return len(layers)

    def write(self, memory: Callable[[int], None], state: Callable[[], bytes]) -> None:
        """Have a memfd filled by `memory`, and hand all over with the state; BackendError."""
        assert self._socket is not None
        fds: list[int] = []
        try:
            if len(self._layers) > _LAYERS_MAX:
                raise BackendError(
                    f"{SCHEME}{self._path}: its disks have {len(self._layers)} layers, and "
                    f"{_LAYERS_MAX} are the most; fork the machine that was there first"
                )
            fds.append(_sealed("memory", memory))
            data = state()
            fds.insert(0, _sealed("state", lambda fd: write_all(fd, data)))
            self._ask({"given": True}, [*fds, *self._layers])
        except OSError as error:
            raise self._failure(error) from None
        finally:
            for fd in fds:
                os.close(fd)
            self.close()

    def _ask(self, message: dict[str, object], fds: list[int] | None = None) -> None:
        assert self._socket is not None
        line = b""
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode() + b"\n"], fds or [])
            while not line.endswith(b"\n") and len(line) <= _LINE_MAX:
                data = self._socket.recv(_LINE_MAX)
                if not data:
                    break
                line += data
        except (BrokenPipeError, ConnectionResetError):
            line = b""  # which of these it is, or an end, depends on when it went
        if not line.endswith(b"\n"):
            raise BackendError(f"{SCHEME}{self._path}: does not answer; is it pyvirt template?")
        try:
            why = json.loads(line).get("error")
        except (ValueError, AttributeError):
            why = "its answer is not understood; is it pyvirt template?"
        if why is not None:
            raise BackendError(f"{SCHEME}{self._path}: {why}")

    def _failure(self, error: OSError) -> BackendError:
        why = error.strerror or str(error)
        return BackendError(
            f"{SCHEME}{self._path}: {why}; name the socket of a pyvirt template on this host (for "
            "a guest in the nested lab, in that lab), which has room for the guest's memory"
        )

    def close(self) -> None:
        """End the connection; nothing happens the second time."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
