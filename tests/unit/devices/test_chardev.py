"""Chardevs as they are opened: what is made, what is adopted, what is left behind, and refused."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import pytest
from pyvirt.devices.chardev import FILE, NULL, PTY, RINGBUF, STDIO, Chardev, ChardevConfig
from pyvirt.errors import ConfigError
from pyvirt.native import ffi, lib


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def refused(config: ChardevConfig) -> str:
    before = open_fds()
    with pytest.raises(ConfigError) as caught:
        config.open()
    assert open_fds() == before
    text = str(caught.value)
    assert "\n" not in text
    return text


def ends(chardev: Chardev) -> tuple[bool, bool, bool]:
    return chardev.in_fd >= 0, chardev.out_fd >= 0, chardev.listen_fd >= 0


def test_stdio_is_borrowed() -> None:
    chardev = ChardevConfig("c", STDIO).open()
    assert (chardev.in_fd, chardev.out_fd, chardev.filename(is_taken=True)) == (0, 1, "stdio")
    chardev.close()
    os.fstat(1)


def test_null_has_no_ends() -> None:
    chardev = ChardevConfig("c", NULL).open()
    assert ends(chardev) == (False, False, False)
    assert chardev.filename(is_taken=False) == "null"


def test_a_file_is_written_and_another_read(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text("input")
    target.write_text("what was there")
    config = ChardevConfig("c", FILE, path=str(target), input_path=str(source))
    chardev = config.open()
    assert os.read(chardev.in_fd, 10) == b"input"
    os.write(chardev.out_fd, b"output")
    chardev.close()
    assert target.read_text() == "output"
    assert refused(ChardevConfig("c", FILE, path=str(target), input_path=f"{source}s")) == (
        f"-chardev id=c: {source}s: No such file or directory; name a file that can be read"
    )
    assert target.read_text() == "output"


def test_a_pty_has_a_link_which_goes_with_it(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    chardev = ChardevConfig("c", PTY, path=str(link)).open()
    assert os.readlink(link) == chardev.pty_path
    assert chardev.filename(is_taken=False) == f"pty:{chardev.pty_path}"
    assert refused(ChardevConfig("c", PTY, path=str(link))) == (
        f"-chardev id=c: {link}: File exists; name a path that is free"
    )
    chardev.close()
    assert not os.path.lexists(link)


def test_a_link_of_somebody_else_stays(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    chardev = ChardevConfig("c", PTY, path=str(link)).open()
    link.unlink()
    link.symlink_to("elsewhere")
    chardev.close()
    assert os.readlink(link) == "elsewhere"


def test_a_ring_buffer_keeps_the_newest_and_gives_each_once() -> None:
    chardev = ChardevConfig("c", RINGBUF, size=8).open()
    data = bytearray(20)

    def read(size: int) -> bytes:
        return bytes(data[: lib.pv_ringbuf_read(chardev.ringbuf, ffi.from_buffer(data), size)])

    assert read(20) == b""
    for text in (b"abc", b"defgh", b"i"):
        lib.pv_ringbuf_write(chardev.ringbuf, text, len(text))
    assert (read(3), read(20), read(20)) == (b"bcd", b"efghi", b"")
    lib.pv_ringbuf_write(chardev.ringbuf, b"0123456789abcdefghij", 20)
    assert read(20) == b"cdefghij"
    chardev.close()


def test_sockets_listened_on(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    chardev = ChardevConfig("c", path=path).open()
    assert ends(chardev) == (False, False, True)
    assert chardev.filename(is_taken=False) == f"disconnected:unix:{path},server=on"
    assert chardev.filename(is_taken=True) == f"unix:{path},server=on"
    assert refused(ChardevConfig("d", path=path)) == (
        f"-chardev id=d: {path}: Address already in use; "
        "name another path, or end the process that listens there"
    )
    client = ChardevConfig("e", path=path, listens=False).open()
    assert client.filename(is_taken=True) == f"unix:{path}"
    assert select.select([chardev.listen_fd], [], [], 10)[0]
    client.close()
    chardev.close()
    assert refused(ChardevConfig("e", path=path, listens=False)) == (
        f"-chardev id=e: {path}: No such file or directory; "
        "start what listens there, or add ,server,nowait to listen"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    chardev = ChardevConfig("c", host=host, port=port).open()
    assert ends(chardev) == (False, False, True)
    written = f"[{host}]" if ":" in host else host
    assert chardev.filename(is_taken=True) == f"tcp:{written}:{port},server=on"
    assert refused(ChardevConfig("d", host=host, port=port)) == (
        f"-chardev id=d: {host}:{port}: Address already in use; "
        "name an address of this host and a port that is free"
    )
    client = ChardevConfig("e", host=host, port=port, listens=False).open()
    assert ends(client) == (True, True, False)
    client.close()
    chardev.close()
    assert refused(ChardevConfig("e", host=host, port=port, listens=False)) == (
        f"-chardev id=e: {host}:{port}: Connection refused; "
        "start what listens there, or add ,server,nowait to listen"
    )


def test_folders_that_are_missing(tmp_path: Path) -> None:
    path = f"{tmp_path}/no/such"
    for config in (ChardevConfig("c", FILE, path=path), ChardevConfig("c", path=path)):
        assert "No such file or directory; name " in refused(config)


def test_descriptors_that_are_no_sockets(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w", encoding="utf-8") as file:
        fd = file.fileno()
        assert refused(ChardevConfig("c", fd=fd)) == (
            f"-chardev id=c: fd={fd}: Socket operation on non-socket; "
            "hand over a stream socket that is connected or listens"
        )
    assert "Bad file descriptor" in refused(ChardevConfig("c", fd=9999))
    with socket.socket() as unconnected:
        assert "not connected" in refused(ChardevConfig("c", fd=unconnected.fileno()))
