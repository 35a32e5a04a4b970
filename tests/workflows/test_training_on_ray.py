"""One training on two machines of a Ray cluster, whose processes the command starts: it ends as torchrun's would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import quick_start  # noqa: E402
from PIL import Image  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from femtobooth.core.files import sha256_of  # noqa: E402

STEPS, STRUCK = 12, 4
FEMTOBOOTH = [sys.executable, "-m", "femtobooth"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of two cores; a third one can come."""
    os.environ |= {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_worker_niceness": "0"}
    node = {"num_cpus": 2, "object_store_memory": 2**27}
    made = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    made.add_node(**node)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def personalize(tiny_base: Path, place: Path) -> list[str]:
    """The command, of which the places and the number of processes are left to say."""
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 255, (96, 96, 3)).astype(np.uint8)
        (place / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / "photos" / f"{index}.png")
    sets = {
        "training.trackers": "csv", "prior.images": 4, "prior.sampling_batch": 1, "prior.sampling.steps": 1,
        "samples.images": 1, "samples.sampling.steps": 1, "samples.prompts": "a [V] {class}", "validation.every": 0,
    }  # fmt: skip
    words = ["personalize", "photos", "--class-noun", "robot", "--base", str(tiny_base), "--steps", f"{STEPS}"]
    words += ["--batch-size", "1", "--checkpoint-every", "2", "--accelerator", "cpu", "--strategy", "ddp"]
    words += ["--nodes", "2", "--runs", "runs"]
    return words + [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def start(cluster: Cluster, place: Path) -> Callable[..., subprocess.Popen[str]]:
    def call(*words: str, begin: Any = quick_start.start, **environment: str) -> subprocess.Popen[str]:
        given = {**os.environ, "OMP_NUM_THREADS": "1", "FEMTOBOOTH_CACHE": str(place / "cache"), **environment}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": given, "cwd": place}
        started: subprocess.Popen[str] = begin([*FEMTOBOOTH, *words], **pipes)
        return started

    return call


@pytest.fixture
def on_ray(cluster: Cluster) -> list[str]:
    return ["--executor", "ray", "--address", cluster.address]


def weights(run: Path) -> dict[str, str]:
    found = {path.relative_to(run).as_posix(): sha256_of(path) for path in sorted(run.glob("model/**/*.safetensors"))}
    assert found
    return found


def followers() -> list[psutil.Process]:
    found = [one for one in psutil.process_iter(["cmdline"]) if "femtobooth.core.job" in (one.info["cmdline"] or ())]
    return [one for one in found if {"personalize", "finetune"} & {*one.info["cmdline"]}]


@pytest.fixture(scope="module")
def whole(personalize: list[str], place: Path, start: Callable[..., subprocess.Popen[str]]) -> Path:
    """What torchrun's two processes make, whose variables are set here by hand; and their interpreters end well."""
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "TORCHELASTIC_RUN_ID": "test"}
    ours = [
        start(
            *personalize, "--name", "whole", begin=subprocess.Popen, **both, RANK=rank, GROUP_RANK=rank, LOCAL_RANK="0"
        )
        for rank in "01"
    ]
    for one in ours:
        assert one.wait(200) == 0, one.communicate()[1][-2000:]
    return place / "runs" / "whole"


@pytest.mark.parametrize("how", ["stopped", "process", "node"])
def test_it_goes_on_to_the_bits_of_torchrun(
    how: str,
    cluster: Cluster,
    personalize: list[str],
    on_ray: list[str],
    start: Callable[..., subprocess.Popen[str]],
    place: Path,
    whole: Path,
) -> None:
    run = place / "runs" / how
    command = start(*personalize, "--name", how, *on_ray)
    while not (run / "checkpoints" / f"step-{STRUCK:06}").exists():
        assert command.poll() is None, command.communicate()[1][-2000:]
        time.sleep(0.02)
    (follower,) = followers()
    began = time.monotonic()
    if how == "stopped":
        command.send_signal(signal.SIGTERM)
    elif how == "process":
        follower.kill()
    else:
        (node,) = (one for one in cluster.list_all_nodes() if one is not cluster.head_node)
        cluster.remove_node(node, allow_graceful=False)
    said = command.communicate(timeout=100)[1]
    assert time.monotonic() - began < 60
    again = f"  -> femtobooth personalize --resume runs/{how} --executor ray --address {cluster.address}"
    lines = said.splitlines()[-2:]
    if how == "stopped":
        assert command.returncode == 143 and "and saved" in lines[0]
    else:
        assert command.returncode == 1 and lines[0].startswith("femtobooth: process 1 "), said[-2000:]
        assert {"process": ": was killed", "node": "the cluster: its task was lost"}[how] in lines[0]
    assert lines[1] == again
    assert json.loads((run / "run.json").read_text())["status"] in ("interrupted", "failed")
    psutil.wait_procs([follower], timeout=60)
    assert not followers()
    if how == "node":
        cluster.add_node(num_cpus=2, object_store_memory=2**27)
    resumed = start("personalize", "--resume", f"runs/{how}", *on_ray)
    told = resumed.communicate(timeout=200)[1]
    assert resumed.returncode == 0 and f"resuming runs/{how} at step" in told, told[-2000:]
    assert weights(run) == weights(whole)


def test_two_processes_on_each_of_two_machines(
    personalize: list[str], on_ray: list[str], start: Callable[..., subprocess.Popen[str]], place: Path
) -> None:
    alone = start(*personalize, "--name", "four", "--nodes", "1", "--devices", "4", "--steps", "3")
    assert alone.wait(200) == 0, alone.communicate()[1][-2000:]
    command = start(*personalize, "--name", "two-by-two", "--devices", "2", "--steps", "3", *on_ray)
    assert command.wait(200) == 0, command.communicate()[1][-2000:]
    assert weights(place / "runs" / "two-by-two") == weights(place / "runs" / "four")


def test_a_recognizer_learns_too(
    tiny: Path, on_ray: list[str], start: Callable[..., subprocess.Popen[str]], place: Path
) -> None:
    for index in range(8):
        path = place / "data" / ["red", "blue"][index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = np.random.default_rng(index).integers(0, 90, (6, 6, 3)) + np.array(
            [[150, 20, 20], [20, 20, 150]][index % 2]
        )
        Image.fromarray(blocks.astype(np.uint8)).resize((72, 60)).save(path)
    words = ["finetune", "data", "--model", str(tiny), "--nodes", "2", "--strategy", "ddp", "--accelerator", "cpu"]
    words += ["--steps", "2", "--batch-size", "2", "--trackers", "csv", "--result", "finetuned", "--runs", "runs"]
    command = start(*words, "--name", "classes", *on_ray)
    assert command.wait(200) == 0, command.communicate()[1][-2000:]
    assert json.loads((place / "runs" / "classes" / "run.json").read_text())["status"] == "done"


def test_what_is_not_there_is_told(
    cluster: Cluster,
    personalize: list[str],
    on_ray: list[str],
    start: Callable[..., subprocess.Popen[str]],
    place: Path,
) -> None:
    ended = {
        named: start(*personalize, "--name", "refused", *more)
        for named, more in {
            "more machines": ["--nodes", "3", *on_ray],
            "more cores": ["--devices", "3", *on_ray],
            "one machine": ["--nodes", "1", *on_ray],
            "no cluster": ["--executor", "ray", "--address", "127.0.0.1:1"],
            "which cluster": ["--executor", "ray"],
        }.items()
    }
    said = {named: one.communicate(timeout=120)[1].splitlines()[-2:] for named, one in ended.items()}
    assert {one.returncode for one in ended.values()} == {2}
    problems = {named: lines[0].removeprefix("femtobooth: ") for named, lines in said.items()}
    assert problems["more machines"] == f"--nodes 3: the cluster at {cluster.address} has 2"
    assert problems["more cores"] == "--devices 3: takes 3 cores of each machine, and this machine has fewer"
    assert problems["one machine"] == "--executor ray: starts the processes of several machines"
    assert problems["no cluster"].startswith("--address 127.0.0.1:1: no Ray cluster can be reached there")
    assert problems["which cluster"] == "--executor ray: does not say which cluster"
    assert all(lines[1].startswith("  -> ") for lines in said.values())
    assert not (place / "runs" / "refused").exists()


def test_what_another_machine_lacks_is_told(
    personalize: list[str], on_ray: list[str], start: Callable[..., subprocess.Popen[str]], place: Path, tiny_base: Path
) -> None:
    shutil.copytree(tiny_base, place / "base")
    command = start(*personalize, "--name", "lacking", "--base", "base", *on_ray)
    while not followers():
        assert command.poll() is None
        time.sleep(0.01)
    (place / "base").rename(place / "away")  # as both have one disk here, in the second between the two readings
    said = command.communicate(timeout=120)[1]
    assert command.returncode in (1, 2) and "base: no such" in said, said[-2000:]
