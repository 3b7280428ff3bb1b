"""Files that options name: of which kind, up to which size, and whose."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from pyvirt import files


def error_of(path: str | Path, flags: int = os.O_RDONLY) -> OSError:
    with pytest.raises(OSError, match=re.escape(str(path))) as info:
        files.open_regular(str(path), flags)
    return info.value


def test_a_regular_file_is_opened_to_wait_for_its_storage(tmp_path: Path) -> None:
    fd = files.open_regular(str(tmp_path / "new"), os.O_RDWR | os.O_CREAT, 0o600)
    assert os.get_blocking(fd)
    assert not os.get_inheritable(fd)
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    os.close(fd)


def test_nothing_else_is_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/null"), Path("/dev/zero")):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT):
            assert error_of(path, flags).strerror == "Not a regular file"
    assert error_of(tmp_path).errno == errno.EISDIR
    assert error_of(tmp_path / "none").errno == errno.ENOENT


def test_what_takes_its_place_meanwhile_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    before = os.listdir("/proc/self/fd")
    status = os.stat(__file__)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda *_: status)
        assert error_of(fifo).strerror == "Not a regular file"
    assert os.listdir("/proc/self/fd") == before


def test_reading_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    assert files.read(str(path), 1 << 20) == b"x" * (1 << 20)
    os.truncate(path, (1 << 20) + 1)
    with pytest.raises(OSError, match="Larger than 1 MiB"):
        files.read(str(path), 1 << 20)


def test_a_locked_file_has_one_owner(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    fd = files.open_locked(path, 0o600)
    assert fd is not None
    assert files.open_locked(path, 0o600) is None
    assert files.remove_locked(fd, path)
    assert not os.path.exists(path)
    second = files.open_locked(path, 0o600)
    assert second is not None
    os.unlink(path)
    assert not files.remove_locked(second, path)


def test_the_lock_of_a_file_that_its_owner_has_removed_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "lock")
    first = files.open_locked(path, 0o600)
    assert first is not None
    real, owners = files.lock, [first]

    def late(fd: int) -> bool:
        if owners:
            files.remove_locked(owners.pop(), path)
        return real(fd)

    monkeypatch.setattr(files, "lock", late)
    second = files.open_locked(path, 0o600)
    assert second is not None
    assert files.is_at(second, path)
    assert files.remove_locked(second, path)


def test_a_file_system_without_locks_lets_all_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> object:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.fcntl", no_locks)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert files.lock(fd)
    os.close(fd)
