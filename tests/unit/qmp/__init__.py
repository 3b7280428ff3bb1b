"""Tests of qmp/."""
