"""Commands of StratoVirt and QEMU that are answered without doing anything.

Tools send them, to see what there is; those of StratoVirt have the answer of its micro VM.
Arguments are not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import QmpError
from ..schema import Arguments, Command, Field, ListOf, Only, Struct, Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..session import Session


class Anything(Struct):
    """Any members."""

    def read(self, value: Any, field: str) -> Arguments:
        """Look at none of them."""
        if not isinstance(value, dict):
            raise self.refuse(value, field or "arguments")
        return Arguments()


def _refuses(text: str, kind: str = "GenericError") -> Callable[[Session, Arguments], object]:
    def refuse(_: Session, __: Arguments) -> object:
        raise QmpError(text, kind)

    return refuse


def _returns(value: object) -> Callable[[Session, Arguments], object]:
    return lambda _session, _given: value


_REFUSED = (
    ("cameradev_add", "cameradev_add not supported for MicroVM", "", "v2"),
    ("cameradev_del", "cameradev_del not supported for MicroVM", "", "v2"),
    ("query-display-image", "query-display-image is not supported", "", "v2"),
    ("query-vnc", "The service of VNC is not supported", "", "v2"),
    ("update_region", "The micro vm is not supported", "", "v2"),
    ("query-sev-capabilities", "SEV is not supported", "", "v2"),
    ("migrate-incoming", "MicroVM does not support migration", "", "pyvirt"),
    ("object-add", "objects are made at the start; give -object", "", "pyvirt"),
    ("object-del", "objects stay to the end of the machine", "", "pyvirt"),
)
_EMPTY: tuple[tuple[str, object, str], ...] = (
    ("query-mem", {}, "v2"),
    ("device-list-properties", [], "v2"),
    ("qom-list", [], "v2"),
    ("qom-list-types", [], "v2"),
    ("query-block-jobs", [], "v2"),
    ("query-command-line-options", [], "v2"),
    ("query-gic-capabilities", [], "v2"),
    ("query-migrate-capabilities", [], "v2"),
    ("query-tpm-models", [], "v2"),
    ("query-tpm-types", [], "v2"),
)


def _set_capabilities(_: Session, __: Arguments) -> object:
    return {}


_CAPABILITY = Struct(
    Field("capability", Text(), "its name"),
    Field("state", Only("there is no migration; give false", False), "whether it is wanted"),
)

COMMANDS = (
    tuple(
        Command(
            name,
            f"Refused: {kind or 'GenericError'}, `{text}`.",
            _refuses(text, kind or "GenericError"),
            Anything(),
            since=since,
        )
        for name, text, kind, since in _REFUSED
    )
    + tuple(
        Command(
            name,
            "Returns nothing of interest, as there is none.",
            _returns(value),
            Anything(),
            since=since,
        )
        for name, value, since in _EMPTY
    )
    + (
        Command(
            "migrate-set-capabilities",
            "Turns capabilities of migration off, which all of them are.",
            _set_capabilities,
            Struct(Field("capabilities", ListOf(_CAPABILITY), "which")),
            since="pyvirt",
            example=('{"capabilities": [{"capability": "events", "state": false}]}', "{}"),
        ),
    )
)
