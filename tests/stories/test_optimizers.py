"""Prodigy and schedule-free AdamW through the whole command, and after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from femtobooth.core.files import write_json
from femtobooth.training import checkpoints

Weights = Callable[[Path], dict[str, torch.Tensor]]
Curve = Callable[[Path], list[dict[str, str]]]
STEPS = 4
FLAGS: dict[str, list[object]] = {
    "prodigy": ["--unet-lr", 2, "--text-encoder-lr", 2, "--validate-every", 0],  # the file gives AdamW's rates
    "schedulefree": ["--warmup", 2, "--validate-every", 2],
}


@pytest.fixture(scope="module")
def run(personalize: Callable[..., Path], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`run(optimizer)`: a run of four steps with a sample sheet, made once."""
    runs, made = tmp_path_factory.mktemp("optimizers"), dict[str, Path]()

    def call(name: str) -> Path:
        flags = ["--optimizer", name, "--steps", STEPS, "--checkpoint-every", 2, "--sample-every", 2, *FLAGS[name]]
        flags += ["--validation-encoder", "bundled", "--select", "final"]
        quick = ["validation.steps=1", "validation.images=1", "validation.prompts=a [V] {class}"]
        quick += ["validation.loss_every=2"]
        flags += [part for one in quick for part in ("--set", one)]
        if name not in made:
            made[name] = personalize(tiny_base, runs, name, *flags)
        return made[name]

    return call


def state(run: Path, step: int = STEPS) -> dict[str, Any]:
    return checkpoints.state_of(run / "checkpoints" / f"step-{step:06d}")


def stored(name: str) -> str:
    """What a weight in training is called in model/."""
    return name.replace(".", "/", 1).replace("text_encoder/", "text_encoder/text_model.")


@pytest.mark.parametrize("name", FLAGS)
def test_killed_and_resumed_it_ends_the_same(
    name: str, run: Callable[[str], Path], femtobooth: Callable[..., int], weights: Weights, curve: Curve
) -> None:
    whole = run(name)
    cut = shutil.copytree(whole, whole.with_name(f"{name}-cut"), ignore=shutil.ignore_patterns("model", "overview.png"))
    shutil.rmtree(cut / "checkpoints" / f"step-{STEPS:06d}")
    facts = json.loads((cut / "run.json").read_text())
    kept = {key: value for key, value in facts.items() if key != "selected"}
    write_json(cut / "run.json", kept | {"status": "running", "worker": None})
    assert femtobooth("personalize", "--resume", cut) == 0
    found, expected = weights(cut / "model"), weights(whole / "model")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    measured = ("loss/", "learning_rate/", "deterministic/", "validation/")
    first, second = (
        [{k: v for k, v in row.items() if k.startswith(measured)} for row in curve(one)] for one in (whole, cut)
    )
    assert first == second


def test_the_model_of_schedule_free_is_its_average(run: Callable[[str], Path], weights: Weights) -> None:
    made = run("schedulefree")
    found, last = weights(made / "model"), state(made)
    y, (optimizer,) = last["state_dict"], last["optimizer_states"]
    order = [name for part in ("unet.", "text_encoder.") for name in y if name.startswith(part)]
    assert len(order) == len(optimizer["state"])
    moved = 0
    for number, name in enumerate(order):
        z = optimizer["state"][number]["z"]
        torch.testing.assert_close(found[stored(name)], (y[name] - 0.1 * z) / 0.9, rtol=1e-5, atol=1e-6)
        moved += not torch.equal(found[stored(name)], y[name])
    assert moved > len(order) / 2


def test_the_rate_that_prodigy_found_is_in_the_curve(run: Callable[[str], Path], curve: Curve) -> None:
    made = run("prodigy")
    rows = {int(row["step"]): row for row in curve(made)}
    for step in (2, STEPS):
        (optimizer,) = state(made, step)["optimizer_states"]
        for group in optimizer["param_groups"]:
            assert float(rows[step][f"learning_rate/{group['name']}"]) == 2 * group["d"]
            assert group["d"] >= 1e-6
