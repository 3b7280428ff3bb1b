"""Tests of the monitor with tiny guests, on any /dev/kvm: an emulating one, or a real one."""
