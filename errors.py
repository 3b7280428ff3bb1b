"""The exceptions that pyvirt raises on purpose.

    PyvirtError           anything that a user may read; exit status 1
    +-- ConfigError       what the user asked for cannot be done; exit status 2
    +-- KvmError          an ioctl of KVM failed
    +-- BackendError      a file, tap, terminal or tool of the host failed
    +-- GuestError        the guest did something that ends it
    +-- QmpError          what a QMP client asked for is refused
    +-- StateError        a saved state is not one, or not this machine's

The text of each is one line, complete without its class name: what (the option or
field and its value), what is accepted, what to do. No traceback reaches a user.
"""

import os

_TEXT_MAX = 100  # characters of a foreign exception's text


def unexpected(error: BaseException, hidden: tuple[str, ...] = ()) -> str:
    """Return an exception that nobody raised on purpose in a line, with its place in the code.

    The place is the innermost that is in none of the `hidden` folders.
    """
    try:
        text = " ".join(str(error).split())[:_TEXT_MAX] or "no message"
    except Exception:  # noqa: BLE001  (the class may be a user's)
        text = "no message"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    traceback, place = error.__traceback__, ""
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if os.path.dirname(file) not in hidden:
            place = f" ({os.path.basename(file)}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    return f"{type(error).__name__}: {text}{place}"


class PyvirtError(Exception):
    """The root; `exit_status` is what `pyvirt` ends with."""

    exit_status = 1


class ConfigError(PyvirtError):
    """The user's input is at fault: an option, its value, or the file that it names."""

    exit_status = 2


class KvmError(PyvirtError):
    """An ioctl of KVM failed.

    `ioctl` is its name as in linux/kvm.h, `errno` the positive error number.
    """

    def __init__(self, ioctl: str, errno: int, hint: str = "") -> None:
        self.ioctl = ioctl
        self.errno = errno
        super().__init__(f"{ioctl}: {os.strerror(errno)}" + (f" ({hint})" if hint else ""))


class BackendError(PyvirtError):
    """Something of the host that serves the guest failed."""


class GuestError(PyvirtError):
    """The guest ended in a way that is its own doing, such as a triple fault."""


class StateError(PyvirtError):
    """A field of a saved state cannot be, or is not of this machine; state.py."""


class QmpError(PyvirtError):
    """A QMP request is refused; nothing has changed.

    `kind` is the error's class on the wire, its text the description there.
    """

    def __init__(self, description: str, kind: str = "GenericError") -> None:
        self.kind = kind
        super().__init__(description)
