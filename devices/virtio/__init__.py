"""Virtio devices: the shape all of them have, the virtio-mmio transport, one file per device."""
