"""Tests of harness/agent/."""
