"""Networks of the host that guests are put into: taps, bridges, addresses, a way out.

What is made here carries a mark in its alias (`ip link` shows it), and only what carries the
mark is removed. The monitor itself needs none of this: it opens a tap that is there.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ...devices import mac, tap
from ...errors import BackendError, ConfigError
from ..guest import tool
from ..lab import module

MARK = "made by pyvirt"
MARK_NAT = f"{MARK}, with nat"
Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_IFA_F_NODAD = 0x02  # linux/if_addr.h
_NFT_TIMEOUT_S = 30.0
_FORWARDING = {
    4: Path("/proc/sys/net/ipv4/ip_forward"),
    6: Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}
_NAT_MODULES = ("nf_tables", "nft_chain_nat", "nft_masq")
_FAMILIES = {4: "ip", 6: "ip6"}


def check_name(option: str, text: str) -> str:
    """Return the name of an interface; ConfigError that names `option`."""
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"{option} {text}: not a name for an interface; give 1 to {tap.NAME_BYTES} letters, "
            "digits, dots and dashes, as tap0"
        )
    return text


def parse_address(option: str, text: str) -> Address:
    """Return an address with the length of its network's prefix; ConfigError."""
    address, slash, _ = text.partition("/")
    try:
        if slash and address:
            return ipaddress.ip_interface(text)
    except ValueError:
        pass
    raise ConfigError(
        f"{option} {text}: not an address with a prefix length; give one as 10.0.0.1/24"
    )


def up(
    name: str,
    *,
    bridge: str = "",
    address: Address | None = None,
    nat: bool = False,
    owner: int | None = None,
    multi_queue: bool = False,
    mtu: int = 0,
) -> None:
    """Make the tap `name`, and what else is asked for, unless it is there already.

    The tap is put into `bridge`, which gets `address`; without a bridge the tap gets it. `nat`
    lets guests of that network reach others through this host, under its addresses: a table of
    nftables, and the host forwards packets from then on. `owner` is the id of a user who may open
    the tap without privileges. `mtu` is in bytes, 0: as it is.

    Raises ConfigError and BackendError; what this call has made is removed again then.
    """
    with _Host() as host, ExitStack() as undo:
        host.make_tap(name, undo, owner=owner, multi_queue=multi_queue)
        link = name
        if bridge:
            host.make_bridge(bridge, undo)
            host.join(name, bridge, undo)
            link = bridge
        if mtu:
            host.change(name, undo, mtu=mtu)
        if address is not None:
            host.add_address(link, address, undo)
            if nat:
                host.masquerade(link, address, undo)
                _forward(address.version, undo)
        for one in dict.fromkeys((link, name)):
            host.raise_link(one, undo)
        undo.pop_all()


def down(name: str) -> None:
    """Remove the tap `name`, and its bridge when that was made by `up` and has no other port.

    Raises ConfigError where there is none or it was not made by `up`, BackendError.
    """
    with _Host() as host:
        link = host.find(name)
        if link is None:
            raise ConfigError(f"net down {name}: there is no such tap; ip link lists what there is")
        if not _is_ours(link):
            raise ConfigError(
                f"net down {name}: not made by pyvirt net up; remove it by: ip link del {name}"
            )
        bridge = host.name_of(link.get("master"))
        host.remove_all_of(link)
        if bridge and not host.ports(bridge):
            link = host.find(bridge)
            if link is not None and _is_ours(link):
                host.remove_all_of(link)


class _Host:
    """The network namespace of this process, asked and changed by rtnetlink."""

    def __init__(self) -> None:
        self._route = IPRoute()

    def __enter__(self) -> _Host:
        return self

    def __exit__(self, *_: object) -> None:
        self._route.close()

    def find(self, name: str) -> Any:
        """Return the link's message, None where there is none."""
        with _errors(name):
            found = self._route.link_lookup(ifname=name)
            return next(iter(self._route.get_links(found[0])), None) if found else None

    def _need(self, name: str) -> Any:
        link = self.find(name)
        if link is None:
            raise BackendError(f"net {name}: removed by another meanwhile; run it again")
        return link

    def name_of(self, index: int | None) -> str:
        """Return the name of the link of that index, "" for None."""
        if index is None:
            return ""
        with _errors(str(index)):
            return str(next(iter(self._route.get_links(index))).get("ifname"))

    def ports(self, bridge: str) -> list[Any]:
        """Return the links that are in the bridge."""
        with _errors(bridge):
            index = self._need(bridge)["index"]
            return [link for link in self._route.get_links() if link.get("master") == index]

    def set(self, name: str, **words: Any) -> None:
        """Change what `words` say, as `ip link set` does."""
        with _errors(name):
            self._route.link("set", index=self._need(name)["index"], **words)

    def remove(self, name: str) -> None:
        """Delete the link, if it is there."""
        link = self.find(name)
        if link is not None:
            with _errors(name):
                self._route.link("del", index=link["index"])

    def remove_all_of(self, link: Any) -> None:
        """Delete a link of ours and its masquerading."""
        name = str(link.get("ifname"))
        self.remove(name)
        if link.get("ifalias") == MARK_NAT:
            _forget_masquerade(name)

    def make_tap(self, name: str, undo: ExitStack, *, owner: int | None, multi_queue: bool) -> None:
        link = self.find(name)
        if link is not None:
            _check_tap(name, link, multi_queue=multi_queue)
            return
        fd = tap.open_device(f"net up {name}")
        try:
            flags = tap.IFF_TAP | tap.IFF_NO_PI | (tap.IFF_MULTI_QUEUE if multi_queue else 0)
            failure = tap.set_interface(fd, name, flags)
            if failure:
                raise _refused(name, failure)
            tap.keep(fd, owner)
        finally:
            os.close(fd)
        undo.callback(self.remove, name)
        self.set(name, ifalias=MARK)

    def make_bridge(self, name: str, undo: ExitStack) -> None:
        link = self.find(name)
        if link is not None:
            if _kind(link) != "bridge":
                raise ConfigError(f"net up -bridge {name}: not a bridge; give another name")
            return
        # An address of its own: a bridge without one takes another whenever a port comes or goes.
        address = mac.show(mac.made("bridge", name))
        with _errors(name):
            self._route.link("add", ifname=name, kind="bridge", address=address)
        undo.callback(self.remove, name)
        self.set(name, ifalias=MARK)

    def join(self, name: str, bridge: str, undo: ExitStack) -> None:
        index = self._need(bridge)["index"]
        master = self._need(name).get("master")
        if master == index:
            return
        if master is not None:
            raise ConfigError(
                f"net up {name} -bridge {bridge}: it is in {self.name_of(master)} already; "
                f"run first: pyvirt net down {name}"
            )
        self.set(name, master=index)
        undo.callback(self.set, name, master=0)

    def change(self, name: str, undo: ExitStack, *, mtu: int) -> None:
        before = self._need(name).get("mtu")
        if before != mtu:
            self.set(name, mtu=mtu)
            undo.callback(self.set, name, mtu=before)

    def add_address(self, name: str, address: Address, undo: ExitStack) -> None:
        index = self._need(name)["index"]
        words = {"index": index, "address": str(address.ip), "prefixlen": address.network.prefixlen}
        if address.version == 6:
            # It is used at once: who would object comes later, when a guest brings the link up.
            words["flags"] = _IFA_F_NODAD
        with _errors(name):
            for held in self._route.get_addr(index=index):
                if (held.get("address"), held["prefixlen"]) == (
                    words["address"],
                    words["prefixlen"],
                ):
                    return
            self._route.addr("add", **words)
        undo.callback(self._route.addr, "del", **words)

    def raise_link(self, name: str, undo: ExitStack) -> None:
        """Set the link up."""
        if not self._need(name)["flags"] & 1:  # IFF_UP
            self.set(name, state="up")
            undo.callback(self.set, name, state="down")

    def masquerade(self, name: str, address: Address, undo: ExitStack) -> None:
        """Put this host's address on what leaves the network that `address` is in."""
        link = self._need(name)
        if not _is_ours(link):
            raise ConfigError(
                f"net up -nat: {name} was not made by pyvirt net up; masquerade there by hand"
            )
        before = link.get("ifalias")
        self.set(name, ifalias=MARK_NAT)
        undo.callback(self.set, name, ifalias=before)
        _masquerade(name, address)
        if before != MARK_NAT:
            undo.callback(_forget_masquerade, name)


def _is_ours(link: Any) -> bool:
    return link.get("ifalias") in {MARK, MARK_NAT}


def _kind(link: Any) -> str:
    return str((link.get("linkinfo") or {}).get("kind"))


def _check_tap(name: str, link: Any, *, multi_queue: bool) -> None:
    data = (link.get("linkinfo") or {}).get("data") or {}
    if _kind(link) != "tun" or data.get("tun_type") != tap.IFF_TAP:
        raise ConfigError(f"net up {name}: there is such an interface, and it is no tap")
    if bool(data.get("tun_multi_queue")) != multi_queue:
        has, mend = ("one queue", "without") if multi_queue else ("many queues", "with")
        raise ConfigError(
            f"net up {name}: the tap has {has}; run first: pyvirt net down {name}, "
            f"or run it {mend} -multi-queue"
        )


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise _refused(name, error.code) from None


def _refused(name: str, number: int) -> BackendError:
    mend = ""
    if number in {1, 13}:  # EPERM, EACCES
        mend = "; it takes CAP_NET_ADMIN: run it as root, as by sudo"
    return BackendError(f"net {name}: {os.strerror(number)}{mend}")


def _table(version: int, link: str) -> str:
    return f"table {_FAMILIES[version]} pyvirt-{link}"


def _nft(script: str) -> None:
    tool.run(["nft", "-f", "-"], timeout=_NFT_TIMEOUT_S, feed=script.encode())


def _masquerade(link: str, address: Address) -> None:
    """Make the table anew, in one step."""
    if "PYVIRT_LAB" in os.environ:
        # The lab's kernel cannot ask for them itself (docs/lab.md).
        for name in _NAT_MODULES:
            module.load(name)
    table = _table(address.version, link)
    family = _FAMILIES[address.version]
    network = address.network
    _nft(
        f"{table}\ndelete {table}\n{table} {{\n chain postrouting {{\n"
        "  type nat hook postrouting priority srcnat;\n"
        f"  {family} saddr {network} {family} daddr != {network} masquerade\n }}\n}}\n"
    )


def _forget_masquerade(link: str) -> None:
    for version in _FAMILIES:
        table = _table(version, link)
        # Named first: what is not there cannot be deleted.
        _nft(f"{table}\ndelete {table}\n")


def _forward(version: int, undo: ExitStack) -> None:
    """Let the host forward packets; nobody turns it off again, for others may count on it."""
    switch = _FORWARDING[version]
    try:
        before = switch.read_text()
        if before.strip() == "1":
            return
        switch.write_text("1\n")
    except OSError as error:
        raise BackendError(
            f"net up -nat: {switch}: {error.strerror}; it takes a host that may forward packets"
        ) from None
    undo.callback(_restore(switch, before))


def _restore(switch: Path, before: str) -> Callable[[], object]:
    return lambda: switch.write_text(before)
