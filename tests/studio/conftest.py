"""A studio in this process, whose queue stands still."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from studio_client import ADDRESS

from femtobooth.studio.app import create_app
from femtobooth.studio.state import Studio
from femtobooth.workflows.settings import StudioSettings


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    """An empty one."""
    return Studio(StudioSettings(folder=str(tmp_path / "runs"), browser=False))


@pytest.fixture
def client(studio: Studio) -> Iterator[TestClient]:
    """Asks it as a program on this machine does; no job begins."""
    studio.runner.begin = lambda: None  # type: ignore[method-assign]
    with TestClient(create_app(studio), base_url=ADDRESS) as found:
        yield found
