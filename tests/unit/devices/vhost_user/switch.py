"""A back end for NICs: a host on the wire, which answers ARP and pings, and echoes all else."""

from __future__ import annotations

import os
import struct

from pyvirt.devices.vhost_user import protocol as p

from .back_end import FEATURES, BackEnd

RX, TX = 0, 1
HEADER = 12  # struct virtio_net_hdr_v1
MAC = bytes.fromhex("525400aabbcc")
IP = bytes((10, 99, 0, 1))
_ARP, _IPV4, _ICMP = 0x0806, 0x0800, 1


def checksum(data: bytes) -> int:
    """Return the Internet's checksum (RFC 1071)."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def answer(frame: bytes) -> bytes | None:
    """Return what the host says to a frame; None for nothing."""
    kind = int.from_bytes(frame[12:14], "big")
    head = frame[6:12] + MAC + frame[12:14]
    if kind == _ARP and frame[20:22] == b"\0\1" and frame[38:42] == IP:
        return head + frame[14:20] + b"\0\2" + MAC + IP + frame[22:32]
    if kind == _IPV4 and frame[30:34] == IP and frame[23] == _ICMP and frame[34] == 8:
        length = int.from_bytes(frame[16:18], "big")
        echo = b"\0\0\0\0" + frame[38 : 14 + length]
        echo = echo[:2] + checksum(echo).to_bytes(2, "big") + echo[4:]
        return head + frame[14:26] + frame[30:34] + frame[26:30] + echo
    return None if kind in {_ARP, _IPV4, 0x86DD} else frame


class Switch(BackEnd):
    """What the guest sends is answered through its receive queue."""

    def __init__(self, path: object, **options: object) -> None:
        super().__init__(path, **{"features": FEATURES, **options})  # type: ignore[arg-type]

    def _serve(self, index: int) -> None:
        ring = self._rings[index].ring
        if index == RX or ring is None:
            return  # there is room, and nothing to put there yet
        while True:
            while (chain := ring.pop()) is not None:
                frame = chain.read()[HEADER:]
                self.served.append((index, frame))
                ring.push(chain.head, 0)
                ring.publish()
                reply = answer(frame)
                if reply is not None:
                    self._receive(reply)
            if ring.needs_notify():
                os.eventfd_write(self._rings[index].call, 1)
            if not ring.enable_kicks():
                return

    def _receive(self, frame: bytes) -> None:
        queue = self._rings[RX]
        ring = queue.ring
        chain = ring.pop() if ring is not None else None
        if ring is None or chain is None:
            return  # lost, as frames are
        ring.push(chain.head, chain.write(bytes(HEADER - 2) + b"\1\0" + frame))
        ring.publish()
        if ring.needs_notify():
            os.eventfd_write(queue.call, 1)


PROTOCOL = p.MQ | p.REPLY_ACK
