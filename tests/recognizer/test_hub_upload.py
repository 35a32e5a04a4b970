"""What `--push` sends, to a hub that listens on this machine: nothing unless asked, private unless said, whole."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from femtobooth.core import config
from femtobooth.core.errors import InputError, SettingsError
from femtobooth.recognizer.model.hub_upload import check, push
from femtobooth.recognizer.settings import FinetuneSettings
from femtobooth.studio import references


class Hub:
    """What the hub was told, and what it answers: repositories by name, of which True are private."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.allows = True
        self.asked: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        name, last = "/".join(path.split("/")[3:5]), path.removesuffix("/main").rpartition("/")[2]
        if last == "create":
            return self._create(json.loads(body))
        if last == "preupload":
            files = json.loads(body)["files"]
            return 200, {
                "files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            }
        if last == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1", "pullRequestUrl": None}
        if method == "GET" and path.startswith("/api/models/") and name not in self.repositories:
            return 404, {"error": "Repository not found"}
        return 200, {"name": "me", "id": name, "private": self.repositories.get(name), "sha": "1", "siblings": []}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        status = 409 if name in self.repositories else 200 if self.allows else 403
        if status == 200:
            self.repositories[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
        return status, {"url": f"{self.address}/{name}", "error": "no"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    class Answers(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, told = found.answer(self.command, self.path.partition("?")[0], body)
            data = json.dumps(told).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = Hub(server.server_port)
    monkeypatch.setattr(constants, "ENDPOINT", found.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def test_a_new_repository_is_private(hub: Hub, model: Path) -> None:
    check("me/cats", public=False)
    assert not hub.repositories  # looking makes nothing
    assert push(model, "me/cats", public=False) == f"{hub.address}/me/cats"
    assert hub.repositories == {"me/cats": True}
    assert hub.files == {file.name: file.read_bytes() for file in model.iterdir()}
    check("me/cats", public=False)
    push(model, "me/seen", public=True)
    assert hub.repositories["me/seen"] is False


def test_what_all_may_see_is_only_sent_when_that_was_said(hub: Hub) -> None:
    hub.repositories["me/cats"] = False
    with pytest.raises(SettingsError, match="is public") as told:
        check("me/cats", public=False)
    assert "public=true" in (told.value.way_out or "")
    check("me/cats", public=True)


def test_what_cannot_be_sent_is_told_before_training(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("cats", "a/b/c", "me/..", "me/c c"):
        with pytest.raises(SettingsError, match="no name for a model"):
            check(name, public=False)
    hub.allows = False
    with pytest.raises(InputError, match=r"does not let you write there \(403\)") as told:
        push(model, "other/cats", public=False)
    assert str(model) in (told.value.way_out or "") and "--private" in (told.value.way_out or "")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot be reached"):
        check("me/cats", public=False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="nobody is logged in"):
        check("me/cats", public=False)


def test_public_says_nothing_without_push() -> None:
    settings = config.settle(FinetuneSettings, {"data": "cats", "public": True})
    assert settings.without_effect() == {"public": "without push"}
    assert not config.settle(FinetuneSettings, {"data": "cats", "push": "me/cats", "public": True}).without_effect()


def test_nobody_sends_a_model_from_elsewhere() -> None:
    for given in ({"push": "me/cats"}, {"public": True}):
        with pytest.raises(SettingsError, match="as whoever is logged in at this machine"):
            references.resolve(FinetuneSettings, given, lambda *_: None)
