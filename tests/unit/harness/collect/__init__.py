"""Tests of harness/collect/."""
