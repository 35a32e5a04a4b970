"""Pictures of many subjects by Ray Serve: those of the command line, whatever was drawn before or came meanwhile."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
pytest.importorskip("grpc_reflection", reason="Ray Serve is not installed: pip install '.[ray]'")

import httpx  # noqa: E402
import numpy as np  # noqa: E402
import openai  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from femtobooth.core import config  # noqa: E402
from femtobooth.core.errors import ModelError, SettingsError  # noqa: E402
from femtobooth.core.files import place_folder  # noqa: E402
from femtobooth.generator.settings import GenerateSettings, PersonalizeSettings  # noqa: E402
from femtobooth.studio.refusals import Busy  # noqa: E402
from femtobooth.studio.serving.runs import Runs, refuse_changed  # noqa: E402
from femtobooth.workflows import generate, personalize  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CORES = 3


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one base: `a` to `c` with adapters that draw differently, `word` beside whose adapter a word trained that
    was not in the tokenizer, and one whose model is `whole`.
    """
    folder = tmp_path_factory.mktemp("serving")
    photos = folder / "photos"
    photos.mkdir()
    for index in range(3):
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (96, 96, 3)).astype(np.uint8)).save(
            photos / f"{index}.png"
        )
    given = {
        "base": str(tiny_base), "runs": str(folder / "runs"), "photos": {"paths": [str(photos)], "class_noun": "dog"},
        "prior": {"images": 2, "sampling_batch": 2, "sampling": {"steps": 1}}, "validation": {"every": 0},
        "samples": {"images": 1, "prompts": ["a [V] {class}"], "sampling": {"steps": 1}},
        "training": {"steps": 1, "trackers": ["csv"], "accelerator": "cpu"},
    }  # fmt: skip
    word = {"train": {"parts": ["lora", "token"]}, "identifier": {"token": "femtobot"}}
    for name, more in {"a": {"train": {"parts": ["lora"]}}, "word": word, "whole": {}}.items():
        personalize.run(config.settle(PersonalizeSettings, given | {"name": name, **more}))
    for seed, name in enumerate("bc"):
        shutil.copytree(folder / "runs" / "a", folder / "runs" / name)
        move(folder / "runs" / name / "model", seed)
    return folder / "runs"


def move(model: Path, seed: int) -> None:
    """Make another adapter of the one in a folder."""
    weights = model / "a.safetensors"
    torch.manual_seed(seed)
    moved = {key: one if one.ndim == 0 else one + torch.randn_like(one) for key, one in load_file(weights).items()}
    save_file(moved, weights)


def retrained(run: Path, seed: int) -> None:
    """Put another model in the place of a run's, as a training does."""
    place = run / ".tmp-model"
    shutil.copytree(run / "model", place)
    move(place, seed)
    place_folder(place, run / "model", overwrite=True)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster, which this process is connected to."""
    os.environ |= {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}
    head = {"num_cpus": CORES, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def serving(address: str, *given: object, waiting: Callable[[str], None] = print) -> Iterator[tuple[int, str, Any]]:
    """Serve in a process; gives its number, the first line with its address, and a client. Other lines are given to
    `waiting`.
    """
    command = [sys.executable, "-m", "femtobooth", "serve", *map(str, given), "--port", "0", "--address", address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            for line in process.stderr:
                if "/v1" in line:
                    break
                waiting(line)
            with httpx.Client(base_url=re.findall(r"http://\S+", line)[0], timeout=120) as client:
                yield process.pid, line, client
        finally:
            process.send_signal(signal.SIGTERM)
            said = process.stderr.read()
    assert "Traceback" not in said
    assert process.returncode == 0


def generated(run: Path, out: Path, **given: Any) -> list[bytes]:
    """What the command line draws."""
    settings = {"prompts": ["a [V] dog"], "count": 2, "seed": 7, "run": str(run), "out": str(out), **given}
    torch.set_num_threads(1)
    return [
        (out / one["file"]).read_bytes() for one in generate.run(config.settle(GenerateSettings, settings))["images"]
    ]


def drawn(client: httpx.Client, name: str) -> list[bytes]:
    """What is served."""
    asked = {"model": name, "prompt": "a [V] dog", "n": 2, "seed": 7}
    answer = client.post("/images/generations", json=asked).raise_for_status().json()
    assert answer["size"] == "64x64"
    return [base64.b64decode(one["b64_json"]) for one in answer["data"]]


def test_runs_are_found(runs: Path, tmp_path: Path) -> None:
    folder = str(runs)
    found = Runs([folder])
    assert found.names() == ["a", "b", "c", "whole", "word"]
    assert found.bases().keys() == {None, found.find("a").base} and found.find("b").base == found.find("word").base
    assert Runs(["bundled", f"{runs}/a/model"]).names() == ["bundled", "a"]
    with pytest.raises(SettingsError, match="are both called a\n  -> give one of them"):
        Runs([folder, f"{runs}/a"])
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text("{}")
    with pytest.raises(ModelError, match="this run is not finished and has no model yet"):
        Runs([str(tmp_path / "begun")])
    assert Runs([str(tmp_path)]).names() == []


def test_what_came_went_or_changed_is_seen(runs: Path, tmp_path: Path) -> None:
    served = Runs([str(tmp_path)])
    assert served.find("a") is None
    shutil.copytree(runs / "a", tmp_path / "a")
    first = served.find("a")
    assert first is not None and served.find("a") is first
    refuse_changed(first.reference, first.stamp)
    retrained(tmp_path / "a", 3)
    with pytest.raises(Busy, match="its files are being changed"):
        refuse_changed(first.reference, first.stamp)
    second = served.find("a")
    assert second is not None and (second.base, second.reference) == (first.base, first.reference)
    assert second.stamp != first.stamp
    shutil.copytree(runs / "a" / "model", tmp_path / "half" / "model")
    (tmp_path / "half" / "model" / "a.safetensors").unlink()
    assert served.names() == ["a"]  # run.json has not come yet
    shutil.copyfile(runs / "a" / "run.json", tmp_path / "half" / "run.json")
    assert served.names() == ["a", "half"]
    (tmp_path / "a").rename(tmp_path / ".tmp-old-a")
    assert served.names() == ["half"] and served.find("a") is None


def test_pictures_are_those_of_the_command_line(runs: Path, address: str, tmp_path: Path) -> None:
    expected = {name: generated(runs / name, tmp_path / name) for name in ("a", "b", "c", "word", "whole")}
    assert len({one for pictures in expected.values() for one in pictures}) == 10
    release = tmp_path / "release"

    @ray.remote(num_cpus=CORES)
    def full() -> None:
        while not release.exists():
            time.sleep(0.1)

    busy, lines = full.remote(), []
    while ray.available_resources().get("CPU"):
        time.sleep(0.1)
    began = time.monotonic()

    def waiting(line: str) -> None:
        lines.append(line)
        if "waiting for room" in line:
            assert time.monotonic() - began < 60  # most of it imports
            release.touch()

    with serving(address, runs, "--adapters", 2, "--replicas", 1, waiting=waiting) as (pid, said, client):
        ray.get(busy)
        assert any("1 replica of 1 CPU needs 1, and 0 of the cluster's 3 are free" in line for line in lines)
        assert "5 models, 1 base in memory;" in said
        from ray import serve  # here, where its warnings of its own deprecations are nobody's

        replica = serve.get_app_handle(f"femtobooth-{pid}-0")

        def held() -> list[str]:
            return [Path(one).name for one in replica.held.remote().result()["models"]]

        for name, there in (
            ("a", "a"),
            ("b", "a b"),
            ("a", "b a"),
            ("word", "a word"),
            ("b", "word b"),
            ("word", "b word"),
        ):
            assert drawn(client, name) == expected[name]
            assert held() == there.split()
        assert drawn(client, "c") == expected["c"]
        assert drawn(client, "whole") == expected["whole"]  # by a replica that begins now

        assert [one["id"] for one in client.get("/models").json()["data"]] == ["a", "b", "c", "whole", "word"]
        answer = client.post("/images/generations", json={"model": "d", "prompt": "a dog"})
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == "`model`: there is no d; one of a, b, c, whole, word"
        answer = client.post("/images/generations", json={"model": "a", "prompt": "a dog", "size": "65x65"})
        assert answer.status_code == 422 and "multiples of 8" in answer.json()["error"]["message"]
        answer = client.get("/models", headers={"host": "elsewhere.example"})
        assert answer.status_code == 403
        assert answer.json()["error"]["message"].startswith("this is not the host that was asked for; open http://")

        try:  # what comes, changes and goes is seen at once
            shutil.copytree(runs / "b", runs / "d")
            retrained(runs / "b", 9)
            after = generated(runs / "b", tmp_path / "after")
            assert after != expected["b"] and drawn(client, "b") == after
            (same, *_), (other, *_) = drawn(client, "d"), expected["b"]
            assert (np.asarray(Image.open(_file(same))) == np.asarray(Image.open(_file(other)))).all()
            weights = runs / "c" / "model" / "a.safetensors"
            whole = weights.read_bytes()
            weights.write_bytes(whole[:-1000])  # as where it is being copied
            answer = client.post("/images/generations", json={"model": "c", "prompt": "a [V] dog"})
            assert answer.status_code == 422 and "a.safetensors" in answer.json()["error"]["message"]
            weights.write_bytes(whole)
            assert drawn(client, "c") == expected["c"]
            (runs / "d" / "model").rename(runs / "d" / "gone")
            assert client.post("/images/generations", json={"model": "d", "prompt": "a dog"}).status_code == 404
            assert "d" not in [one["id"] for one in client.get("/models").json()["data"]]
        finally:
            shutil.rmtree(runs / "d", ignore_errors=True)
    assert serve.status().applications == {}


def _file(data: bytes) -> Any:
    from io import BytesIO

    return BytesIO(data)


def test_too_many_are_told_to_wait_and_who_has_gone_costs_nothing(runs: Path, address: str, tmp_path: Path) -> None:
    expected = {name: generated(runs / name, tmp_path / name, precision="bf16") for name in ("a", "word")}
    arguments = (runs / "a", runs / "word", "--replicas", 1, "--target-requests", 1, "--precision", "bf16")
    with serving(address, *arguments) as (pid, _, client):
        assert drawn(client, "a") == expected["a"] and drawn(client, "word") == expected["word"]
        assert drawn(client, "a") == expected["a"] != generated(runs / "a", tmp_path / "fp32")
        from ray import serve

        replica = serve.get_app_handle(f"femtobooth-{pid}-0")
        asked = {"model": "a", "prompt": "a dog", "seed": 1}
        longer = {**asked, "size": "128x128"}

        def ask(this: Any) -> httpx.Response:
            return client.post("/images/generations", json=this)

        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(ask, [asked] * 40))
        busy = [one for one in answers if one.status_code != 200]
        assert len(busy) > 5 and {one.status_code for one in busy} == {503}
        assert {int(one.headers["retry-after"]) for one in busy} == {10}
        message = "too many requests wait already; try again later"
        told = {"message": message, "type": "server_error", "param": None, "code": None}
        assert all(one.json()["error"].items() >= told.items() for one in busy)
        assert len({one.json()["data"][0]["b64_json"] for one in answers if one.status_code == 200}) == 1

        before = replica.held.remote().result()["drawn"]
        with ThreadPoolExecutor(10) as pool:
            staying = [pool.submit(ask, longer) for _ in range(2)]
            time.sleep(0.3)
            for one in [pool.submit(_gone, client.base_url, longer) for _ in range(8)]:
                one.result()
            assert {one.result().status_code for one in staying} == {200}
        assert ask(asked).status_code == 200
        assert replica.held.remote().result()["drawn"] - before == 3  # of 11
        official = openai.OpenAI(base_url=str(client.base_url), api_key="none", max_retries=0)
        with pytest.raises(openai.NotFoundError, match="there is no other; one of a, word"):
            official.images.generate(model="other", prompt="a dog")


def _gone(url: httpx.URL, asked: Any) -> None:
    """Ask, and close the connection while it waits."""
    with suppress(httpx.TimeoutException):
        httpx.post(f"{url}images/generations", json=asked, timeout=0.5)


def test_what_can_never_fit_is_refused(runs: Path, address: str) -> None:
    def refused(*given: object, address: str = address) -> str:
        command: Sequence[str] = [sys.executable, "-m", "femtobooth", "serve", *map(str, given), "--address", address]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 2
        return done.stderr

    assert "one process needs 4 cores, which no machine of the cluster has" in refused(runs, "--threads", CORES + 1)
    assert "127.0.0.1:9: no Ray cluster can be reached there" in refused(runs, address="127.0.0.1:9").replace("=", " ")
    assert "4: 4 in all do not fit the cluster, which has room for 3" in refused(runs, "--replicas", CORES + 1)
