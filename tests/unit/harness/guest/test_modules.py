"""The order of modules, from index files as depmod writes them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.errors import ConfigError
from pyvirt.harness.guest import modules

DEP = """\
kernel/net/core/failover.ko:
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko \
kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/char/virtio-rng.ko.xz: kernel/drivers/virtio/virtio.ko \
kernel/drivers/virtio/virtio_ring.ko
kernel/fs/fs.ko: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
kernel/crypto/crc32c_intel.ko: kernel/crypto/helper.ko
kernel/crypto/helper.ko:
kernel/crypto/after.ko:
"""
SOFTDEP = """\
# Soft dependencies extracted from modules themselves.
softdep libcrc32c pre: crc32c post: after
softdep fs gcm
"""
ALIAS = """\
# Aliases extracted from modules themselves.
alias crc32c crc32c_intel
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "lib/modules/6.1.0-test"
    directory.mkdir(parents=True)
    (directory / "modules.dep").write_text(DEP)
    (directory / "modules.softdep").write_text(SOFTDEP)
    (directory / "modules.alias").write_text(ALIAS)
    (directory / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return directory


def stems(found: list[modules.Module]) -> list[str]:
    return [module.path.name.partition(".")[0] for module in found]


def test_dependencies_come_first(tree: Path) -> None:
    assert stems(modules.order(tree, ["virtio_net"])) == [
        *("virtio_ring", "virtio", "failover", "net_failover", "virtio_net")
    ]


def test_each_module_comes_once(tree: Path) -> None:
    found = stems(modules.order(tree, ["virtio", "virtio_net", "virtio_ring", "virtio_net"]))
    assert found == ["virtio_ring", "virtio", "failover", "net_failover", "virtio_net"]


@pytest.mark.parametrize("name", ["virtio-rng", "virtio_rng"])
def test_hyphen_and_underscore_are_one(tree: Path, name: str) -> None:
    (*_, last) = modules.order(tree, [name])
    assert str(last.path) == "kernel/drivers/char/virtio-rng.ko.xz"


def test_builtin_modules_are_skipped(tree: Path) -> None:
    assert modules.order(tree, ["ext4"]) == []


def test_unknown_module_names_module_and_kernel(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"^module no-such: the kernel 6\.1\.0-test has no such"):
        modules.order(tree, ["virtio", "no-such"])


def test_soft_dependencies(tree: Path) -> None:
    found = modules.order(tree, ["fs"])
    assert stems(found) == ["helper", "crc32c_intel", "libcrc32c", "fs"], "and nothing of post:"
    assert [module.soft for module in found] == [True, True, False, False]


@pytest.mark.parametrize("wanted", [["fs", "helper"], ["helper", "fs"]])
def test_a_module_wanted_for_itself_is_not_soft(tree: Path, wanted: list[str]) -> None:
    found = modules.order(tree, wanted)
    assert {m.path.name: m.soft for m in found}["helper.ko"] is False
    assert stems(found)[:2] == ["helper", "crc32c_intel"]


def test_soft_dependencies_may_form_a_ring(tree: Path) -> None:
    with (tree / "modules.softdep").open("a") as file:
        file.write("softdep helper pre: fs\n")
    assert sorted(stems(modules.order(tree, ["fs"]))) == [
        *("crc32c_intel", "fs", "helper", "libcrc32c")
    ]


def test_missing_index_says_how_to_make_it(tmp_path: Path) -> None:
    directory = tmp_path / "lib/modules/6.1.0-test"
    with pytest.raises(ConfigError, match=rf"run: depmod -b {tmp_path} 6\.1\.0-test$"):
        modules.order(directory, ["virtio"])


@given(st.data())
def test_order_holds_for_any_graph(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Modules numbered so that each depends on lower numbers only, listed as depmod does."""
    count = data.draw(st.integers(1, 10))
    direct = {
        i: data.draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        for i in range(count)
    }
    closure: dict[int, set[int]] = {}
    for i in range(count):
        closure[i] = direct[i].union(*(closure[j] for j in direct[i]))
    lines = [
        f"k/m{i}.ko: {' '.join(f'k/m{j}.ko' for j in sorted(closure[i], reverse=True))}"
        for i in range(count)
    ]
    random.Random(count).shuffle(lines)
    directory = tmp_path_factory.mktemp("release")
    (directory / "modules.dep").write_text("\n".join(lines) + "\n")
    wanted = data.draw(st.lists(st.integers(0, count - 1), max_size=4))
    found = [
        int(n.removeprefix("m")) for n in stems(modules.order(directory, [f"m{i}" for i in wanted]))
    ]
    assert set(found) == set(wanted).union(*(closure[i] for i in wanted))
    assert len(found) == len(set(found))
    for i in found:
        assert all(found.index(j) < found.index(i) for j in closure[i])
