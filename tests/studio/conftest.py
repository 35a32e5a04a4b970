"""A studio in this process, whose queue stands still; and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from studio_browser import ARGUMENTS, CHROMIUM
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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, for the tests of a file: its event loop is not to be in the way of others'. Ask it for pages without
    motion: painting what pulses sixty times a second takes more of the processor than all the rest.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM} (apt-get install chromium): the studio's pages are left out")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
