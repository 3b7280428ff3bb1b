"""Tests of harness/guest/."""
