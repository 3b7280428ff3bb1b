"""Tests of harness/vm/."""
