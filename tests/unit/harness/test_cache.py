"""The cache folder: entries appear whole or not at all, and are built once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pyvirt.errors import BackendError, ConfigError
from pyvirt.harness import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("PYVIRT_CACHE", str(place))
    return place


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"locks", "names"}


def test_root_follows_the_environment(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.root() == folder
    monkeypatch.delenv("PYVIRT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "xdg/pyvirt"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.root() == tmp_path / "home/.cache/pyvirt"
    assert cache.root().is_dir()


def test_unwritable_root_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYVIRT_CACHE", str(tmp_path / "file/below"))
    with pytest.raises(ConfigError, match=r"^the cache folder .*file/below .*PYVIRT_CACHE.*$"):
        cache.root()


def test_entry_is_built_once(folder: Path) -> None:
    calls = []

    def build(place: Path) -> None:
        calls.append(place)
        place.write_text("made")

    assert cache.entry("one", build).read_text() == "made"
    assert cache.entry("one", build) == folder / "one"
    assert len(calls) == 1
    assert entries(folder) == {"one"}


def test_failed_build_leaves_nothing(folder: Path) -> None:
    def build(place: Path) -> None:
        place.mkdir()
        (place / "half").touch()
        raise BackendError("no luck")

    with pytest.raises(BackendError, match="no luck"):
        cache.entry("tree", build)
    assert entries(folder) == set()


def test_entry_is_not_seen_before_it_is_whole(folder: Path) -> None:
    def build(place: Path) -> None:
        place.mkdir()
        assert not (folder / "tree").exists()
        assert place.parent == folder, "a rename must not cross file systems"
        (place / "last").touch()

    assert (cache.entry("tree", build) / "last").exists()


def test_leavings_of_a_killed_builder_are_removed(folder: Path) -> None:
    script = (
        "import os, signal\n"
        "from pyvirt.harness import cache\n"
        "def build(place):\n"
        "    place.mkdir()\n"
        "    (place / 'half').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache.entry('tree', build)\n"
    )
    died = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert died.returncode == -9
    assert entries(folder) == {".tree.part"}

    def build(place: Path) -> None:
        place.mkdir()

    assert list(cache.entry("tree", build).iterdir()) == []
    assert entries(folder) == {"tree"}


def test_builders_at_the_same_time_build_once(folder: Path) -> None:
    started = threading.Event()
    built = []

    def build(place: Path) -> None:
        started.set()
        time.sleep(0.3)
        built.append(place)
        place.touch()

    threads = [threading.Thread(target=cache.entry, args=("slow", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
        started.wait(10)
    for thread in threads:
        thread.join(30)
    assert len(built) == 1
    assert entries(folder) == {"slow"}


def test_waiting_for_a_lock_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WAIT_S", 0.2)

    def outer(place: Path) -> None:
        with pytest.raises(BackendError, match=r"locks/slow: another process held"):
            cache.entry("slow", lambda _: None)
        place.touch()

    cache.entry("slow", outer)


def test_name_stays_until_renewed(folder: Path) -> None:
    def make(version: str) -> Path:
        return cache.entry(f"thing-{version}", Path.touch)

    assert cache.named("thing", lambda: make("1")) == folder / "thing-1"
    assert cache.named("thing", lambda: make("2")) == folder / "thing-1"
    assert cache.named("thing", lambda: make("2"), renew=True) == folder / "thing-2"
    assert cache.named("thing", lambda: make("3")) == folder / "thing-2"


def test_name_of_a_removed_entry_is_made_again(folder: Path) -> None:
    cache.named("thing", lambda: cache.entry("thing-1", Path.touch)).unlink()
    assert cache.named("thing", lambda: cache.entry("thing-1", Path.touch)).exists()


def test_folder_may_move(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.named("thing", lambda: cache.entry("thing-1", Path.touch))
    moved = folder.rename(folder.with_name("moved"))
    monkeypatch.setenv("PYVIRT_CACHE", str(moved))
    assert cache.named("thing", lambda: pytest.fail("made again")) == moved / "thing-1"


def test_digest_tells_parts_apart() -> None:
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    assert cache.digest("abc") == cache.digest(b"abc")
    assert cache.digest("abc") != cache.digest("abc", "")
    assert len(cache.digest()) == 16


def test_remove_takes_links_not_what_they_point_to(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    cache.remove(tmp_path / "link")
    assert (tmp_path / "tree").is_dir()
    cache.remove(tmp_path / "tree")
    cache.remove(tmp_path / "never")
    assert list(tmp_path.iterdir()) == []


def test_lock_is_not_inherited(folder: Path) -> None:
    """A tool started by a builder must not hold the lock after the builder is gone."""

    def build(place: Path) -> None:
        lock = os.stat(folder / "locks/entry")
        for name in os.listdir("/proc/self/fd"):
            try:
                held = os.fstat(int(name))
            except OSError:
                continue
            if stat.S_ISREG(held.st_mode) and held.st_ino == lock.st_ino:
                assert not os.get_inheritable(int(name))
                place.touch()

    assert cache.entry("entry", build).exists(), "the lock was held by no descriptor"
