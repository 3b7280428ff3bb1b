"""The `pyvirt` command: one file per sub-command, each importing what it needs when it runs."""
