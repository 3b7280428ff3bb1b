"""Tests of devices/."""
