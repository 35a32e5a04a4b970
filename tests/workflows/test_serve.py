"""Pictures of many subjects by Ray Serve: those of the command line, whatever was drawn before."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
pytest.importorskip("grpc_reflection", reason="Ray Serve is not installed: pip install '.[ray]'")

import httpx  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from femtobooth.core import config  # noqa: E402
from femtobooth.core.errors import ModelError, SettingsError  # noqa: E402
from femtobooth.generator.settings import GenerateSettings, PersonalizeSettings  # noqa: E402
from femtobooth.studio.serving.start import by_base, runs_by_name  # noqa: E402
from femtobooth.workflows import generate, personalize  # noqa: E402


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one base, `a` to `c`, with adapters that draw differently; and one whose model is whole."""
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
    personalize.run(config.settle(PersonalizeSettings, given | {"name": "a", "train": {"parts": ["lora"]}}))
    personalize.run(config.settle(PersonalizeSettings, given | {"name": "whole", "runs": str(folder)}))
    for seed, name in enumerate("bc"):
        shutil.copytree(folder / "runs" / "a", folder / "runs" / name)
        weights = folder / "runs" / name / "model" / "a.safetensors"
        torch.manual_seed(seed)
        moved = {key: one if one.ndim == 0 else one + torch.randn_like(one) for key, one in load_file(weights).items()}
        save_file(moved, weights)
    return folder / "runs"


def test_runs_are_found(runs: Path) -> None:
    folder = str(runs)
    found = runs_by_name([folder])
    assert found == {name: str(runs / name) for name in "abc"} and by_base(found) == [found]
    with pytest.raises(SettingsError, match="are both called a\n  -> give one of them"):
        runs_by_name([folder, f"{runs}/a"])
    with pytest.raises(ModelError, match="is a whole model, no adapter that shares its base"):
        runs_by_name([str(runs.parent / "whole")])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_those_of_the_command_line(runs: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    given = {"prompts": ["a [V] dog"], "count": 2, "seed": 7}
    expected = {}
    for name in "abc":
        made = generate.run(
            config.settle(GenerateSettings, given | {"run": str(runs / name), "out": str(tmp_path / name)})
        )
        expected[name] = [(tmp_path / name / one["file"]).read_bytes() for one in made["images"]]
    assert len({one for pictures in expected.values() for one in pictures}) == 6

    os.environ |= {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_worker_niceness": "0"}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
    )
    command = [
        sys.executable,
        "-m",
        "femtobooth",
        "serve",
        str(runs),
        "--port",
        "0",
        "--adapters",
        "2",
        "--address",
        cluster.address,
    ]
    try:
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            said = next(line for line in process.stderr if "/v1" in line)
            assert "3 models of 1 base;" in said
            with httpx.Client(base_url=re.findall(r"http://\S+", said)[0], timeout=60) as client:

                def drawn(name: str) -> list[bytes]:
                    asked = {"model": name, "prompt": "a [V] dog", "n": 2, "seed": 7}
                    answer = client.post("/images/generations", json=asked).raise_for_status().json()
                    assert answer["size"] == "64x64"
                    return [base64.b64decode(one["b64_json"]) for one in answer["data"]]

                from ray import serve  # here, where its warnings of its own deprecations are nobody's

                ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
                replica = serve.get_app_handle(f"femtobooth-{process.pid}-0")
                for name, held in (("a", "a"), ("b", "ab"), ("a", "ba"), ("c", "ac"), ("b", "cb")):
                    assert drawn(name) == expected[name]
                    assert replica.held.remote().result()["adapters"] == list(held)

                assert [one["id"] for one in client.get("/models").json()["data"]] == ["a", "b", "c"]
                answer = client.post("/images/generations", json={"model": "d", "prompt": "a dog"})
                assert answer.status_code == 404
                assert answer.json()["error"]["message"] == "`model`: there is no d; one of a, b, c"
                answer = client.post("/images/generations", json={"model": "a", "prompt": "a dog", "size": "65x65"})
                assert answer.status_code == 422 and "multiples of 8" in answer.json()["error"]["message"]
                assert client.get("/models", headers={"host": "elsewhere.example"}).status_code == 403
            process.send_signal(signal.SIGTERM)
            assert "Traceback" not in process.stderr.read()
        assert process.returncode == 0
        assert serve.status().applications == {}
    finally:
        ray.shutdown()
        cluster.shutdown()
