"""The nested lab: a machine emulated in software whose stock kernel has a real KVM.

`run` boots it and runs one command in it; the other modules are its parts.
"""

from .client import LabHangsError
from .session import run

__all__ = ["LabHangsError", "run"]
