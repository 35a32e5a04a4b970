"""personalize --plan: what is told, what fits, and that nothing is loaded, written or needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import femtobooth
from femtobooth import cli
from femtobooth.core import config
from femtobooth.core.errors import SettingsError
from femtobooth.core.machine import size_in_bytes
from femtobooth.core.tensors import MAPPED
from femtobooth.generator import activations
from femtobooth.generator.formats import folder, parts
from femtobooth.generator.load import load
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.workflows.personalizing import told
from femtobooth.workflows.personalizing.planning import Planner
from femtobooth.workflows.personalizing.savings import cheapest, possible, with_changes

MIB = 1 << 20


def planner(base: Path) -> Planner:
    return Planner(load(str(base), weights=False), 64, base, libraries=0)


def settings(**groups: Any) -> PersonalizeSettings:
    return config.resolve(PersonalizeSettings, {"photos": {"paths": ["x"], "class_noun": "robot"}}, groups)


def test_a_plan_is_told_without_weights_device_or_package(
    tiny_base: Path,
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(parts, "fill", None)
    monkeypatch.setattr(folder, "fill_part", None)
    typed = [
        "personalize",
        str(photo_folder),
        "--class-noun",
        "robot",
        "--base",
        str(tiny_base),
        "--runs",
        str(tmp_path),
    ]
    typed += ["--accelerator", "gpu", "--optimizer", "adamw8bit", "--prior-weight", "0", "--plan", "--json"]
    before = sorted(tmp_path.rglob("*"))
    cli.main(typed)
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert sorted(tmp_path.rglob("*")) == before
    rows = {row["name"]: row for row in told["parts"]}
    unet, text = (rows[name]["weights"] for name in ("unet", "text_encoder"))
    assert (rows["unet"]["gradients"], rows["unet"]["optimizer"]) == (unet, unet // 2)  # 8 bits, twice
    phases = {row["name"]: row for row in told["phases"]}
    assert list(phases) == ["loading", "identifier", "encoding photos", "training", "samples", "validation", "result"]
    training = phases["training"]
    # weights, gradients and two bytes a number; the VAE is away
    trained = rows["text_encoder"]["gradients"]
    assert training["accelerator"] - training["passing"] == 2 * unet + unet // 2 + text + trained + trained // 2
    assert told["where"] == "accelerator"
    assert told["peak"] == max(row["accelerator"] for row in phases.values())
    assert "What trains" in err and "validation" in err


def test_frozen_parts_and_averages_are_where_they_are_told_to_be(tiny_base: Path) -> None:
    plans = planner(tiny_base)
    known = {one.name: one for one in plans.plan(settings()).parts}
    frozen = {one.name: one for one in plans.plan(settings(train={"parts": ["unet"]})).phases}
    training, samples = frozen["training"], frozen["samples"]
    both = known["text_encoder"].weights + known["vae"].weights  # only beside training
    held = 4 * known["unet"].weights
    assert training.accelerator - training.passing == held
    assert training.process - training.passing == samples.accelerator - samples.passing == held + both
    averaged = {one.name: one for one in plans.plan(settings(train={"parts": ["unet"]}, training={"ema": 0.9})).phases}
    assert averaged["training"].accelerator - training.accelerator == known["unet"].weights
    # beside the average, while it is drawn from, what it takes the place of
    assert averaged["samples"].accelerator - samples.accelerator == 2 * known["unet"].weights


def test_stable_diffusion_xl_is_planned_too(tiny_xl: Path) -> None:
    plans = planner(tiny_xl)
    known = {one.name: one for one in plans.plan(settings(train={"parts": ["text_encoder"]})).parts}
    assert [known[name].trained > 0 for name in ("unet", "text_encoder", "text_encoder_2")] == [False, True, True]
    last = sum(one.numel() for one in plans.base.text_encoder.encoder.layers[-1].parameters()) + 2 * 32
    assert known["text_encoder"].frozen == last  # which nothing reads
    adapted = plans.plan(settings(train={"parts": ["lora"], "frozen_precision": "int8"}))
    assert adapted.peak("accelerator").accelerator > 0


def test_pictures_in_tiles_need_less(tiny_base: Path) -> None:
    plans = Planner(load(str(tiny_base), weights=False), 640, tiny_base, libraries=0)
    samples = {"batch_size": 1, "sampling": {"guidance": 1}}
    given = settings(train={"parts": ["lora"]}, prior={"target": "photos"}, samples=samples)
    (saving,) = [one for one in possible(given, "process", 640) if one.of == "decoding"]
    assert saving.changes == {"samples.sampling.tiles": True}
    (before, after) = (plans.plan(one) for one in (given, with_changes(given, saving.changes)))
    found = {one.name: one for one in after.phases}
    for phase in before.phases:
        lower = phase.name in ("samples", "result")
        assert (found[phase.name].passing < phase.passing) == lower, phase.name
    decoding = [activations.picture_passes(plans.base, 640, tiles)[1] for tiles in (False, True)]
    assert decoding[1] < decoding[0] * 0.7
    assert [one.of for one in possible(given, "process", 512)].count("decoding") == 0


def test_loading_holds_the_base_and_a_tensor_of_its_file(tiny_base: Path) -> None:
    plans = planner(tiny_base)
    loading = plans.plan(settings(train={"parts": ["unet"]})).phases[0]
    tensors = [one for name in plans.base.NETWORKS for one in getattr(plans.base, name).parameters()]
    largest = max(tensors, key=torch.numel)
    buffer = 77 * 8  # the text encoder's positions
    assert (loading.name, loading.passing) == ("loading", MAPPED + 2 * 4 * largest.numel())
    assert loading.process == 4 * sum(map(torch.numel, tensors)) + buffer + loading.passing


def test_the_cheapest_savings_fit_and_none_could_be_left_out(tiny_base: Path) -> None:
    plans, given = planner(tiny_base), settings(training={"batch_size": 4, "ema": 0.9})
    needs = plans.plan(given).peak("process").process
    assert [one.savings for one in cheapest(plans, given, needs, "process")] == [()]
    found = cheapest(plans, given, needs * 4 // 5, "process")
    assert found and [one.price for one in found] == sorted(one.price for one in found)
    for one in found:
        changed = with_changes(given, *(saving.changes for saving in one.savings))
        assert plans.plan(changed).peak("process").process == one.peak <= needs * 4 // 5
        for left_out in one.savings:
            rest = [saving.changes for saving in one.savings if saving is not left_out]
            assert plans.plan(with_changes(given, *rest)).peak("process").process > needs * 4 // 5


@pytest.mark.parametrize(
    ("held", "lower"), [("fp32", ["bf16", "int8", "nf4"]), ("bf16", ["int8", "nf4"]), ("int8", ["nf4"]), ("nf4", [])]
)
def test_a_base_beside_a_lora_can_be_held_in_less(held: str, lower: list[str]) -> None:
    found = possible(settings(train={"parts": ["lora"], "frozen_precision": held}), "process")
    assert [one.changes for one in found if one.of == "base"] == [{"train.frozen_precision": name} for name in lower]


def test_a_base_is_counted_as_it_is_held(tiny_base: Path) -> None:
    """Without the package that rounds; in 8 and 4 bits scales, norms, biases and words come on top."""
    plans = planner(tiny_base)
    numbers = sum(one.numel() for one in plans.base.denoiser.parameters())
    for held, bits, more in (("fp32", 32, 0), ("bf16", 16, 0), ("int8", 8, 2), ("nf4", 4, 2)):
        given = settings(train={"parts": ["lora"], "frozen_precision": held}, lora={"text_encoder": False, "rank": 1})
        (unet,) = (one for one in told.memory(plans._module(given), given) if one.name == "unet")
        assert unet.frozen == numbers
        assert numbers * bits <= 8 * (unet.weights - 4 * unet.trained) <= numbers * (bits + more)


def test_flags_of_savings_can_be_typed(tiny_base: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["personalize", str(photo_folder), "--class-noun", "robot", "--base", str(tiny_base), "--batch-size", "4"]
    typed += ["--accelerator", "gpu", "--prior-weight", "0", "--plan", "--json"]
    cli.main([*typed, "--memory", "24MiB"])
    first = json.loads(capsys.readouterr().out)
    assert (first["fits"], first["memory"]) == (False, 24 * MIB)
    best = first["savings"][0]
    cli.main([*typed, *best["flags"], "--memory", "24MiB"])
    second = json.loads(capsys.readouterr().out)
    assert (second["fits"], second["savings"], second["peak"]) == (True, [], best["peak"])


def test_where_nothing_fits_the_least_is_named(
    tiny_base: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["personalize", str(photo_folder), "--class-noun", "robot", "--base", str(tiny_base), "--plan"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*typed, "--accelerator", "gpu", "--memory", "1MiB"])
    assert stop.value.code == 2
    problem, way_out = capsys.readouterr().err.splitlines()[-2:]
    assert problem == "femtobooth: --memory 1MiB: nothing that can be saved makes it fit"
    assert "the least is" in way_out and "--train lora" in way_out


def test_a_plan_is_no_run(photo_folder: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingsError, match=r"femtobooth\.plan"):
        femtobooth.personalize(photo_folder, "robot", base=tiny_base, plan=True)
    typed = ["personalize", str(photo_folder), "--class-noun", "robot", "--base", str(tiny_base), "--memory", "8GiB"]
    with pytest.raises(SystemExit) as stop:
        cli.main(typed)
    assert stop.value.code == 2
    assert "--memory: has no effect without plan" in capsys.readouterr().err
    assert {"plan", "memory"} & settings(plan=True, memory="1GiB").model_dump().keys() == set()


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 << 30), ("8 GB", 8 * 10**9), ("1.5gib", 3 << 29), ("900MiB", 900 << 20)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["8", "GiB", "-1GiB", "0GiB", "8GiBs", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="memory"):
        settings(plan=True, memory=text)
