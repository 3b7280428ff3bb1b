"""The machinery of the benchmarks: no test measures anything."""
