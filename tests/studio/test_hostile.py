"""What a stranger tries: each request, and the status that it gets. None of them is a 500, and none reaches a file."""

from __future__ import annotations

import asyncio
import base64
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient
from studio_client import ADDRESS, png, upload

from femtobooth.studio import security
from femtobooth.studio.app import create_app
from femtobooth.studio.state import Studio
from femtobooth.workflows.settings import StudioSettings

API = "/api/v1"
TOKEN = "a-secret-of-24-characters"
NOBODY = "0123456789abcdef"
PHOTOS = {"photos": {"paths": ["{upload}"], "class_noun": "dog"}}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A PNG of few bytes that says it is very large."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10_000))
        + chunk(b"IEND", b"")
    )


def job(command: str = "personalize", **settings: Any) -> dict[str, Any]:
    return {"json": {"command": command, "settings": settings}}


def personalize(**settings: Any) -> dict[str, Any]:
    return job(**{**PHOTOS, **settings})


def file(body: bytes, name: str = "a.png") -> dict[str, Any]:
    return {"files": {"files": (name, body)}}


HOSTS = (
    "evil.com",
    "localhost.evil.com",
    "127.0.0.1.evil.com",
    "192.168.0.5",
    "169.254.169.254",
    "",
    "localhost#evil.com",
)
HOSTS = (
    *HOSTS,
    "localhost:8765@evil.com",
    "10.0.0.1",
    "localhost:99999999",
    "lo\u0131calhost",
)
ORIGINS = (
    "http://evil.com",
    "null",
    "http://localhost:9999",
    "http://localhost:8765.evil.com",
    "file://",
    "https://localhost",
)
JSON = {"content-type": "application/json"}
CROSS = {"sec-fetch-site": "cross-site"}
OPENED = {**CROSS, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}

REQUESTS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    # --- from elsewhere
    **{f"host {host}": ("GET", f"{API}/runs", {"headers": {"host": host.encode()}}, 403) for host in HOSTS},
    **{f"origin {one}": ("GET", f"{API}/runs", {"headers": {"origin": one}}, 403) for one in ORIGINS},
    "posted from another page": ("POST", f"{API}/jobs", {"headers": {"origin": "http://evil.com"}, **personalize()}, 403),
    "read by another page": ("GET", f"{API}/runs", {"headers": CROSS}, 403),
    "read by a page of another port": ("GET", f"{API}/runs", {"headers": {"sec-fetch-site": "same-site"}}, 403),
    "a link to a page": ("GET", "/", {"headers": OPENED}, 200),
    "a link to the API": ("GET", f"{API}/runs", {"headers": OPENED}, 403),
    "a form that leads here": ("POST", "/", {"headers": OPENED}, 403),
    "a link that logs in": ("GET", "/login?token=x", {"headers": OPENED}, 403),
    **{f"method {one}": (one, f"{API}/jobs", {}, 405) for one in ("TRACE", "OPTIONS", "PATCH", "PROPFIND", "CONNECT")},
    # --- paths
    "traversal": ("GET", "/static/../../../app.py", {}, 404),
    "traversal, escaped": ("GET", "/static/%2e%2e/app.py", {}, 404),
    "traversal, its slash escaped": ("GET", "/static/..%2fapp.py", {}, 404),
    "traversal, twice escaped": ("GET", "/static/%252e%252e%252fapp.py", {}, 404),
    "traversal, by backslashes": ("GET", "/static/..%5c..%5capp.py", {}, 404),
    "an absolute path": ("GET", "/static//etc/passwd", {}, 404),
    "NUL in a path": ("GET", "/static/studio.css%00.png", {}, 404),
    "a run by its path": ("GET", f"{API}/runs/..%2f..%2fetc", {}, 404),
    "a run by its name": ("GET", f"{API}/runs/rex", {}, 422),
    "no such run": ("GET", f"{API}/runs/{NOBODY}", {}, 404),
    "a file of no run": ("GET", f"{API}/runs/{NOBODY}/artifacts/{NOBODY}", {}, 404),
    "an upload by its path": ("GET", f"{API}/uploads/%2e%2e%2fjobs.sqlite/file", {}, 404),
    "a part that is none": ("GET", f"{API}/uploads/{NOBODY}/file?part=../x", {}, 422),
    "a long address": ("GET", f"{API}/runs?{'a' * 3000}", {}, 414),
    # --- bodies
    "too large": ("POST", f"{API}/jobs", {"content": b" " * (2**20 + 1)}, 413),
    "too large, in pieces": ("POST", f"{API}/jobs", {"content": (b" " * 2**16 for _ in range(20))}, 413),
    "says it is too large": ("POST", f"{API}/jobs", {"content": b"{}", "headers": {"content-length": str(2**40)}}, 413),
    "of negative length": ("POST", f"{API}/jobs", {"content": b"{}", "headers": {"content-length": "-1"}}, 413),
    "no JSON": ("POST", f"{API}/jobs", {"content": b"{", "headers": JSON}, 422),
    "nested deep": ("POST", f"{API}/jobs", {"content": b"[" * 200_000, "headers": JSON}, 400),
    "nested settings": ("POST", f"{API}/jobs", personalize(a=[[[[[[[[[[[[1]]]]]]]]]]]]), 422),
    "half a character": ("POST", f"{API}/jobs", {"content": rb'{"command":"personalize","settings":{"name":"\ud800"}}', "headers": JSON}, 422),
    "NUL in a name": ("POST", f"{API}/jobs", personalize(name="a\0b"), 422),
    "an infinite number": ("POST", f"{API}/jobs", {"content": b'{"command":"personalize","settings":{"size":1e999}}', "headers": JSON}, 422),
    "an endless number": ("POST", f"{API}/jobs", {"content": b'{"settings":{"a":' + b"9" * 9999 + b"}}", "headers": JSON}, 400),
    "a form for JSON": ("POST", f"{API}/jobs", {"data": {"command": "personalize"}}, 422),
    # --- pictures
    "text as a picture": ("POST", f"{API}/uploads", file(b"hello"), 422),
    "a page as a picture": ("POST", f"{API}/uploads", file(b"<html><script>alert(1)</script>"), 422),
    "SVG with a script": ("POST", f"{API}/uploads", file(b"<svg onload='alert(1)'/>", "a.svg"), 422),
    "nothing as a picture": ("POST", f"{API}/uploads", file(b""), 422),
    "half a picture": ("POST", f"{API}/uploads", file(png()[:500]), 422),
    "a bomb": ("POST", f"{API}/uploads", file(bomb(30_000)), 413),
    "a small bomb": ("POST", f"{API}/uploads", file(bomb(8_000)), 413),
    "a pickle as a model": ("POST", f"{API}/models?name=a.safetensors", {"content": b"\x80\x04cos\nsystem\n."}, 422),
    "no file": ("POST", f"{API}/uploads", {}, 422),
    "a mask of no upload": ("PUT", f"{API}/uploads/{NOBODY}/mask", {"files": {"file": ("m.png", png())}}, 404),
    "base64 that is none": ("POST", f"{API}/classify", {"json": {"pictures": ["!!!"]}}, 422),
    "a bomb in base64": ("POST", f"{API}/classify", {"json": {"pictures": [base64.b64encode(bomb(9_000)).decode()]}}, 413),
    "a path as a picture": ("POST", f"{API}/classify", {"json": {"pictures": ["/etc/passwd"]}}, 422),
    # --- settings
    "no command": ("POST", f"{API}/jobs", job("studio"), 404),
    "a path as a command": ("POST", f"{API}/jobs", job("../../bin/sh"), 404),
    "photos of this machine": ("POST", f"{API}/jobs", job(photos={"paths": ["/etc"], "class_noun": "dog"}), 422),
    "photos above": ("POST", f"{API}/jobs", job(photos={"paths": ["upload:../../x"], "class_noun": "dog"}), 422),
    "photos that are not there": ("POST", f"{API}/jobs", job(photos={"paths": [f"upload:{NOBODY}"], "class_noun": "dog"}), 422),
    "a base of this machine": ("POST", f"{API}/jobs", personalize(base="/"), 422),
    "a base above": ("POST", f"{API}/jobs", personalize(base="../model"), 422),
    "a base in a home": ("POST", f"{API}/jobs", personalize(base="~root"), 422),
    "a base of a hub": ("POST", f"{API}/jobs", personalize(base="owner/name"), 422),
    "class images of this machine": ("POST", f"{API}/jobs", personalize(prior={"folder": "/home"}), 422),
    "another place for runs": ("POST", f"{API}/jobs", personalize(runs="/tmp"), 422),  # noqa: S108
    "a name above": ("POST", f"{API}/jobs", personalize(name="../x"), 422),
    "a hidden name": ("POST", f"{API}/jobs", personalize(name=".studio"), 422),
    "to replace a run": ("POST", f"{API}/jobs", personalize(overwrite=True), 422),
    "other machines": ("POST", f"{API}/jobs", personalize(training={"nodes": 9}), 422),
    "an unknown setting": ("POST", f"{API}/jobs", personalize(**{"shell": "rm"}), 422),
    "a program as a model": ("POST", f"{API}/jobs", job("classify", paths=["{upload}"], trust=True), 422),
    "an interpreter": ("POST", f"{API}/jobs", job("export", python="/bin/sh"), 422),
    "a list of files": ("POST", f"{API}/jobs", job("classify", from_file="/etc/passwd"), 422),
    "a place for results": ("POST", f"{API}/jobs", job("embed", paths=["{upload}"], out="/tmp/x.parquet"), 422),  # noqa: S108
    "prompts of this machine": ("POST", f"{API}/jobs", job("generate", run="bundled", prompts_file="/etc/passwd"), 422),
    "a LoRA of this machine": ("POST", f"{API}/jobs", job("generate", run="bundled", prompts=["a"], loras=["/x:1"]), 422),
    "an encoder of this machine": ("POST", f"{API}/jobs", job("evaluate", run="bundled", encoders=["/x"]), 422),
    "a dataset": ("POST", f"{API}/jobs", job("evaluate", run="bundled", protocol="dreambooth"), 422),
    "a drawing elsewhere": ("POST", f"{API}/generate", {"json": {"settings": {"run": "bundled", "out": "/x"}}}, 422),
    "a drawing from a file": ("POST", f"{API}/generate", {"json": {"settings": {"run": "bundled", "init_image": "/x"}}}, 422),
    "a huge drawing": ("POST", f"{API}/generate", {"json": {"settings": {"run": "bundled", "prompts": ["a"], "size": "9992"}}}, 422),
    "endless drawings": ("POST", f"{API}/generate", {"json": {"settings": {"run": "bundled", "prompts": ["a"], "count": 10**6}}}, 422),
    # --- jobs
    "no such job": ("POST", f"{API}/jobs/{NOBODY}/stop", {}, 404),
    "to delete unasked": ("DELETE", f"{API}/runs/{NOBODY}", {}, 409),
    "to delete nothing": ("DELETE", f"{API}/jobs/{NOBODY}?confirm=true", {}, 404),
    "others in order": ("POST", f"{API}/jobs/order", {"json": {"ids": [NOBODY]}}, 409),
}  # fmt: skip


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, str, Path]]:
    """One studio for all of them, with one picture in it."""
    place = tmp_path_factory.mktemp("studio")
    studio = Studio(StudioSettings(folder=str(place / "runs")))
    studio.runner.begin = lambda: None  # type: ignore[method-assign]
    with TestClient(create_app(studio), base_url=ADDRESS, raise_server_exceptions=False) as client:
        yield client, upload(client, png()), place


@pytest.mark.parametrize("name", REQUESTS)
def test_a_stranger_gets(name: str, asked: tuple[TestClient, str, Path]) -> None:
    client, reference, place = asked
    method, path, what, status = REQUESTS[name]
    if "json" in what:
        what = {**what, "json": _filled(what["json"], reference)}
    answer = client.request(method, path, follow_redirects=False, **what)
    assert answer.status_code == status, answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not [path for path in place.rglob("*") if path.is_symlink()]
    assert [path.name for path in (place / "runs").iterdir()] == [".studio"]
    assert not list((place / "runs" / ".studio" / "jobs").glob("*"))


def _filled(value: Any, reference: str) -> Any:
    if isinstance(value, dict):
        return {name: _filled(one, reference) for name, one in value.items()}
    return (
        [_filled(one, reference) for one in value]
        if isinstance(value, list)
        else reference
        if value == "{upload}"
        else value
    )


def test_a_name_is_only_ever_text(asked: tuple[TestClient, str, Path]) -> None:
    client, _, place = asked
    before = {path for path in place.rglob("*") if path.is_dir()}
    name = "../../<script>alert(1)</script>\u202e.png"
    sent = client.post("/api/v1/uploads", files={"files": (name, png(seed=9))}).json()["uploads"][0]
    assert sent["name"] == "script>\\u202e.png"
    assert {path for path in place.rglob("*") if path.is_dir()} == before
    assert sorted(path.name for path in (place / "runs" / ".studio" / "uploads").glob(f"{sent['id']}*")) == [
        f"{sent['id']}.json",
        f"{sent['id']}.png",
    ]


def test_a_body_that_comes_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "SILENCE", 0.05)

    async def never() -> dict[str, Any]:
        await asyncio.sleep(5)
        return {}

    with pytest.raises(HTTPException) as told:
        asyncio.run(security._limited(never, 100)())
    assert told.value.status_code == 408


class TestBeyondThisMachine:
    """With a token, which a studio that others can reach always has."""

    @pytest.fixture
    def client(self, tmp_path: Path) -> Iterator[TestClient]:
        studio = Studio(StudioSettings(folder=str(tmp_path)), host="0.0.0.0", token=TOKEN)  # noqa: S104
        with TestClient(create_app(studio), base_url="http://192.168.0.5:8765", follow_redirects=False) as found:
            yield found

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 401),
            ({"authorization": f"Bearer {TOKEN}"}, 200),
            ({"authorization": f"bearer  {TOKEN} "}, 200),
            ({"authorization": f"Bearer {TOKEN}x"}, 401),
            ({"authorization": f"Bearer {TOKEN[:-1]}"}, 401),
            ({"authorization": "Bearer "}, 401),
            ({"authorization": "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()}, 200),
            ({"authorization": "Basic " + base64.b64encode(b"me:you").decode()}, 401),
            ({"authorization": "Basic !"}, 401),
            ({"authorization": "Bearer \u00e9".encode()}, 401),
            ({"cookie": f"femtobooth-studio={TOKEN}"}, 401),
            ({"authorization": f"Bearer {TOKEN}", "host": "evil.com"}, 403),
            ({"authorization": f"Bearer {TOKEN}", "origin": "http://evil.com"}, 403),
        ],
    )
    def test_who_may_ask(self, client: TestClient, headers: dict[str, Any], status: int) -> None:
        for path in ("/api/v1/runs", "/", "/v2/health/live"):
            assert client.get(path, headers=headers).status_code == status, path
        looks = 200 if status == 401 else status  # the page that asks for the token has its looks before it is given
        assert client.get("/static/studio.css", headers=headers).status_code == looks

    def test_a_name_that_was_given_is_ours(self, tmp_path: Path) -> None:
        settings = StudioSettings(folder=str(tmp_path), names=["Studio.example"])
        app = create_app(Studio(settings, host="0.0.0.0", token=TOKEN))  # noqa: S104
        told = {"authorization": f"Bearer {TOKEN}", "origin": "https://studio.example"}
        with TestClient(app, base_url="http://studio.example") as found:
            assert found.get("/api/v1/runs", headers=told).status_code == 200
            assert found.get("/api/v1/runs", headers={**told, "host": "other.example"}).status_code == 403

    def test_a_link_logs_in(self, client: TestClient) -> None:
        answer = client.get(f"/login?token={TOKEN}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        told = answer.headers["set-cookie"].lower()
        assert "httponly" in told
        assert "samesite=strict" in told
        assert TOKEN not in told
        assert client.get("/api/v1/runs").status_code == 200  # the client keeps the cookie

    def test_guessing_ends(self, client: TestClient) -> None:
        found = [client.get(f"/login?token={number}").status_code for number in range(12)]
        assert found[0] == 401
        assert found[-1] == 429
        assert client.get("/api/v1/runs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_who_asks_without_end_has_to_wait(asked: tuple[TestClient, str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = security.Buckets(3, 0.001)
    assert [buckets.take("one") for _ in range(4)] == [True, True, True, False]
    assert buckets.take("another")
