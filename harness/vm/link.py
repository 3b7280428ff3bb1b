"""Links between the VMs of a test: nets named "link:NAME", without taps and privileges."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from . import fork_server
from .fork_server import Switch

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "link:"


def names(nets: Iterable[str]) -> list[str]:
    """Return the links that nets name."""
    return [net.partition(",")[0].removeprefix(PREFIX) for net in nets if net.startswith(PREFIX)]


class Links:
    """The links of one test; owns their switches until `close`."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._key = secrets.token_hex(4)
        self._numbers: dict[str, int] = {}
        self._switches: dict[tuple[str, str], Switch] = {}

    def path(self, name: str) -> str:
        """Return the socket of a link, where the VMs run."""
        number = self._numbers.setdefault(name, len(self._numbers))
        return f"{fork_server.SOCKETS}/pyvirt-{self._key}-{number}"

    def start(self, nets: Iterable[str], server: str) -> None:
        """Have the links that nets name work beside that server; PyvirtError."""
        for name in names(nets):
            if (server, name) not in self._switches:
                self._switches[server, name] = Switch(server, self.path(name))

    def close(self) -> None:
        """End them."""
        for switch in self._switches.values():
            switch.close()
        self._switches.clear()
