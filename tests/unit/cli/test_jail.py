"""`pyvirt jail` up to the point where it would change something: its words, and its cgroup."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pyvirt.cli import jail
from pyvirt.cli.jailer import cgroup, outside, spec
from pyvirt.cli.jailer.cgroup import Top

from ..refusal import refusal

RUN = ("--", "-kernel", "/vmlinux")
USER = ("-uid", "1000", "-gid", "1000")


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[spec.Spec]:
    """Return the jails that would have been made."""
    found: list[spec.Spec] = []

    def run(one: spec.Spec) -> int:
        found.append(one)
        return 7

    monkeypatch.setattr(outside, "run", run)
    return found


def test_what_is_asked_for(asked: list[spec.Spec], tmp_path: Path) -> None:
    for name in ("vmlinux", "disk", "more"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o666)
    sources = (f"{tmp_path}/vmlinux,ro", f"{tmp_path}/disk", "-source", f"{tmp_path}/more,copy,ro")
    limits = ("-cgroup", "memory.limit_in_bytes=1G", "pids.max=9", "-numa", "0")
    words = ("-name", "a", "-base", str(tmp_path), *USER, "-source", *sources, *limits)
    assert jail.main([*words, "-netns", "blue", "-capability", "cap_net_raw,KILL", *RUN]) == 7
    (one,) = asked
    assert [(s.name, s.readonly, s.copy) for s in one.sources] == [
        ("vmlinux", True, False),
        ("disk", False, False),
        ("more", True, True),
    ]
    assert one.limits == {"memory.max": "1G", "pids.max": "9", "cpuset.mems": "0"}
    assert (one.uid, one.gid, one.base) == (1000, 1000, str(tmp_path))
    assert one.netns == "/run/netns/blue"
    assert one.capabilities == {13, 5}
    assert one.words == ("run", "-accel", "kvm", "-kernel", "/vmlinux")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "-kernel", "k"], ("run", "-accel", "kvm", "-kernel", "k")),
        (["--kernel=k", "-accel=kvm"], ("run", "--kernel=k", "-accel=kvm")),
        (["-incoming", "file:/run/s"], ("run", "-accel", "kvm", "-incoming", "file:/run/s")),
    ],
)
def test_what_runs_in_it(
    asked: list[spec.Spec], words: list[str], expected: tuple[str, ...]
) -> None:
    jail.main(["-name", "a", *USER, "-exec-file", "/usr/bin/stratovirt", "--", *words])
    assert asked[0].words == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "jail: the following arguments are required: --name"),
        (("-name", "../x", *USER, *RUN), "jail: -name ../x: give 1 to 64 letters"),
        (("-name", "", *USER, *RUN), "jail: -name : give 1 to 64 letters"),
        (("-name", "a", *USER), "jail: give -- -kernel FILE"),
        (("-name", "a", *USER, "--", "-smp", "2"), "jail: give -- -kernel FILE"),
        (("-name", "a", *USER, "--", "fork", "x"), "jail: fork: only run is there in a jail"),
        (("-name", "a", *USER, *RUN, "-daemonize"), "jail: -daemonize: not in a jail"),
        (("-name", "a", *USER, *RUN, "--share=/"), "jail: -share: not in a jail"),
        (("-name", "a", *USER, *RUN, "-serial", "pty"), "jail: pty: nobody finds a terminal"),
        (("-name", "a", *USER, *RUN, "-chardev", "pty,id=c"), "jail: pty: nobody finds"),
        (("-name", "a", *RUN), "jail: -uid: root has to say whose rights"),
        (("-name", "a", "-uid", "1", *RUN), "jail: -gid: root has to say whose rights"),
        (("-name", "a", "-uid", "70000", *RUN), "jail: -uid 70000: give a number from 0 to 65535"),
        (("-name", "a", "-uid", "x", *RUN), "jail: -uid x: give a number from 0 to 65535"),
        (("-name", "a", *USER, "-source", "/nowhere", *RUN), "jail: -source /nowhere: No such"),
        (("-name", "a", *USER, "-source", "/", *RUN), "jail: -source /: all of the host"),
        (("-name", "a", *USER, "-source", "/etc,rx", *RUN), "jail: -source /etc,rx: rx is neither"),
        (("-name", "a", *USER, "-source", "/etc,", *RUN), "jail: -source /etc,: an empty word is"),
        (("-name", "a", *USER, "-source", "/etc,copy", *RUN), "jail: -source /etc,copy: only a"),
        (("-name", "a", *USER, "-source", "/dev/null", *RUN), "jail: -source /dev/null: neither"),
        (("-name", "a", *USER, "-source", "/etc", *RUN), "jail: -source /etc: user 1000 and group"),
        (("-name", "a", *USER, "-exec-file", "/bin/sh", *RUN), "jail: -exec-file /bin/sh: only"),
        (("-name", "a", *USER, "-capability", "CAP_X", *RUN), "jail: -capability CAP_X: there is"),
        (
            ("-name", "a", *USER, "-cgroup", "memory.max", *RUN),
            "jail: -cgroup memory.max: give KEY",
        ),
        (("-name", "a", *USER, "-cgroup", "a=1", *RUN), "jail: -cgroup a=1: give KEY=VALUE, with"),
        (
            ("-name", "a", *USER, "-cgroup", "pids.max=1", "pids.max=2", *RUN),
            "jail: -cgroup pids.max=2: pids.max is given twice",
        ),
        (
            ("-name", "a", *USER, "-numa", "1", "-cgroup", "cpuset.mems=2", *RUN),
            "jail: -cgroup cpuset.mems=1: cpuset.mems is given twice",
        ),
    ],
)
def test_bad_input(asked: list[spec.Spec], words: tuple[str, ...], message: str) -> None:
    assert refusal(lambda: jail.main(list(words))).startswith(message)
    assert not asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-uid", "0"), "jail: -uid 0: to run as another takes root"),
        (("-netns", "a"), "jail: -netns a: to enter one takes root"),
        (("-capability", "KILL"), "jail: -capability KILL: to keep some takes root"),
    ],
)
def test_what_takes_root(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, asked: list[spec.Spec]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert refusal(lambda: jail.main(["-name", "a", *words, *RUN])).startswith(message)


def test_a_network_that_is_not_there(tmp_path: Path) -> None:
    words = ["-name", "a", "-base", str(tmp_path), *USER, "-netns", "/nowhere", *RUN]
    assert "jail: -netns /nowhere: No such file" in refusal(lambda: jail.main(words))
    assert os.listdir(tmp_path) == []


def test_a_base_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["-name", "a", "-base", f"{tmp_path}/file/x", "-clean-resource"]
    assert "Not a directory; give -base" in refusal(lambda: jail.main(words))


@pytest.mark.parametrize(("mode", "owner"), [(0o777, 0), (0o730, 0), (0o700, 1000)])
def test_a_base_where_others_may_write(mode: int, owner: int, tmp_path: Path) -> None:
    os.chown(tmp_path, owner, -1)
    tmp_path.chmod(mode)
    words = ["-name", "a", "-base", str(tmp_path), "-clean-resource"]
    assert "others may write there; give -base" in refusal(lambda: jail.main(words))
    assert os.listdir(tmp_path) == []


def test_capabilities_have_the_kernels_numbers() -> None:
    text = Path("/usr/include/linux/capability.h").read_text(encoding="ascii")
    found = dict(re.findall(r"#define CAP_(\w+)\s+(\d+)\n", text))
    known = {name: str(number) for number, name in enumerate(jail.CAPABILITIES)}
    assert known == {name: found[name] for name in found if name != "LAST_CAP"}


@pytest.mark.parametrize(
    ("mode", "owner", "group", "readonly", "allowed"),
    [
        (0o600, 1000, 0, False, True),
        (0o400, 1000, 0, False, False),
        (0o400, 1000, 0, True, True),
        (0o060, 0, 1000, False, True),
        (0o606, 0, 1000, False, False),
        (0o006, 0, 0, False, True),
        (0o660, 0, 0, True, False),
    ],
)
def test_who_may_open_a_source(
    mode: int, owner: int, group: int, readonly: bool, allowed: bool, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.touch()
    os.chown(path, owner, group)
    path.chmod(mode)
    one = spec.Source(str(path), "image", readonly, copy=False)
    if allowed:
        spec.check_reach(one, 1000, 1000)
    else:
        assert "user 1000 and group 1000" in refusal(lambda: spec.check_reach(one, 1000, 1000))


def host(tmp_path: Path, own: str, mounted: str = "/") -> tuple[str, str]:
    """Return a host's files that say where its cgroups are, and this process's among them."""
    mounts, group = tmp_path / "mountinfo", tmp_path / "cgroup"
    mounts.write_text(
        "22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n"
        f"30 22 0:26 {mounted} {tmp_path}/fs rw shared:4 - cgroup2 cgroup2 rw\n"
    )
    group.write_text(f"4:memory:/old\n0::{own}\n")
    return str(mounts), str(group)


def test_the_highest_cgroup_that_may_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = tmp_path / "fs"
    (fs / "user/mine/session").mkdir(parents=True)
    for path in (fs, fs / "user", fs / "user/mine"):
        (path / "cgroup.controllers").write_text(f"cpu {path.name}\n")
    files = host(tmp_path, "/user/mine/session")
    assert cgroup.find(*files) == Top(str(fs), ("cpu", "fs"))
    delegated = str(fs / "user/mine")
    monkeypatch.setattr(os, "access", lambda path, _: path == delegated)
    assert cgroup.find(*files) == Top(delegated, ("cpu", "mine"))


def test_a_container_sees_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "fs/inner").mkdir(parents=True)
    top = cgroup.find(*host(tmp_path, "/docker/1/inner", "/docker/1"))
    assert top == Top(str(tmp_path / "fs"), ())


def test_a_host_without_version_2(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert cgroup.find(str(empty), str(empty)) is None


@pytest.mark.parametrize(
    ("top", "there"),
    [(None, "none"), (Top("/x", ()), "none"), (Top("/x", ("cpu", "io")), "cpu, io")],
)
def test_a_controller_that_the_host_does_not_offer(top: Top | None, there: str) -> None:
    message = refusal(lambda: cgroup.planned("a", {"memory.max": "1G"}, top))
    assert "-cgroup memory.max: this host offers no controller memory of cgroup v2" in message
    assert f"(there is {there})" in message


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In folders that stand for the kernel's: files of a real cgroup are there by themselves."""
    written: list[tuple[str, str, str]] = []

    def write(path: str, name: str, text: str) -> None:
        written.append((os.path.relpath(path, tmp_path), name, text))

    monkeypatch.setattr(cgroup, "_write", write)
    top = Top(str(tmp_path), ("memory", "pids"))
    group = cgroup.planned("a", {"memory.max": "1G", "pids.max": "9"}, top)
    cgroup.make(group)
    cgroup.limit(group)
    cgroup.add(group, 5)
    assert written == [
        (".", "cgroup.subtree_control", "+memory +pids"),
        ("pyvirt", "cgroup.subtree_control", "+memory +pids"),
        ("pyvirt/a", "memory.max", "1G"),
        ("pyvirt/a", "pids.max", "9"),
        ("pyvirt/a", "cgroup.procs", "5"),
    ]
    cgroup.remove(group.path)
    assert os.listdir(tmp_path) == []
    cgroup.remove(group.path)  # which is gone


def test_a_cgroup_that_another_jail_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays as it is; one that nobody is in was left behind, and is made anew."""
    monkeypatch.setattr(cgroup, "_write", lambda *_: None)
    group = cgroup.planned("a", {"pids.max": "9"}, Top(str(tmp_path), ("pids",)))
    cgroup.make(group)
    cgroup.make(group)
    process = Path(group.path, "process")
    process.touch()
    message = refusal(lambda: cgroup.make(group))
    assert f"{group.path}: File exists; a jail of another -base has it" in message
    monkeypatch.setattr(cgroup, "find", lambda: Top(str(tmp_path), ("pids",)))
    words = ("-name", "a", "-base", str(tmp_path / "other"), "-cgroup", "pids.max=9", *USER, *RUN)
    assert refusal(lambda: jail.main([*words])) == message
    assert process.exists()
    assert os.listdir(tmp_path / "other") == []


def test_a_cgroup_that_cannot_be_made(tmp_path: Path) -> None:
    group = cgroup.planned("a", {"pids.max": "9"}, Top(str(tmp_path), ("pids",)))
    assert "jail: -cgroup: " in refusal(lambda: cgroup.make(group))
