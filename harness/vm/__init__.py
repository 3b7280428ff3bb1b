"""A VM under test: where it runs, its boot, life and end, its console, NICs, plugs and faults."""
