"""Mutants: small bugs that are put into a copy of the code, each to be found by the tests."""
