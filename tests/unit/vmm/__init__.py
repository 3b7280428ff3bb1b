"""Tests of vmm/."""
