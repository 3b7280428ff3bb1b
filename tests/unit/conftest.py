"""Fixtures that several test files use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from pyvirt.native import ffi
from pyvirt.vmm import kvm
from pyvirt.vmm.memory import GuestMemory

from ..effort import tries

# On a busy machine an example may take any time; how long says nothing of what is tested.
settings.register_profile("pyvirt", deadline=None, max_examples=tries(100))
settings.load_profile("pyvirt")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may look into; pytest's own are its user's alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """128 MiB of guest memory; its close is part of every test that uses it."""
    memory = GuestMemory(128 << 20)
    yield memory
    memory.close()


class Registers:
    """A vCPU's registers, as the last SET ioctl left them; plain structures in place of KVM."""

    def __init__(self) -> None:
        self.sregs: Any = ffi.new("struct kvm_sregs *")
        self.regs: Any = ffi.new("struct kvm_regs *")

    def get_sregs(self, _: int, out: Any) -> int:
        out[0] = self.sregs[0]
        return 0

    def set_sregs(self, _: int, given: Any) -> int:
        self.sregs[0] = given[0]
        return 0

    def set_regs(self, _: int, given: Any) -> int:
        self.regs[0] = given[0]
        return 0


@pytest.fixture(scope="module")
def registers() -> Iterator[Registers]:
    """Stand in for the boot vCPU: what is written to its registers stays here."""
    registers = Registers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvm, "GET_SREGS", registers.get_sregs)
        patch.setattr(kvm, "SET_SREGS", registers.set_sregs)
        patch.setattr(kvm, "SET_REGS", registers.set_regs)
        yield registers
