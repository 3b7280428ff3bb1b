"""Tests of harness/judge/."""
