"""What the driver of a NIC has set up, in named fields: struct pv_net_state of native/net/net.h."""

from __future__ import annotations

from ...native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...state import Fields

_MAC_BYTES = 6
_VLANS = 4096
_OFFLOADS_MAX = (1 << 32) - 1


def save(handle: Any) -> dict[str, object]:
    """Return the fields of a struct pv_net, which is drained or stopped."""
    state = ffi.new("struct pv_net_state *")
    lib.pv_net_save(handle, state)
    mode = state.mode
    return {
        "pairs": state.pairs,
        "mac": bytes(mode.mac).hex(),
        "promiscuous": mode.promiscuous,
        "all_multicast": mode.all_multicast,
        "filters_vlans": mode.filters_vlans,
        "offloads": mode.offloads,
        "vlans": [n for n in range(_VLANS) if mode.vlans[n // 64] >> n % 64 & 1],
        "unicast": _save_addresses(mode.unicast),
        "multicast": _save_addresses(mode.multicast),
    }


def _save_addresses(addresses: Any) -> dict[str, object]:
    data = bytes(ffi.buffer(addresses.list))[: addresses.count * _MAC_BYTES]
    return {"all": addresses.all, "list": data.hex()}


def read(fields: Fields, state: Any) -> None:
    """Fill a struct pv_net_state; StateError."""
    mode = state.mode
    state.pairs = fields.integer("pairs", 1, lib.PV_NET_PAIRS)
    mode.mac = fields.data("mac", _MAC_BYTES)
    if mode.mac[0] & 1:
        raise fields.wrong("mac", "is the address of a group")
    mode.promiscuous = fields.flag("promiscuous")
    mode.all_multicast = fields.flag("all_multicast")
    mode.filters_vlans = fields.flag("filters_vlans")
    mode.offloads = fields.integer("offloads", 0, _OFFLOADS_MAX)
    for vlan in fields.integers("vlans", 0, _VLANS - 1, most=_VLANS):
        mode.vlans[vlan // 64] |= 1 << vlan % 64
    _read_addresses(fields.section("unicast"), mode.unicast)
    _read_addresses(fields.section("multicast"), mode.multicast)


def _read_addresses(fields: Fields, addresses: Any) -> None:
    addresses.all = fields.flag("all")
    data = fields.data("list", most=lib.PV_NET_ADDRESSES * _MAC_BYTES)
    if len(data) % _MAC_BYTES:
        raise fields.wrong("list", f"has {len(data)} bytes, no multiple of {_MAC_BYTES}")
    addresses.count = len(data) // _MAC_BYTES
    ffi.buffer(addresses.list)[: len(data)] = data
