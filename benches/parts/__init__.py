"""The parts, in the order of the report; each is a module of its name, with a PART."""

from __future__ import annotations

import importlib

from ..part import Part

NAMES = (
    "startup",
    "boot",
    "account",
    "cost",
    "block",
    "net",
    "queues",
    "packets",
    "vsock",
    "fs",
    "fresh_vm",
    "fork_vm",
    "restore",
    "incoming",
    "density",
    "hotplug",
    "slots",
    "replug",
    "sandbox_start",
    "ring",
)


def load(name: str) -> Part:
    """Return a part by its name, which is one of NAMES."""
    part: Part = importlib.import_module(f"{__name__}.{name}").PART
    return part
