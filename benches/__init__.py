"""Benchmarks: `make bench` measures, keeps every round as JSON, and writes docs/performance.md."""
