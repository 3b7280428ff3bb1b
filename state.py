"""The state of a machine as named fields: what is written, and how it is read back.

A state is a dict of names and JSON values: bool, int, str, None, lists and dicts of these. Bytes
are lower-case hexadecimal. It holds what a guest can tell, and nothing of the host: no path, no
descriptor, no pickle. Whoever has a state has these four, each in its own docstring:

    drain(limit)     bring to its end what is in flight, and stand; PyvirtError, and it goes on
    save()           return the state, standing
    restore(fields)  take one, newly made and by the same configuration; StateError
    resume()         go on, after `drain` or `restore`

What does nothing by itself has no `drain`; its `resume` raises again what may not have been seen.
With the vCPUs stopped a machine drains everything, saves everything, and resumes everything,
whatever became of the state. To restore, it makes everything as always, restores everything, KVM's
part last, and resumes everything before the first vCPU runs: only then does a device touch guest
memory or raise an interrupt, and it finds again whatever kick or interrupt was on its way.

    def save(self) -> dict[str, object]:
        return {"pending": self._pending}

    def restore(self, fields: Fields) -> None:
        self._pending = fields.integer("pending", 0, 0xFF)

A state is as untrusted as a guest. `restore` reads each field once, in the range that the rest of
the code relies on, and takes over nothing of which the device could not say so itself. After a
StateError what was to be restored can only be closed. Whoever has the whole calls `done` once, at
its root, which refuses what nobody has read:

    fields = Fields(json.loads(text))
    machine.restore(fields.section("machine"))
    fields.done()
"""

from __future__ import annotations

from .errors import StateError

_SHOWN = 40  # characters of a value or a name that messages show
_INTEGER_BITS = 128  # of one whose digits they show
_HEX = frozenset("0123456789abcdef")


class Fields:
    """A dict out of a state, to be read field by field; StateError names the field and its mend.

    One thread. Nothing is kept of what was read.
    """

    __slots__ = ("_opened", "_unread", "_values", "path")

    def __init__(self, values: object, path: str = "") -> None:
        """`path` is how messages call it: names and places in lists; "": it is the whole."""
        self.path = path
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise StateError(f"state: {_name(path)}{_shown(values)} is not a section of fields")
        self._values: dict[str, object] = values
        self._unread = dict.fromkeys(values)
        self._opened: list[Fields] = []

    def wrong(self, name: str, problem: str) -> StateError:
        """Return the error of a field whose value cannot be, for a reason of the reader's own."""
        return StateError(f"state: {self._path(name)}: {problem}")

    def names(self) -> list[str]:
        """Return the names of all fields."""
        return list(self._values)

    def has(self, name: str) -> bool:
        """Tell whether there is such a field: for those that older states lack."""
        return name in self._values

    def integer(self, name: str, low: int, high: int) -> int:
        """Return an integer from `low` to `high`."""
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, f"{_shown(value)} is not an integer")
        if not low <= value <= high:
            raise self.wrong(name, f"{_shown(value)} is not between {low} and {high}")
        return value

    def integers(self, name: str, low: int, high: int, *, most: int) -> list[int]:
        """Return a list of at most `most` integers from `low` to `high`."""
        values = self._list(name, most)
        each = Fields({str(place): one for place, one in enumerate(values)}, self._path(name))
        return [each.integer(str(place), low, high) for place in range(len(values))]

    def flag(self, name: str) -> bool:
        """Return a truth value."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise self.wrong(name, f"{_shown(value)} is neither true nor false")
        return value

    def text(self, name: str, most: int) -> str:
        """Return a string of at most `most` characters."""
        value = self._take(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"{_shown(value)} is not a string")
        if len(value) > most:
            raise self.wrong(name, f"has {len(value)} characters, and {most} are the most")
        return value

    def data(self, name: str, size: int | None = None, *, most: int | None = None) -> bytes:
        """Return bytes, written as hexadecimal: `size` of them, or at most `most`."""
        value = self._take(name)
        if not isinstance(value, str) or len(value) % 2 or not _HEX.issuperset(value):
            raise self.wrong(name, f"{_shown(value)} is not bytes in hexadecimal")
        count = len(value) // 2
        if size is not None and count != size:
            raise self.wrong(name, f"has {count} bytes, not {size}")
        if most is not None and count > most:
            raise self.wrong(name, f"has {count} bytes, and {most} are the most")
        return bytes.fromhex(value)

    def value(self, name: str) -> object:
        """Return whatever it is, for a reader that has its own rules."""
        return self._take(name)

    def section(self, name: str) -> Fields:
        """Return a dict."""
        return self._open(name, self._take(name))

    def optional(self, name: str) -> Fields | None:
        """Return a dict; None where the field is null."""
        value = self._take(name)
        return None if value is None else self._open(name, value)

    def sections(self, name: str) -> dict[str, Fields]:
        """Return a dict of dicts, whatever their names are."""
        outer = self.section(name)
        return {each: outer.section(each) for each in outer.names()}

    def items(self, name: str, most: int) -> list[Fields]:
        """Return a list of at most `most` dicts."""
        values = self._list(name, most)
        return [self._open(f"{name}.{place}", value) for place, value in enumerate(values)]

    def count(self, name: str, most: int) -> int:
        """Return the length of a list, of at most `most` entries, which is still to be read."""
        return len(self._list(name, most))

    def done(self) -> None:
        """Refuse fields that were not read, here and in all sections that were opened."""
        for name in self._unread:
            raise self.wrong(name, "is no field that this pyvirt knows")
        for opened in self._opened:
            opened.done()
        self._opened.clear()

    def _take(self, name: str) -> object:
        if name not in self._values:
            raise self.wrong(name, "is missing")
        self._unread.pop(name, None)
        return self._values[name]

    def _list(self, name: str, most: int) -> list[object]:
        value = self._take(name)
        if not isinstance(value, list):
            raise self.wrong(name, f"{_shown(value)} is not a list")
        if len(value) > most:
            raise self.wrong(name, f"has {len(value)} entries, and {most} are the most")
        return value

    def _open(self, name: str, value: object) -> Fields:
        opened = Fields(value, self._path(name))
        self._opened.append(opened)
        return opened

    def _path(self, name: str) -> str:
        name = _printable(name)
        return f"{self.path}.{name}" if self.path else name


def _name(path: str) -> str:
    return f"{path}: " if path else ""


def _printable(text: str) -> str:
    """Return a foreign text as a piece of a line."""
    cut = text[:_SHOWN]
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
    return shown if len(text) <= _SHOWN else f"{shown}..."


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        size = value.bit_length()
        return str(value) if size <= _INTEGER_BITS else f"an integer of {size} bits"
    if isinstance(value, str):
        return f'"{_printable(value)}"'
    kinds = {list: "a list", dict: "a section", float: "a fraction"}
    return kinds.get(type(value), f"a {type(value).__name__}")
