"""`pyvirt net`: makes and removes the host's side of guests' networks."""

from __future__ import annotations

import pwd

from ..errors import BackendError, ConfigError
from .parser import Parser

_MTU_MIN, _MTU_MAX = 68, 65521  # of a tap


def main(argv: list[str]) -> int:
    """Run `pyvirt net ARGV`; return its exit status. Raises PyvirtError."""
    arguments = parser().parse_args(argv)
    try:
        from ..harness.vm import network
    except ModuleNotFoundError as error:
        raise BackendError(f"net: {error.name} is not installed; run: make setup") from None
    name = network.check_name(f"net {arguments.command}", arguments.name)
    if arguments.command == "down":
        network.down(name)
        return 0
    address = arguments.address and network.parse_address("net up -address", arguments.address)
    if arguments.nat and not address:
        raise ConfigError("net up -nat: takes an -address as well, the gateway of the guests")
    network.up(
        name,
        bridge=arguments.bridge and network.check_name("net up -bridge", arguments.bridge),
        address=address or None,
        nat=arguments.nat,
        owner=_user(arguments.user),
        multi_queue=arguments.multi_queue,
        mtu=_mtu(arguments.mtu),
    )
    return 0


def parser() -> Parser:
    """Return the reader of the command's words."""
    found = Parser(
        prog="pyvirt net",
        description="Make and remove the host's side of guests' networks; needs CAP_NET_ADMIN.",
    )
    commands = found.add_subparsers(dest="command", required=True, metavar="up|down")
    up = commands.add_parser(
        "up",
        help="make a tap, and a bridge around it",
        description="Make a tap, and what else is asked for, unless it is there already. What "
        "cannot be made in full is not made at all.",
    )
    up.add_argument("name", metavar="NAME", help="the tap, as pyvirt run -net NAME takes it")
    up.add_argument(
        "--bridge", metavar="BR", default="", help="put the tap into this bridge, made if need be"
    )
    up.add_argument(
        "--address",
        metavar="CIDR",
        default="",
        help="address of this host on the bridge, or on the tap where there is none: 10.0.0.1/24",
    )
    up.add_argument(
        "--nat", action="store_true", help="let guests reach what this host reaches, by its address"
    )
    up.add_argument("--user", metavar="USER", default="", help="who may open the tap besides root")
    up.add_argument(
        "--multi-queue", action="store_true", help="make a tap with queues for several vCPUs"
    )
    up.add_argument("--mtu", metavar="N", default="", help="largest packet in bytes")
    down = commands.add_parser(
        "down",
        help="remove a tap, and its bridge with the last one",
        description="Remove a tap that `net up` made, and its bridge with the last tap in it.",
    )
    down.add_argument("name", metavar="NAME")
    return found


def _user(text: str) -> int | None:
    if not text:
        return None
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise ConfigError(f"net up -user {text}: there is no such user; name one") from None


def _mtu(text: str) -> int:
    if not text:
        return 0
    is_number = text.isascii() and text.isdigit() and len(text) < 6
    if not (is_number and _MTU_MIN <= int(text) <= _MTU_MAX):
        raise ConfigError(f"net up -mtu {text}: not a number from {_MTU_MIN} to {_MTU_MAX}")
    return int(text)
