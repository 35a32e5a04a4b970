"""The studio answers, and is not needed by what does not use it."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from femtobooth.core.errors import InputError
from femtobooth.studio import start
from femtobooth.studio.app import create_app
from femtobooth.studio.state import Studio
from femtobooth.workflows.settings import StudioSettings


def test_home_answers(tmp_path: Path) -> None:
    app = create_app(Studio(StudioSettings(folder=str(tmp_path), browser=False)))
    with TestClient(app, base_url="http://localhost:8765") as client:
        answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_without_the_extra_two_lines_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "find_spec", lambda name: None if name == "fastapi" else name)
    with pytest.raises(InputError) as told:
        start.run(StudioSettings())
    assert told.value.lines == ("studio: fastapi not installed", "  -> pip install 'femtobooth[studio]'")
