"""Guests on files of this host: what they see of it, and that nothing there is ever written."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.harness.agent import image
from pyvirt.harness.guest import hostboot, hostroot, kernel

from .conftest import APPEND, PYVIRT, SECONDS, Running

# What a guest's root can do is tried beside what a user notices.
SCRIPT = """
echo "in $(pwd) of $(hostname), $(uname -r)"
python3 -IS -c 'print([6 * 7])'
cat seen
echo changed >seen && mkdir made && cat seen
cat /mnt/data/seen
test -e "/lib/modules/$(uname -r)/modules.dep" && echo with modules
mount -t virtiofs pyvirt-root /mnt && mount -o remount,rw /mnt
grep -o "^pyvirt-root /mnt virtiofs rw" /proc/mounts && touch "/mnt$(pwd)/new"
rm -rf seen && touch /usr/bin/new && echo removed
kill -9 $$
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small system: busybox."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "bin").mkdir()
    shutil.copy(shutil.which("busybox") or "", folder / "bin/busybox")
    for name in ("sh", "cat", "uname", "id", "poweroff"):
        (folder / "bin" / name).symlink_to("/bin/busybox")
    yield folder
    # Nothing was written but what tests have made here.
    assert sorted(path.name for path in folder.iterdir()) == ["bin"]


@pytest.fixture
def here() -> Iterator[Path]:
    """A folder of the host's own: a guest has a /dev of its own, and so has this lab."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


def pyvirt(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run pyvirt with these words to its end."""
    return subprocess.run(
        [str(PYVIRT), *words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_all_of_the_host_under_another_kernel(cloud: kernel.Kernel, here: Path) -> None:
    (here / "seen").write_text("from the host\n")
    (here / "script").write_text(SCRIPT)
    share = f"{here},tag=data,readonly=on"
    words = ("-accel", "kvm", "-root", "/", "-share", share, "-exec", "sh ./script")
    done = pyvirt("run", *words, cwd=here)
    lines = done.stdout.replace("\r", "").splitlines()
    first = f"in {here} of pyvirt, {cloud.release}"
    assert first in lines, done.stdout + done.stderr
    assert lines[lines.index(first) :][:9] == [
        first,
        "[42]",
        "from the host",
        "changed",
        "from the host",
        "with modules",
        "pyvirt-root /mnt virtiofs rw",
        f"touch: cannot touch '/mnt{here}/new': Read-only file system",
        "removed",
    ]
    assert done.returncode == 128 + 9, done.stderr
    assert (here / "seen").read_text() == "from the host\n"
    assert not (here / "made").exists()
    assert not Path("/usr/bin/new").exists()


def test_a_shell_on_the_console(micro: kernel.Kernel, tree: Path) -> None:
    options = ("-root", str(tree), "-m", "128")
    with Running(micro.image, *options, append="hostname=named") as guest:
        guest.expect("on files of the host; poweroff or Ctrl-A X leaves.")
        guest.expect("# ")
        guest.type("cat /proc/sys/kernel/hostname; pwd; echo x >/new; cat /new; exit\n")
        assert guest.end() == 0
        assert {"named", "/", "x"} <= set(guest.console.splitlines())


def test_an_init_of_the_roots(micro: kernel.Kernel, tree: Path) -> None:
    append = 'init=/bin/sh -- -c "echo process $$ runs; exec poweroff -f"'
    with Running(micro.image, "-root", str(tree), append=append) as guest:
        assert guest.end() == 0
        assert "process 1 runs" in guest.console.splitlines()


def test_a_kernel_is_tested_there(here: Path) -> None:
    script = here / "script"
    script.write_text('set -eC\n>made\necho "$PWD $*"\n')
    words = ("--kernel", "micro", "--root", "--", "bash", script.name, "argument")
    done = pyvirt("test", *words, cwd=here)
    assert (done.returncode, done.stdout) == (0, f"{here} argument\n"), done.stderr
    assert not (here / "made").exists()


def test_what_a_test_boots_has_a_shell_by_hand(micro: kernel.Kernel, tree: Path) -> None:
    told, words = hostroot.words(str(tree), None)
    initrd = image.initramfs(micro, modules=tuple(hostboot.NEEDS))
    with Running(
        micro.image, "-initrd", str(initrd), "-root", str(tree), *words, append=f"{APPEND} {told}"
    ) as guest:
        guest.expect("# ")
        guest.type("cat /proc/mounts; exit\n")
        assert guest.end() == 0
        assert "overlay / overlay" in guest.console
