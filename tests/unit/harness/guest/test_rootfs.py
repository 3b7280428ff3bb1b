"""Root file systems: what is asked of apt and mmdebstrap, and the image made of a tree.

apt and mmdebstrap are scripts of the test's; mke2fs, debugfs and e2fsck are the real ones.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from pyvirt.cli import guest
from pyvirt.errors import BackendError, ConfigError, PyvirtError
from pyvirt.harness.guest import rootboot, rootfs
from pyvirt.harness.guest.kernel import Kernel

from .test_cpio import read

MIB = 1 << 20
TARGETS = """\
http://mirror/debian bookworm main
http://mirror/debian bookworm-updates main
http://mirror/security bookworm-security main
http://mirror/debian trixie main
http://other nodistro main
"""
RESOLVED = """\
Inst base-files (12.4 Debian:12.15/oldstable [amd64])
Inst libc6 (2.36-9 Debian:12.15/oldstable, Debian-Security:12/oldstable-security [amd64])
Conf libc6 (2.36-9 Debian:12.15/oldstable [amd64])
"""
RECORD = "Package: any\\nVersion: 1\\nArchitecture: amd64\\nSize: 1\\n"


class Tools:
    """Stand-ins for the tools on PATH, and a log of how they were called, a word a line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()

    def add(self, name: str, body: str) -> None:
        path = self.folder / name
        words = f'{{ echo "= {name}"; printf "%s\\n" "$@"; }} >>{self.log}'
        path.write_text(f"#!/bin/sh\n{words}\n{body}\n")
        path.chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        calls = [call.splitlines() for call in self.log.read_text().split("= ")[1:]]
        return [call[1:] for call in calls if call[0] == name]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("PYVIRT_CACHE", str(place))
    return place


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return an archive of a small tree, as mmdebstrap would make it."""
    root = tmp_path / "tree"
    for name in ("dev", "etc", "sbin"):
        (root / name).mkdir(parents=True)
    (root / "sbin/init").write_text("#!/bin/sh\n")
    (root / "sbin/init").chmod(0o4755)
    (root / "etc/hostname").write_text("guest\n")
    (root / "etc/link").symlink_to("hostname")
    archive = tmp_path / "tree.tar.zst"
    command = ["tar", "-C", str(root), "--owner=0", "--group=5", "--mtime=@1000", "--zstd"]
    subprocess.run([*command, "-cf", str(archive), "."], timeout=30, check=True)
    return archive


@pytest.fixture
def tools(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    path = tmp_path / "path"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path), prepend=os.pathsep)
    tools = Tools(path)
    (path / "targets").write_text(TARGETS)
    (path / "resolved").write_text(RESOLVED)
    tools.add("apt-cache", f'printf "{RECORD}"')
    tools.add("apt-config", "echo 'Acquire::http::Proxy \"http://p:1\";'; echo 'Dir \"/\";'")
    tools.add(
        "apt-get",
        f"case $1 in indextargets) cat {path}/targets ;; *) cat {path}/resolved ;; esac",
    )
    # The archive's place is the only argument of its kind.
    tools.add(
        "mmdebstrap", f'for word; do case $word in *.tar.zst) cp {tree} "$word" ;; esac; done'
    )
    return tools


def debugfs(image: Path, command: str) -> str:
    found = subprocess.run(
        ["/usr/sbin/debugfs", "-R", command, str(image)],
        capture_output=True,
        timeout=30,
        check=True,
    )
    return found.stdout.decode()


def test_image_is_a_clean_file_system_of_the_tree(tools: Tools, folder: Path) -> None:
    image = rootfs.build(size=64 * MIB)
    assert image.parent == folder
    assert image.stat().st_size == 64 * MIB
    assert image.stat().st_blocks * 512 < 32 * MIB, "what is empty takes no room"
    assert stat.S_IMODE(image.stat().st_mode) == 0o444
    command = ["/usr/sbin/e2fsck", "-fn", str(image)]
    subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert debugfs(image, "cat /etc/hostname") == "guest\n"
    init = debugfs(image, "stat /sbin/init")
    assert re.search(r"Mode: +04755 ", init)
    assert re.search(r"User: +0 +Group: +5 ", init)
    assert 'dest: "hostname"' in debugfs(image, "stat /etc/link")


def test_nodes_that_a_kernel_opens_before_init(tools: Tools) -> None:
    image = rootfs.build(size=64 * MIB)
    for name, mode, device in (("console", "0600", "05:01"), ("null", "0666", "01:03")):
        node = debugfs(image, f"stat /dev/{name}")
        assert "Type: character special" in node
        assert re.search(rf"Mode: +{mode} ", node)
        assert f"(New-style) {device} " in node or f"Device major/minor number: {device} " in node


def test_nothing_is_left_for_the_guests_kernel_to_initialize(tools: Tools) -> None:
    image = rootfs.build(size=256 * MIB)
    header = subprocess.run(
        ["/usr/sbin/dumpe2fs", str(image)], capture_output=True, timeout=30, check=True
    ).stdout.decode()
    flags = re.findall(r"^Group \d+: .*\[(.*)\]$", header, re.MULTILINE)
    assert len(flags) == 2
    assert all("ITABLE_ZEROED" in flag for flag in flags)


def test_mmdebstrap_is_asked_for_the_suite_by_the_machines_sources(tools: Tools) -> None:
    rootfs.build(["fio", "fio"], size=64 * MIB)
    ((*words,),) = tools.calls("mmdebstrap")
    assert [word for word in words if word.startswith("deb ")] == [
        "deb http://mirror/debian bookworm main",
        "deb http://mirror/debian bookworm-updates main",
        "deb http://mirror/security bookworm-security main",
    ]
    assert "--include=fio,iproute2,login,passwd,sysvinit-core,usr-is-merged" in words
    assert '--aptopt=Acquire::http::Proxy "http://p:1"' in words
    assert not any("Dir" in word and word.startswith("--aptopt") for word in words)
    assert words[words.index("bookworm") + 1].endswith(".tar.zst")


def test_another_init_keeps_ours_out(tools: Tools) -> None:
    rootfs.build(["systemd-sysv"], size=64 * MIB)
    ((*words,),) = tools.calls("mmdebstrap")
    assert "--include=iproute2,login,passwd,systemd-sysv,usr-is-merged" in words


def test_versions_are_those_of_the_suites_sources(tools: Tools) -> None:
    tools.add(
        "apt-get",
        f"""cd {tools.folder}
case $1 in indextargets) cat targets; exit ;; esac
for word; do case $word in Dir::Etc::SourceList=*) cat "${{word#*=}}" ;; esac; done >list
cat resolved""",
    )
    rootfs.build(size=64 * MIB)
    listed = (tools.folder / "list").read_text()
    assert listed.splitlines() == [f"deb {line}" for line in TARGETS.splitlines()[:3]]


def test_second_time_asks_nothing(tools: Tools) -> None:
    first = rootfs.build(["fio", "iperf3"], size=64 * MIB)
    tools.log.write_text("")
    (tools.folder / "resolved").write_text(RESOLVED.replace("2.36-9", "2.36-10"))
    assert rootfs.build(["iperf3", "fio"], size=64 * MIB) == first
    assert tools.log.read_text() == ""


def test_another_size_is_made_of_the_same_tree(tools: Tools) -> None:
    first = rootfs.build(size=64 * MIB)
    second = rootfs.build(size=65 * MIB)
    assert first != second
    assert second.stat().st_size == 65 * MIB
    assert len(tools.calls("mmdebstrap")) == 1


def test_renewed_image_has_the_newer_packages(tools: Tools) -> None:
    first = rootfs.build(size=64 * MIB)
    assert rootfs.build(size=64 * MIB, renew=True) == first
    assert len(tools.calls("mmdebstrap")) == 1
    (tools.folder / "resolved").write_text(RESOLVED.replace("2.36-9", "2.36-10"))
    newer = rootfs.build(size=64 * MIB, renew=True)
    assert newer != first
    assert rootfs.build(size=64 * MIB) == newer


@pytest.mark.parametrize("changed", ["RECIPE", "EPOCH"])
def test_recipe_makes_another_image(
    tools: Tools, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rootfs.build(size=64 * MIB)
    monkeypatch.setattr(rootfs, changed, "1234567")
    assert rootfs.build(size=64 * MIB) != first


def test_suite_that_the_machine_does_not_have(tools: Tools) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^suite sid is in none of this machine's apt sources; .*one of bookworm, .*trixie$",
    ):
        rootfs.build(suite="sid")
    assert not tools.calls("mmdebstrap")


def test_updates_alone_are_no_suite(tools: Tools) -> None:
    (tools.folder / "targets").write_text("http://mirror/debian bookworm-updates main\n")
    with pytest.raises(ConfigError, match=r"^suite bookworm is in none"):
        rootfs.build()


@pytest.mark.parametrize("name", ["", "-o", "fio=3", "a b", "Fio", "?essential", "x/sid", "a,b"])
def test_package_names_that_are_none(tools: Tools, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^package {re.escape(name)}: no name of a package"):
        rootfs.build([name])
    assert tools.log.read_text() == ""


def test_package_that_no_list_knows(tools: Tools) -> None:
    tools.add("apt-cache", 'case "$*" in *nonesuch*) exit 100 ;; esac; printf "' + RECORD + '"')
    with pytest.raises(ConfigError, match=r"^package nonesuch is not in this machine's package li"):
        rootfs.build(["nonesuch"])


@pytest.mark.parametrize("size", [0, 63 * MIB, 64 * MIB + 1])
def test_sizes_that_are_refused(tools: Tools, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"^size {size}: give a whole number of MiB, at least 6"):
        rootfs.build(size=size)


def test_tree_that_does_not_fit(tools: Tools, tmp_path: Path, tree: Path, folder: Path) -> None:
    (tmp_path / "tree/large").write_bytes(os.urandom(80 * MIB))
    command = ["tar", "-C", str(tmp_path / "tree"), "--zstd", "-cf", str(tree), "."]
    subprocess.run(command, timeout=60, check=True)
    with pytest.raises(ConfigError, match=r"^size 64M: the packages' files do not fit; give a lar"):
        rootfs.build(size=64 * MIB)
    assert not list(folder.glob("*.ext4"))
    assert not list(folder.glob(".*"))


def test_failure_of_mmdebstrap_is_one_line(tools: Tools, folder: Path) -> None:
    tools.add(
        "mmdebstrap", "echo 'Get:1 libgpg-error0'; echo 'E: no space left'; echo tail; exit 1"
    )
    with pytest.raises(BackendError, match=r"^mmdebstrap bookworm failed: E: no space left$"):
        rootfs.build(size=64 * MIB)
    assert not [
        path
        for path in folder.rglob("*")
        if "tar" in path.name and path.is_file() and path.parent.name != "locks"
    ]


def test_missing_tools_are_all_named(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool, path: None if tool[0] == "m" else tool)
    with pytest.raises(BackendError, match=r"--no-install-recommends mmdebstrap e2fsprogs$"):
        rootfs.build()


def test_plain_user_works_in_a_user_namespace(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    tools.add("newuidmap", "")
    tools.add("unshare", 'while [ "$1" != sh ]; do shift; done; exec "$@"')
    rootfs.build(size=64 * MIB)
    ((*words,),) = tools.calls("mmdebstrap")
    assert "--mode=unshare" in words
    ((*words,),) = tools.calls("unshare")
    assert words[:4] == ["--user", "--map-root-user", "--map-auto", "sh"]


def test_copy_keeps_content_and_holes(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
        file.write(b"head")
        file.seek(9 * MIB + 5)
        file.write(b"x" * (3 * MIB))
    copy = tmp_path / "copy"
    rootfs.copy(image, copy)
    assert copy.read_bytes() == image.read_bytes()
    assert copy.stat().st_blocks <= image.stat().st_blocks + 64
    copy.write_bytes(b"longer than the next")
    image.write_bytes(b"")
    rootfs.copy(image, copy)
    assert copy.read_bytes() == b""


def test_command(tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "disk.img"
    argv = ["rootfs", "--package", "fio", "--size", "64", "-o", str(output)]
    assert guest.main(argv) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{output}\n", "")
    assert output.stat().st_size == 64 * MIB
    assert os.access(output, os.W_OK)
    assert stat.S_IMODE(output.stat().st_mode) & 0o600 == 0o600, "a guest may write it"
    assert guest.main(argv[:-2]) == 0
    cached = Path(capsys.readouterr().out.strip())
    assert cached.read_bytes() == output.read_bytes()
    with pytest.raises(PyvirtError, match=r"^-o /no/such/file: No such file or directory$"):
        guest.main([*argv[:-1], "/no/such/file"])


@pytest.mark.parametrize("size", ["", "0", "2T", "1.5G", "-1", "2g", " 64", "99999999"])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(PyvirtError, match=rf"^--size {re.escape(size)}: not a size; give one such"):
        guest.main(["rootfs", "--size", size])


@pytest.mark.parametrize("shell", [["sh"], ["busybox", "sh"]])
@pytest.mark.parametrize(
    "script",
    [rootfs.HOOK, rootfs.EXT4, rootboot.INIT, rootboot.INIT.with_name("modules.sh")],
    ids=lambda p: p.name,
)
def test_scripts_parse(shell: list[str], script: Path) -> None:
    subprocess.run([*shell, "-n", str(script)], timeout=30, check=True)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """Return what the hook finds: a tree with its packages just installed."""
    root = tmp_path / "fresh"
    files = {
        "etc/apt/apt.conf.d/99mmdebstrap": "Acquire::http::Proxy x;\n",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap": "path-exclude=/usr/share/man/*\nforce-unsafe-io\n",
        "etc/shadow": "root:*:19518:0:99999:7:::\ndaemon:*:19518:0:99999:7:::\n",
        "etc/hostname": "of-the-host\n",
        "etc/init.d/.depend.boot": "",
        "etc/init.d/rc": "",
        "etc/rc2.d/S01bootlogs": "",
        "etc/rc2.d/S01ssh": "",
        "usr/share/sysvinit/inittab": "",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def hook(root: Path) -> None:
    command = ["sh", "-c", rootfs.HOOK.read_text(), "exec", str(root)]
    subprocess.run(command, timeout=30, check=True)


def test_hook_makes_the_tree_a_guest(fresh: Path) -> None:
    hook(fresh)
    assert (fresh / "etc/shadow").read_text().splitlines() == [
        "root::19518:0:99999:7:::",
        "daemon:*:19518:0:99999:7:::",
    ]
    assert (fresh / "etc/hostname").read_text() == "guest\n"
    assert (fresh / "etc/fstab").read_text().split()[:3] == [f"LABEL={rootfs.LABEL}", "/", "ext4"]
    assert not (fresh / "etc/apt/apt.conf.d/99mmdebstrap").exists(), "a proxy is the host's affair"
    dpkg = (fresh / "etc/dpkg/dpkg.cfg.d/99mmdebstrap").read_text()
    assert dpkg == "path-exclude=/usr/share/man/*\n"
    inittab = (fresh / "etc/inittab").read_text()
    assert re.search(r"^T0:2:respawn:/sbin/agetty .*\bttyS0\b", inittab, re.MULTILINE)
    assert sorted(path.name for path in (fresh / "etc/rc2.d").iterdir()) == ["S01ssh"]
    assert sorted(path.name for path in (fresh / "etc/init.d").iterdir()) == ["guest", "rc"]
    guest_script = fresh / "etc/init.d/guest"
    assert os.access(guest_script, os.X_OK)
    subprocess.run(["sh", "-n", str(guest_script)], timeout=30, check=True)
    assert set(re.findall(r":/etc/init\.d/guest (\w+)", inittab)) == {"start", "poweroff", "reboot"}


def test_hook_leaves_another_init_its_ways(fresh: Path) -> None:
    (fresh / "usr/share/sysvinit/inittab").unlink()
    hook(fresh)
    assert not (fresh / "etc/inittab").exists()
    assert (fresh / "etc/shadow").read_text().startswith("root::")


def test_root_initramfs(tmp_path: Path) -> None:
    modules = tmp_path / "lib/modules/6.1"
    modules.mkdir(parents=True)
    names = [*rootboot.MODULES, "own"]
    (modules / "modules.dep").write_text("".join(f"{name}.ko:\n" for name in names))
    for name in names:
        (modules / f"{name}.ko").write_bytes(name.encode())
    kernel = Kernel("test", tmp_path / "image", "6.1", modules, None)
    members = read(rootboot.build(kernel, modules=["own"], files={"/etc/x": b"y"}).read_bytes())
    assert members["init"].data == rootboot.INIT.read_bytes()
    assert members["lib/modules/load"].data.decode().split() == [
        f"/lib/modules/6.1/{name}.ko" for name in names
    ]
    assert b"done </lib/modules/load\n" in members["lib/modules/load.sh"].data
    assert members["etc/x"].data == b"y"


def test_root_and_script_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--script: not allowed with argument --root"):
        guest.main(["initramfs", "--root", "--script", "x"])
