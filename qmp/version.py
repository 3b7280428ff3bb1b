"""What the server says it is."""

from __future__ import annotations

from .. import __version__

# As StratoVirt's: clients look for `qemu`, and some for a major number from 5 up.
VERSION = {"qemu": {"micro": 1, "minor": 0, "major": 5}, "package": f"pyvirt-{__version__}"}
GREETING = {"QMP": {"version": VERSION, "capabilities": []}}
