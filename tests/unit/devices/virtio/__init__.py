"""Tests of devices/virtio/."""
