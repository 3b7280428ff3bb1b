"""Members of an option such as `-drive id=root,file=root.img`: split, and read by a table."""

from __future__ import annotations

from ...errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_ID_MAX = 255
TRUE, FALSE = ("on", "yes", "true"), ("off", "no", "false")
_SWITCH = (*TRUE, *FALSE)
_NUMBERS_MAX = 1024
# Members whose value is a list of numbers, and which may be given more than once for it.
_LISTS = {"-numa": "cpus", "-object": "host-nodes"}

# Member, what its value is stored as ("" for what is checked and then left), and its reader.
Member = tuple[str, str, "Callable[[str, str], Any]"]


class Placed(str):
    """The value of an option that stands in a file; an error in it is told with its place."""

    __slots__ = ("places",)
    places: dict[str, str]

    def __new__(cls, text: str, places: dict[str, str]) -> Placed:
        """`places` are those of its members, as FILE:LINE:COLUMN, and of it all by ""."""
        placed = super().__new__(cls, text)
        placed.places = places
        return placed


def placed(text: str, take: Callable[..., Any], *before: object) -> None:
    """Call `take(*before, text)`; a ConfigError names the place of the option's value."""
    try:
        take(*before, str(text))
    except ConfigError as error:
        raise at_place(error, text) from None


def at_place(error: ConfigError, *texts: str) -> ConfigError:
    """Return the error with the place of that of the values which it is about, if it has one."""
    for text in texts:
        if isinstance(text, Placed):
            # The option and the member at fault stand before the colon.
            words = str(error).partition(": ")[0].replace(",", " ").split()
            about = [word.partition("=")[0] for word in words]
            name = next((name for name in text.places if name and name in about), "")
            return ConfigError(f"{text.places[name]}: {error}")
    return error


def pairs(option: str, text: str, first: str) -> list[tuple[str, str]]:
    """Split `key=value,...`; a first word without `=` is the value of `first`.

    Two commas stand for one within a value, as of a file's name.
    """
    result: list[tuple[str, str]] = []
    for index, word in enumerate(text.replace(",,", "\0").split(",")):
        key, equals, value = word.replace("\0", ",").partition("=")
        if first and not equals and index == 0:
            key, value = first, key
        if any(key == seen for seen, _ in result):
            if key == _LISTS.get(option):
                result = [(k, f"{v}:{value}" if k == key else v) for k, v in result]
                continue
            raise ConfigError(f"{option} {text}: {key} is given twice; give it once")
        result.append((key, value))
    return result


def one_of(option: str, value: str, accepted: tuple[str, ...]) -> str:
    """Return `value`; ConfigError unless it is one of those accepted."""
    if value not in accepted:
        raise ConfigError(f"{option} {value}: not one of {', '.join(accepted)}")
    return value


def read(option: str, given: list[tuple[str, str]], members: tuple[Member, ...]) -> dict[str, Any]:
    """Return the values by the names that they are stored as; ConfigError."""
    known = {name: (field, reader) for name, field, reader in members}
    fields: dict[str, Any] = {}
    for key, text in given:
        if key not in known:
            raise ConfigError(
                f"{option} {key or 'an empty member'}: not understood here; "
                f"accepted are {', '.join(known)}{comma_hint(text)}"
            )
        field, reader = known[key]
        value = reader(f"{option} {key}", text)
        if field:
            fields[field] = value
    return fields


def comma_hint(value: str) -> str:
    """Return what may help who has written a member without a value: it may be half a path."""
    return "" if value else " (a comma within a value is written twice)"


def name(option: str, text: str) -> str:
    """Read an id."""
    if not 1 <= len(text) <= _ID_MAX:
        raise ConfigError(f"{option}: {len(text)} characters, an id has 1 to {_ID_MAX}")
    return text


def file_name(option: str, text: str) -> str:
    """Read the name of a file."""
    if not text or "\0" in text:
        raise ConfigError(f"{option}: not the name of a file{comma_hint(text)}")
    return text


def switch(option: str, text: str) -> bool:
    """Read `on` or `off`, or another word for it."""
    return one_of(option, text, _SWITCH) in TRUE


def is_number(text: str, least: int, most: int) -> bool:
    """Say whether that is a number of the range, in less than 20 digits."""
    return text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most


def number(least: int, most: int) -> Callable[[str, str], int]:
    """Return a reader of numbers of that range."""

    def reader(option: str, text: str) -> int:
        if not is_number(text, least, most):
            raise ConfigError(f"{option} {text}: not a number from {least} to {most}")
        return int(text)

    return reader


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Read numbers and ranges, as `0-3:8`, in their order."""
    found: list[int] = []
    one = number(0, _NUMBERS_MAX - 1)
    for piece in text.split(":"):
        first, dash, last = piece.partition("-")
        low = one(option, first)
        high = one(option, last) if dash else low
        if low > high:
            raise ConfigError(
                f"{option} {text}: {piece} ends before it begins; give {last}-{first}"
            )
        found += range(low, high + 1)
    return tuple(found)


def queue_size(least: int, most: int) -> Callable[[str, str], int]:
    """Return a reader of powers of two of that range."""

    def reader(option: str, text: str) -> int:
        size = number(least, most)(option, text)
        if size & (size - 1):
            raise ConfigError(f"{option} {text}: not a power of two; give one such as 256")
        return size

    return reader


def only(*words: str) -> Callable[[str, str], None]:
    """Return a reader of members that may say nothing else."""

    def reader(option: str, text: str) -> None:
        one_of(option, text, words)

    return reader
