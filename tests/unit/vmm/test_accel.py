"""The choice between this host's KVM and the lab, and the memory of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyvirt.errors import KvmError, PyvirtError
from pyvirt.vmm import accel, kvm

WHY = "exit 17 (internal error)"


class Probe:
    """Stands in for the probe guest; counts how often it runs."""

    def __init__(self, verdict: str | PyvirtError) -> None:
        self.verdict = verdict
        self.runs = 0

    def __call__(self) -> str:
        self.runs += 1
        if isinstance(self.verdict, PyvirtError):
            raise self.verdict
        return self.verdict


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, not made yet; KVM's device is a file that can be opened."""
    monkeypatch.setenv("PYVIRT_CACHE", str(tmp_path / "cache"))
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm, "DEVICE", str(device))
    return tmp_path / "cache"


def use(monkeypatch: pytest.MonkeyPatch, verdict: str | PyvirtError) -> Probe:
    probe = Probe(verdict)
    monkeypatch.setattr(accel, "_probe", probe)
    return probe


@pytest.mark.parametrize(("verdict", "failure"), [("works", ""), (WHY, WHY)])
def test_verdict_is_found_once(
    verdict: str, failure: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = use(monkeypatch, verdict)
    assert [accel.kvm_failure() for _ in range(3)] == [failure] * 3
    assert probe.runs == 1
    (file,) = cache.iterdir()
    assert file.read_text(encoding="utf-8") == verdict


def test_verdict_is_of_this_boot(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boots = cache.with_name("boot_id")
    monkeypatch.setattr(accel, "_BOOT_ID", str(boots))
    probe = use(monkeypatch, "works")
    for runs, boot in ((1, "one\n"), (1, "one\n"), (2, "two\n")):
        boots.write_text(boot, encoding="ascii")
        assert accel.kvm_failure() == ""
        assert probe.runs == runs


@pytest.mark.parametrize("content", [b"", None])
def test_empty_verdict_counts_for_nothing(
    content: bytes | None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = use(monkeypatch, WHY)
    accel.kvm_failure()
    (file,) = cache.iterdir()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert accel.kvm_failure() == WHY
    assert probe.runs == 2


def test_verdict_of_odd_bytes_is_no_fault(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "works")
    accel.kvm_failure()
    (file,) = cache.iterdir()
    file.write_bytes(b"\xff\xfe")
    assert accel.kvm_failure() != ""


@pytest.mark.parametrize("name", ["file", "file/below", "proc"])
def test_cache_that_cannot_be_written_is_no_error(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache.parent / "file").touch()
    folder = "/proc/pyvirt" if name == "proc" else f"{cache.parent}/{name}"
    monkeypatch.setenv("PYVIRT_CACHE", folder)
    probe = use(monkeypatch, "works")
    assert [accel.kvm_failure(), accel.kvm_failure()] == ["", ""]
    assert probe.runs == 2
    assert {path.name for path in cache.parent.iterdir()} == {"file", "kvm"}


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"PYVIRT_CACHE": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "PYVIRT_CACHE": ""}, "/b/pyvirt"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/pyvirt"),
    ],
)
def test_place_of_the_cache(
    environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYVIRT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert os.path.dirname(accel._verdict_file()) == folder


def test_probe_that_cannot_run_is_tried_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = use(monkeypatch, KvmError("KVM_CREATE_VM", 12))
    assert accel.kvm_failure() == accel.kvm_failure() == "KVM_CREATE_VM: Cannot allocate memory"
    assert probe.runs == 2
    assert not cache.exists()


def test_host_without_kvm(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(cache / "no")
    real = kvm.open_device
    monkeypatch.setattr(kvm, "DEVICE", missing)
    monkeypatch.setattr(kvm, "open_device", lambda: real(missing))
    probe = use(monkeypatch, "works")
    assert accel.kvm_failure() == (
        f"{missing}: not there; load kvm_intel or kvm_amd, or use -accel lab"
    )
    assert probe.runs == 0
    assert not cache.exists()
