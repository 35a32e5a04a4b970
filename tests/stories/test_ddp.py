"""Two processes on a CPU (gloo), started by the command itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quick_start
import torch

from femtobooth.core.event_log import read_events

STEPS, ACCUMULATE, CLASS_IMAGES = 2, 2, 5


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny: Path, photos: Path
) -> tuple[Path, list[list[dict[str, Any]]]]:
    """The runs folder, and what each of two processes wrote down."""
    folder = tmp_path_factory.mktemp("ddp")
    sets = {
        "training.batch_size": 1, "training.trackers": "csv", "training.checkpoint_every": 1, "prior.images": CLASS_IMAGES,
        "prior.sampling_batch": 1, "prior.sampling.steps": 1, "samples.images": 1, "samples.sampling.steps": 1,
        "samples.prompts": "a [V] {class}", "train.unet_learning_rate": "1e-3",
        "validation.every": 1, "validation.encoder": str(tiny), "validation.steps": 1, "validation.select": "final",
    }  # fmt: skip
    command = [
        sys.executable,
        "-c",
        quick_start.RANKS,
        str(Path(__file__).with_name("ddp_worker.py")),
        "personalize",
        str(photos),
        "--class-noun",
        "robot",
    ]
    command += [
        "--base",
        str(tiny_base),
        "--runs",
        str(folder / "runs"),
        "--steps",
        str(STEPS),
        "--accumulate",
        str(ACCUMULATE),
    ]
    command += ["--devices", "2", "--accelerator", "cpu", "--strategy", "ddp"]
    command += [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    environment = {
        **os.environ,
        "STORY_LOG": str(folder),
        "FEMTOBOOTH_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    ended = quick_start.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    logs = [[json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]
    return folder / "runs", logs


def test_every_process_draws_its_own_randomness(story: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    draws = [
        [entry for entry in log if entry["kind"] == "draw" and entry["purpose"] in ("instance", "prior")]
        for log in story[1]
    ]
    places = [(purpose, step) for step in range(STEPS * ACCUMULATE) for purpose in ("instance", "prior")]
    assert [[(entry["purpose"], entry["micro_step"]) for entry in log] for log in draws] == [places, places]
    for name in ("noise", "latents"):
        assert len({entry[name] for log in draws for entry in log}) == 2 * len(places)


def test_all_processes_end_with_the_same_parameters(
    story: tuple[Path, list[list[dict[str, Any]]]], weights: Callable[[Path], dict[str, torch.Tensor]], tiny_base: Path
) -> None:
    first, second = ([entry for entry in log if entry["kind"] == "trained"] for log in story[1])
    assert first == second
    assert len(first) == 1
    (run,) = story[0].iterdir()
    old, new = weights(tiny_base), weights(run / "model")
    assert sum(not torch.equal(old[name], new[name]) for name in old) == first[0]["count"]


def test_class_images_are_split_without_duplicates(story: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    drawn = [[entry["index"] for entry in log if entry["kind"] == "class image"] for log in story[1]]
    assert sorted(drawn[0] + drawn[1]) == list(range(CLASS_IMAGES))
    assert abs(len(drawn[0]) - len(drawn[1])) <= 1


def test_the_first_process_alone_validates(story: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    (run,) = story[0].iterdir()
    assert [point["step"] for point in json.loads((run / "validation" / "validation.json").read_text())["points"]] == [
        0,
        1,
        2,
    ]
    losses = [
        sum(entry["purpose"] == "deterministic loss" for entry in log if entry["kind"] == "draw") for log in story[1]
    ]
    assert losses == [2, 0]  # before the first step and after the last


def test_one_run_folder_and_one_row_a_step(
    story: tuple[Path, list[list[dict[str, Any]]]], curve: Callable[[Path], list[dict[str, str]]]
) -> None:
    (run,) = story[0].iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert [row["step"] for row in curve(run)] == [str(step) for step in range(STEPS + 1)]
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-000001", "step-000002"]
    assert not list(run.rglob(".tmp-*"))


def test_one_process_tells_what_happened(story: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    (run,) = story[0].iterdir()
    events = read_events(run / "events.jsonl")
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    began = [event["stage"] for event in events if event["kind"] == "stage" and event["state"] == "running"]
    assert began.count(["training"]) == 1
    assert [event["step"] for event in events if event["kind"] == "metrics" and "loss/instance" in event["values"]] == [
        1,
        2,
    ]
