"""What fake monitors need besides fake_monitor.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyvirt.harness.agent import image


@pytest.fixture(scope="session")
def agent() -> Path:
    """The agent's program, built once: in the user's cache, before a test has another home."""
    return image.agent()


@pytest.fixture
def agent_cache(agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, which has the agent and nothing that another test has made."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / agent.name).symlink_to(agent)
    monkeypatch.setenv("PYVIRT_CACHE", str(folder))
