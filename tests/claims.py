"""A pytest plugin that shares the test files of one run among several processes.

Each is given all files, and a file belongs to the one that comes to it first, by making a file of
that name in the folder `claims`: `pytest -p tests.claims --claims FOLDER`. The processes need not
run on one kernel, they need only see one folder; who is faster takes more. (xdist wants workers
that it can start and talk to, which a lab's are not.)

The longest files come first, so that all processes come to their end together.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

# From the longest on, as `python -m tests` tells them.
LONGEST = (
    *("snapshot", "net_host", "hostroot", "cycles", "boot", "rootfs", "ondemand", "demo", "timed"),
    *("vhost_user", "disk", "life", "qmp_net", "hotplug_page", "vsock", "fio", "snapshot_rounds"),
    *("stock_kernel", "net", "numa", "hotplug", "virtio_mmio", "virtconsole", "console", "fault"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--claims", type=Path, help="share the files with who names this folder")


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("claims")
    if folder:
        config.pluginmanager.register(Claims(folder))


class Claims:
    """Runs the tests of files that nobody else has claimed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ours: dict[Path, bool] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the longest files first; all else stays in its order."""
        place = {f"guest/test_{name}.py": index for index, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get("/".join(item.path.parts[-2:]), len(place)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool:
        """Run an item of ours; say that one is seen to when its file is another's."""
        if self._is_ours(item):
            where = {"nodeid": item.nodeid, "location": item.location}
            item.ihook.pytest_runtest_logstart(**where)
            runtestprotocol(item, nextitem=self._following(item))
            item.ihook.pytest_runtest_logfinish(**where)
        return True

    def _following(self, item: pytest.Item) -> pytest.Item | None:
        """Return the next item of ours: what it needs too is kept, and all else torn down."""
        items = item.session.items
        return next(filter(self._is_ours, items[items.index(item) + 1 :]), None)

    def _is_ours(self, item: pytest.Item) -> bool:
        if item.path not in self._ours:
            self._ours[item.path] = self._claim(item.path)
        return self._ours[item.path]

    def _claim(self, path: Path) -> bool:
        name = "-".join(path.parts[-2:])
        try:
            # Exclusive where the folder is, on the other side of a lab's 9p.
            fd = os.open(self._folder / name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        except FileExistsError:
            return False
        os.close(fd)
        return True
