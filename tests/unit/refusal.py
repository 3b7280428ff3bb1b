"""How the tests look at a refusal: one line for the user, nothing else raised."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from pyvirt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

_NOBODY = 65534


def refusal(call: Callable[[], object]) -> str:
    """Return the message with which `call` refuses its input."""
    with pytest.raises(ConfigError) as info:
        call()
    message = str(info.value)
    assert "\n" not in message
    assert info.value.exit_status == 2
    return message


def attempt(call: Callable[[], T]) -> T | None:
    """Return what `call` does, None when it refuses its input; any other exception is a fault."""
    try:
        return call()
    except ConfigError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be a user whom file permissions bind."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
