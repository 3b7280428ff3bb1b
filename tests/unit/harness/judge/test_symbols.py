"""Names for addresses: from text, from an ELF file that a compiler made, from where they can be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.errors import BackendError, ConfigError
from pyvirt.harness.guest.kernel import Kernel
from pyvirt.harness.judge.symbols import Symbols, for_kernel

KALLSYMS = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 T startup_64
ffffffff81000040 t helper
ffffffff81000050 W weak
ffffffff81000080 T _etext
ffffffff82000000 D data
ffffffffc0000000 t probe\t[frob]
ffffffffc0000020 d frob_data\t[frob]
"""


def test_functions_and_offsets() -> None:
    symbols = Symbols.from_kallsyms(KALLSYMS)
    name = symbols.name_of
    assert name(0xFFFF_FFFF_8100_0000) == "_stext+0x0/0x40"
    assert name(0xFFFF_FFFF_8100_003F) == "_stext+0x3f/0x40"
    assert name(0xFFFF_FFFF_8100_0041) == "helper+0x1/0x10"
    assert name(0xFFFF_FFFF_8100_0050) == "weak+0x0/0x30"
    assert name(0xFFFF_FFFF_C000_001F) == "probe+0x1f/0x20 [frob]"
    assert symbols.is_text(0xFFFF_FFFF_8100_0041)
    for address in (0, 0xFFFF_FFFF_80FF_FFFF, 0xFFFF_FFFF_8200_0000):
        assert name(address) is None
        assert not symbols.is_text(address)
    assert name(0xFFFF_FFFF_C000_0020) == "(in a module)"
    # The last function of all has no end; far behind it there is none.
    assert name(0xFFFF_FFFF_8100_0080 + (1 << 20)) is None


def test_a_return_address_behind_the_end_of_its_function() -> None:
    symbols = Symbols.from_kallsyms(KALLSYMS)
    assert symbols.name_of_caller(0xFFFF_FFFF_8100_0050) == "helper+0x10/0x10"
    assert symbols.name_of(0xFFFF_FFFF_8100_0050) == "weak+0x0/0x30"


@pytest.mark.parametrize(
    "text", ["", "0000000000000000 T hidden\n" * 9, "ffffffff82000000 D data\n", "\0\n garbage T"]
)
def test_hidden_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^/proc/kallsyms: no function has an address; read it"):
        Symbols.from_kallsyms(text)
    assert not Symbols.from_system_map(text)


@given(st.text(), st.integers(0, (1 << 64) - 1))
def test_any_text(text: str, address: int) -> None:
    symbols = Symbols.from_system_map(text + "\nffffffff81000000 T a\n")
    assert symbols
    name = symbols.name_of(address)
    assert name is None or name.isprintable()


@pytest.fixture(scope="session")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ELF file with code at a kernel's address and the words of a kernel's banner."""
    folder = tmp_path_factory.mktemp("elf")
    source = folder / "a.c"
    source.write_text(
        'const char banner[] = "Linux version 6.1.0-test (me)";\nint data = 1;\n'
        "int second(int x);\nint first(int x) { return second(x) + data; }\n"
        "int second(int x) { return x * 2; }\nvoid _start(void) { first(1); for (;;); }\n"
    )
    target = folder / "vmlinux"
    link = "-Wl,-Ttext=0xffffffff81000000,--build-id=none"
    command = ["gcc", "-O0", "-nostdlib", "-static", "-no-pie", "-mcmodel=kernel", "-fno-pic"]
    command += [link, "-o", str(target), str(source)]
    subprocess.run(command, check=True, timeout=60)
    return target


def test_elf(vmlinux: Path, tmp_path: Path) -> None:
    symbols = Symbols.from_vmlinux(vmlinux)
    said = subprocess.run(["nm", vmlinux], capture_output=True, text=True, check=True, timeout=60)
    places = {name: int(value, 16) for value, _, name in map(str.split, said.stdout.splitlines())}
    for name in ("first", "second", "_start"):
        found = symbols.name_of(places[name] + 3)
        assert found is not None
        assert found.startswith(f"{name}+0x3/0x")
    assert symbols.name_of(places["data"]) is None
    # The same as from its map.
    system_map = Symbols.from_system_map(
        "".join(sorted(f"{line}\n" for line in said.stdout.splitlines()))
    )
    assert system_map.name_of(places["first"] + 1) == symbols.name_of(places["first"] + 1)
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, vmlinux], check=True, timeout=60)
    assert not Symbols.from_vmlinux(stripped)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        b"\x7fELF\x02\x01" + bytes(100),
        # It says that it has 65535 sections.
        b"\x7fELF\x02\x01" + bytes(52) + b"\x40\0\xff\xff" + bytes(99),
        b"MZ" * 99,
    ],
)
def test_what_is_no_elf_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"x: it is no ELF file of a 64-bit kernel$"):
        Symbols.from_vmlinux(path)


@given(st.integers(0, 1 << 14), st.binary(min_size=1, max_size=64))
def test_a_damaged_elf_file(vmlinux: Path, at: int, damage: bytes) -> None:
    data = bytearray(vmlinux.read_bytes())
    at %= len(data)
    data[at : at + len(damage)] = damage
    path = vmlinux.with_name("damaged")
    path.write_bytes(data)
    try:
        Symbols.from_vmlinux(path)
    except ConfigError as error:
        assert str(error) == f"{path}: it is no ELF file of a 64-bit kernel"  # noqa: PT017


# Where a kernel's symbols are.


def never() -> str:
    raise AssertionError("nothing is to be fetched")


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYVIRT_CACHE", str(tmp_path / "cache"))
    boot = tmp_path / "tree/arch/x86/boot"
    boot.mkdir(parents=True)
    image = boot / "bzImage"
    image.write_bytes(b"an image")
    return image


def kernel(image: Path, symbols: Path | None = None) -> Kernel:
    return Kernel("k", image, "6.1.0-test", None, None, symbols)


def test_a_named_file(image: Path, vmlinux: Path, tmp_path: Path) -> None:
    assert for_kernel(kernel(image, vmlinux), never)
    text = tmp_path / "map"
    text.write_text(KALLSYMS)
    assert for_kernel(kernel(image, text), never).name_of(0xFFFF_FFFF_8100_0041)
    text.write_text("ffffffffffffffff B The real System.map is elsewhere\n")
    with pytest.raises(ConfigError, match=r"it has no symbols; name an unstripped vmlinux$"):
        for_kernel(kernel(image, text), never)
    with pytest.raises(BackendError, match=r"No such file or directory; name another file$"):
        for_kernel(kernel(image, tmp_path / "none"), never)


@pytest.mark.parametrize("place", ["vmlinux", "../../../vmlinux"])
def test_the_tree_where_it_was_built(image: Path, vmlinux: Path, place: str) -> None:
    (image.parent / place).write_bytes(vmlinux.read_bytes())
    assert for_kernel(kernel(image), never)


@pytest.mark.parametrize("place", ["System.map", "System.map-6.1.0-test", "../../../System.map"])
def test_a_map_beside_the_image(image: Path, place: str) -> None:
    (image.parent / place).write_text(KALLSYMS)
    assert for_kernel(kernel(image), never)


def test_from_the_guest_once(image: Path, vmlinux: Path) -> None:
    # One of another kernel, and one that holds nothing, are no help.
    other = vmlinux.read_bytes().replace(b"6.1.0-test", b"6.1.0-best")
    (image.parent / "vmlinux").write_bytes(other)
    (image.parent / "System.map").write_text("ffffffffffffffff B nothing\n")
    calls = []

    def fetch() -> str:
        calls.append(1)
        return KALLSYMS

    for _ in range(2):
        symbols = for_kernel(kernel(image), fetch)
        assert symbols.name_of(0xFFFF_FFFF_8100_0041)
        # The next boot has another module there.
        assert symbols.name_of(0xFFFF_FFFF_C000_001F) == "(in a module)"
    assert len(calls) == 1
    image.write_bytes(b"another image")
    with pytest.raises(ConfigError, match="no function has an address"):
        for_kernel(kernel(image), lambda: "0000000000000000 T hidden\n")
    assert for_kernel(kernel(image), fetch)
    assert len(calls) == 2
