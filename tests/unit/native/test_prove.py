"""What `make prove` needs of the code: places for its bugs, and one entry for each proof."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyvirt.native import prove

ALL: list[prove.Proof | prove.Contract] = [*prove.proofs(), *prove.contracts()]
NATIVE = prove.PROOFS.parent


def file_of(one: prove.Proof | prove.Contract) -> str:
    return f"{'prove' if isinstance(one, prove.Proof) else 'wp'}_{one.name}.c"


def test_each_proof_has_its_entry_and_each_model() -> None:
    assert {path.name for path in prove.PROOFS.glob("*.c")} == {file_of(one) for one in ALL}
    assert {path.stem for path in prove.PROOFS.glob("*.pml")} == {m.name for m in prove.models()}


@pytest.mark.parametrize("proof", ALL, ids=lambda proof: proof.name)
def test_what_a_proof_changes_is_there_once(
    proof: prove.Proof | prove.Contract, tmp_path: Path
) -> None:
    smaller = proof.smaller if isinstance(proof, prove.Proof) else ()
    for name, there, instead in (*smaller, *proof.seeds):
        copy = tmp_path / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((NATIVE / name).read_text())
        prove.change(tmp_path, (name, there, instead))
        assert instead in copy.read_text()


@pytest.mark.parametrize("proof", ALL, ids=lambda proof: proof.name)
def test_what_is_said_to_be_proved_is_in_the_files_that_a_proof_takes(
    proof: prove.Proof | prove.Contract,
) -> None:
    lines = (prove.PROOFS / file_of(proof)).read_text().split("\n")
    taken = [line.split('"')[1] for line in lines if line.startswith("#include") and ".c" in line]
    text = "".join((NATIVE / name).read_text() for name in taken)
    assert taken
    assert all(f"{function}(" in text for function in proof.functions)


def test_a_bug_without_a_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int a;\nint a;\n")
    with pytest.raises(ValueError, match=r"'int a;' is not once in a\.c"):
        prove.change(tmp_path, ("a.c", "int a;", "int b;"))
