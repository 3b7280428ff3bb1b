"""Tests of vmm/boot/."""
