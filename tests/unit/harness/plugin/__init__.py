"""Tests of harness/plugin/."""
