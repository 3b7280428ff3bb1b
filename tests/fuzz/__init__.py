"""Fuzz targets: what drives those of native/fuzz, and those of Python code; docs/fuzzing.md."""
