"""What `pyvirt doctor` says of the means of containment, with each there and not."""

from __future__ import annotations

import errno
import os

import pytest
from pyvirt.cli import doctor
from pyvirt.cli.jailer import calls, cgroup
from pyvirt.cli.jailer.cgroup import Top
from pyvirt.vmm import landlock


@pytest.mark.parametrize(
    ("version", "line"),
    [
        (0, "less  Landlock           not there, so no -sandbox-path; boot a kernel with"),
        (3, "ok    Landlock           version 3: -sandbox-path says"),
    ],
)
def test_landlock(
    version: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(landlock, "version", lambda: version)
    doctor._check_landlock(doctor.Report())
    assert capsys.readouterr().out.startswith(line)


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (0, "ok    user namespaces    pyvirt jail has"),
        (errno.EPERM, "less  user namespaces    Operation not permitted, so no pyvirt jail; see"),
    ],
)
def test_user_namespaces(
    number: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unshare(_: int) -> None:
        if number:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(calls, "unshare", unshare)
    doctor._check_user_namespaces(doctor.Report())
    assert capsys.readouterr().out.startswith(line)


ALL = ("cpu", "cpuset", "memory", "pids")


@pytest.mark.parametrize(
    ("top", "line"),
    [
        (None, "less  cgroup v2          not mounted"),
        (Top("/nowhere", ALL), "less  cgroup v2          /nowhere: not this user's"),
        (Top("/tmp", ("pids",)), "less  cgroup v2          /tmp offers no cpu, cpuset, memory; "),
        (Top("/tmp", ALL), "ok    cgroup v2          pyvirt jail -cgroup can limit cpu, cpuset"),
    ],
)
def test_cgroups(
    top: Top | None,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cgroup, "find", lambda: top)
    doctor._check_cgroups(doctor.Report())
    assert capsys.readouterr().out.startswith(line)
