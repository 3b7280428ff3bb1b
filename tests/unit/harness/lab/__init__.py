"""Tests of harness/lab/."""
