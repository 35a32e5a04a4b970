"""Clients that others wrote: OpenAI's library and one for A1111's API, against a real server; and what the command line draws."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image
from studio_browser import serving
from studio_client import png

from femtobooth import cli
from femtobooth.api import Recognizer
from femtobooth.pictures import records
from femtobooth.studio.library import id_of
from femtobooth.studio.state import Studio
from femtobooth.workflows.settings import StudioSettings

STEPS = {"sampling": {"steps": 2}}


class Served:
    """A studio that answers, with the tiny base in its models/."""

    def __init__(self, studio: Studio, port: int) -> None:
        self.studio, self.port, self.address = studio, port, f"http://127.0.0.1:{port}"
        self.model = studio.folder / "models" / "tiny"

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        answer = httpx.post(self.address + path, json=body, timeout=300)
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def served(tiny_sd1: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served") / "runs"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "tiny").symlink_to(tiny_sd1)
    studio = Studio(StudioSettings(folder=str(folder)))
    with serving(studio) as address:
        yield Served(studio, int(address.rpartition(":")[2]))


def generated(served: Served, tmp_path: Path, *arguments: str) -> list[bytes]:
    """What the command line writes."""
    out = tmp_path / "out"
    cli.main(["generate", str(served.model), *arguments, "--out", str(out), "--steps", "2", "-q"])
    return [path.read_bytes() for path in sorted(out.glob("*-seed*.png"))]


def test_a_picture_is_the_command_lines_byte_for_byte(served: Served, tmp_path: Path) -> None:
    settings = {"run": f"model:{id_of('tiny')}", "prompts": ["a cat"], "count": 3, "seed": 7, "batch_size": 2, **STEPS}
    made = served.post("/api/v1/generate", {"settings": settings})
    found = [httpx.get(served.address + one["url"]).content for one in made["images"]]
    assert found == generated(served, tmp_path, "a cat", "-n", "3", "--seed", "7", "--batch-size", "2")
    again = served.post("/api/v1/generate", {"settings": settings})  # by the model that stayed loaded
    assert [one["sha256"] for one in again["images"]] == [one["sha256"] for one in made["images"]]
    record = httpx.get(f"{served.address}{made['images'][2]['url']}/record").json()
    assert (record["seed"], record["prompt"], record["batch"]) == (9, "a cat", [0, 1])


def test_requests_at_once_take_turns_and_change_no_bit(served: Served) -> None:
    def ask(seed: int) -> str:
        settings = {"run": f"model:{id_of('tiny')}", "prompts": ["a cat"], "count": 1, "seed": seed, **STEPS}
        digest: str = served.post("/api/v1/generate", {"settings": settings})["images"][0]["sha256"]
        return digest

    alone = [ask(seed) for seed in range(3)]
    together: dict[int, str] = {}
    threads = [threading.Thread(target=lambda seed=seed: together.update({seed: ask(seed)})) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(3)] == alone


def test_openais_library_draws(served: Served, tmp_path: Path) -> None:
    client = openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()] == ["bundled", "tiny"]
    more = {"seed": 7}
    answer = client.images.generate(
        model="tiny", prompt="a cat", n=1, size="auto", response_format="b64_json", extra_body=more
    )
    picture = base64.b64decode((answer.data or [])[0].b64_json or "")
    record = records.of_text(Image.open(BytesIO(picture)).text)  # type: ignore[attr-defined]
    assert record is not None
    assert (record["prompt"], record["seed"], record["settings"]["width"]) == ("a cat", 7, 64)
    by_url = client.images.generate(model="tiny", prompt="a cat", response_format="url", extra_body=more)
    assert httpx.get((by_url.data or [])[0].url or "").content == picture
    with pytest.raises(openai.NotFoundError, match="there is no other; one of bundled, tiny"):
        client.images.generate(model="other", prompt="a cat")
    with pytest.raises(openai.UnprocessableEntityError, match="neither WIDTHxHEIGHT nor one side") as told:
        client.images.generate(model="tiny", prompt="a cat", size="63x64")  # type: ignore[call-overload]
    assert told.value.param == "size"


def test_a_client_of_a1111_draws(served: Served, tmp_path: Path) -> None:
    client = webuiapi.WebUIApi(host="127.0.0.1", port=served.port, sampler="DDIM", steps=2)
    assert client.util_get_model_names() == ["bundled", "tiny"]
    client.util_set_model("tiny")
    assert client.util_get_current_model() == "tiny"
    assert "Euler a" in client.util_get_sampler_names()
    assert client.get_progress()["progress"] == 0
    drawn = client.txt2img(prompt="a cat", seed=7, steps=2, cfg_scale=7.5, width=64, height=64, batch_size=2)
    assert drawn.info["all_seeds"] == [7, 8]
    expected = generated(served, tmp_path, "a cat", "-n", "2", "--seed", "7", "--batch-size", "2")
    assert [np.asarray(one).tolist() for one in drawn.images] == [
        np.asarray(Image.open(BytesIO(one))).tolist() for one in expected
    ]
    mask = Image.fromarray(np.pad(np.full((32, 64), 255, np.uint8), ((32, 0), (0, 0))))
    redrawn = client.img2img(
        images=[drawn.image], prompt="a dog", seed=1, steps=2, cfg_scale=7.5, denoising_strength=0.9, mask_image=mask,
        width=64, height=64,
    )  # fmt: skip
    before, after = np.asarray(drawn.image), np.asarray(redrawn.image)
    assert np.array_equal(after[:32], before[:32])
    assert not np.array_equal(after[32:], before[32:])
    with pytest.raises(RuntimeError, match="404"):
        client.txt2img(prompt="a cat", sampler_name="LMS")


def test_the_open_inference_protocol(served: Served) -> None:
    told = httpx.get(f"{served.address}/v2/models/bundled").json()
    assert told["inputs"][0] == {"name": "image", "datatype": "UINT8", "shape": [-1, 64, 64, 3]}
    assert httpx.get(f"{served.address}/v2/health/ready").json() == {"ready": True}
    body = png(64)
    pixels = np.asarray(Image.open(BytesIO(body)))
    raw = {"name": "image", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": pixels.ravel().tolist()}
    found = served.post("/v2/models/bundled/infer", {"id": "7", "inputs": [raw]})
    outputs = {one["name"]: one for one in found["outputs"]}
    (expected,) = Recognizer.load("bundled").classify(Image.fromarray(pixels))
    assert (found["id"], outputs["label"]["data"]) == ("7", [expected.label])
    place = Recognizer.load("bundled").labels.index(expected.label)
    assert outputs["probabilities"]["data"][place] == pytest.approx(expected.confidence, abs=1e-5)
    sent = {"name": "picture", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(body).decode()]}
    again = served.post("/v2/models/bundled/infer", {"inputs": [sent], "outputs": [{"name": "label"}]})
    assert [one["data"] for one in again["outputs"]] == [[expected.label]]
    assert served.post("/v2/models/bundled/infer", {"inputs": [{**raw, "shape": [1, 8, 8, 3]}]}, 422)[
        "error"
    ].startswith("`image`")
    assert served.post("/v2/models/none/infer", {"inputs": [raw]}, 404) == {
        "error": "no such model; it may have been deleted; load the list again"
    }


def test_what_is_drawn_can_be_stopped(served: Served) -> None:
    settings = {
        "run": f"model:{id_of('tiny')}",
        "prompts": ["a cat"],
        "count": 60,
        "batch_size": 1,
        "sampling": {"steps": 40},
    }
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(
            httpx.post(f"{served.address}/api/v1/generate", json={"settings": settings}, timeout=300)
        )
    )
    asking.start()
    for _ in range(600):
        told = httpx.get(f"{served.address}/api/v1/generate/progress").json()
        if told["done"] > 0:
            break
        time.sleep(0.05)
    assert httpx.post(f"{served.address}/api/v1/generate/stop").json() == {"stopped": True}
    asking.join(60)
    assert told["total"] == 60
    assert httpx.get(f"{served.address}/api/v1/generate/progress").json()["done"] == 0
    assert (answers[0].status_code, answers[0].json()["error"]["problem"]) == (409, "it was stopped")


def test_search_finds_the_picture_itself(served: Served) -> None:
    pictures = [
        httpx.post(f"{served.address}/api/v1/uploads", files={"files": ("a.png", png(64, seed))}).json()
        for seed in range(2)
    ]
    references = [one["uploads"][0]["reference"] for one in pictures]
    vectors = served.post("/api/v1/embed", {"pictures": references})
    assert np.array(vectors).shape == (2, 384)
    (one,) = served.post("/api/v1/classify", {"pictures": references[:1], "top_k": 2})
    assert len(one["top"]) == 2
    assert not any(path.name.startswith(".tmp-") for path in served.studio.uploads.folder.iterdir())
