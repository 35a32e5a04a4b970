"""photos -> personalize -> generate, as a user types it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from femtobooth.core import requests
from femtobooth.core.events import RUNNING, Event, listening
from femtobooth.core.files import content_hash
from femtobooth.generator import cards, locate
from femtobooth.generator.load import load

Weights = Callable[[Path], dict[str, torch.Tensor]]
Personalize = Callable[..., Path]
Curve = Callable[[Path], list[dict[str, str]]]
TABLE = "text_encoder/text_model.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def plain(personalize: Personalize, tiny_base: Path, runs: Path) -> Path:
    """The run that variants are compared with."""
    return personalize(tiny_base, runs, "plain")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def snapshot(folder: Path) -> str:
    return content_hash((path for path in folder.rglob("*") if path.is_file()), folder)


@pytest.mark.parametrize("kind", ["tiny_sd1", "tiny_sd2", "bundled"])
def test_photos_become_a_model_that_draws(
    kind: str,
    request: pytest.FixtureRequest,
    personalize: Personalize,
    femtobooth: Callable[..., int],
    weights: Weights,
    curve: Curve,
    runs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = locate.bundled_folder() if kind == "bundled" else request.getfixturevalue(kind)
    run = personalize("bundled" if kind == "bundled" else base, runs, kind)
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "run.json", "preflight.json", "crops.png",
        "photos", "logs", "samples", "checkpoints", "overview.png", "model", "report.html",
    }  # fmt: skip
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]
    assert {path.stem for path in (run / "samples").iterdir()} == {"step-000000", "step-000002"}
    assert not list(run.rglob(".tmp-*"))
    rows = curve(run)
    assert [row["step"] for row in rows] == ["1", "2"]
    for row in rows:
        assert float(row["loss/total"]) == pytest.approx(
            float(row["loss/instance"]) + float(row["loss/prior"]), rel=1e-6
        )

    old, new = weights(base), weights(run / "model")
    assert old.keys() == new.keys()
    moved = {name.partition("/")[0] for name in old if not torch.equal(old[name].float(), new[name])}
    assert moved == {"unet", "text_encoder"}  # the VAE is the base's, bit for bit

    matter = cards.front_matter(cards.read_readme(run / "model"), run)
    assert (matter["library_name"], matter["instance_prompt"]) == ("diffusers", "a sks robot")
    assert matter["widget"] == [{"text": "a sks robot", "output": {"url": "overview.png"}}]
    assert (run / "model" / "overview.png").read_bytes() == (run / "overview.png").read_bytes()

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(run / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.prediction_type == load(str(base)).process.prediction_type
    assert np.asarray(pipeline("a sks robot", num_inference_steps=1).images[0]).std() > 0

    capsys.readouterr()
    assert femtobooth("generate", run, "a [V] robot on the moon", "-n", 2, "--steps", 2, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["model"]["subject"]["token"] == "sks"
    pictures = [Path(made["folder"]) / image["file"] for image in made["images"]]
    assert [image["prompt"] for image in made["images"]] == ["a sks robot on the moon"] * 2
    assert femtobooth("generate", "--from", pictures[1], "--out", runs / f"{kind}-again") == 0
    first, second, again = (
        np.asarray(Image.open(path)) for path in (*pictures, runs / f"{kind}-again" / pictures[1].name)
    )
    assert np.array_equal(second, again)
    assert not np.array_equal(first, second)


def test_its_config_repeats_a_run(femtobooth: Callable[..., int], plain: Path, runs: Path, weights: Weights) -> None:
    assert femtobooth("personalize", "--config", plain / "config.yaml", "--name", "again") == 0
    assert same(weights(runs / "again" / "model"), weights(plain / "model"))
    changed = set(
        zip(
            (plain / "config.yaml").read_text().splitlines(),
            (runs / "again" / "config.yaml").read_text().splitlines(),
            strict=True,
        )
    )
    assert {pair for pair in changed if pair[0] != pair[1]} == {("name: plain", "name: again")}


def test_samples_never_disturb_training(
    personalize: Personalize, tiny_base: Path, plain: Path, runs: Path, weights: Weights
) -> None:
    more = (
        "--sample-every",
        1,
        "--set",
        "samples.sampling.sampler=euler-a",
        "--set",
        "samples.seed=3",
        "--set",
        "samples.images=2",
    )
    run = personalize(tiny_base, runs, "samples", *more)
    assert {path.stem for path in (run / "samples").iterdir()} == {f"step-{step:06d}" for step in range(3)}
    assert same(weights(run / "model"), weights(plain / "model"))


def test_samples_that_were_asked_for_never_disturb_training(
    personalize: Personalize, tiny_base: Path, plain: Path, runs: Path, weights: Weights
) -> None:
    def ask(event: Event) -> None:
        if event.kind == "stage" and event.stage == ("training",) and event.data["state"] == RUNNING:
            requests.ask(runs / "asked", "sample")

    with listening(ask):
        run = personalize(tiny_base, runs, "asked")
    assert {path.stem for path in (run / "samples").iterdir()} == {"step-000000", "step-000001", "step-000002"}
    assert not (run / "requests").exists()
    assert same(weights(run / "model"), weights(plain / "model"))
    assert (run / "samples/step-000002.png").read_bytes() == (plain / "samples/step-000002.png").read_bytes()


def _text_encoder(name: str) -> bool:
    return name.startswith("text_encoder/")


def _attention(name: str) -> bool:
    return ".attn1." in name or ".attn2." in name


@pytest.mark.parametrize(
    ("parts", "trains"),
    [
        ("attention,text_encoder", lambda name: _attention(name) or _text_encoder(name)),
        ("attention,token", lambda name: _attention(name) or name == TABLE),
    ],
    ids=["attention+text_encoder", "attention+token"],
)
def test_only_the_named_parts_train(
    parts: str, trains: Callable[[str], bool], personalize: Personalize, tiny_base: Path, runs: Path, weights: Weights
) -> None:
    run = personalize(tiny_base, runs, parts.replace(",", "+"), "--train", parts)
    old, new = weights(tiny_base), weights(run / "model")
    assert {name for name in new if not torch.equal(old[name], new[name])} == {name for name in old if trains(name)}
    if "token" in parts:
        assert (old[TABLE] != new[TABLE]).any(dim=1).sum() == 1


def test_a_new_word_is_added_and_drawn(
    personalize: Personalize, femtobooth: Callable[..., int], tiny_base: Path, runs: Path, weights: Weights, capsys: Any
) -> None:
    """Textual inversion of a word that the tokenizer would have split."""
    run = personalize(tiny_base, runs, "new-word", "--train", "token", "--token", "<femto>", "--token-lr", 0.1)
    assert "splits into" not in capsys.readouterr().err
    old, new = weights(tiny_base), weights(run / "model")
    assert {name for name in old if not torch.equal(old[name], new[name][: len(old[name])])} == set()
    assert len(new[TABLE]) == len(old[TABLE]) + 1
    for loaded in (
        load(str(run)).tokenizer,
        diffusers.StableDiffusionPipeline.from_pretrained(run / "model").tokenizer,
    ):
        assert loaded("a <femto> robot", add_special_tokens=False).input_ids[1] == len(old[TABLE])
    capsys.readouterr()
    assert femtobooth("generate", run, "a [V] robot", "a robot", "-n", 1, "--steps", 2, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    pictures = [np.asarray(Image.open(Path(made["folder"]) / image["file"])) for image in made["images"]]
    assert made["images"][0]["prompt"] == "a <femto> robot"
    assert not np.array_equal(*pictures)


def test_without_prior(personalize: Personalize, tiny_base: Path, runs: Path, curve: Curve) -> None:
    run = personalize(tiny_base, runs, "no-prior", "--prior-weight", 0, "--set", "prior.prompt=never drawn {class}")
    for row in curve(run):
        assert not [name for name in row if "prior" in name]
        assert float(row["loss/total"]) == float(row["loss/instance"])
    assert not list(_cached("never-drawn*"))


def _cached(pattern: str) -> list[Path]:
    return sorted((Path(os.environ["FEMTOBOOTH_CACHE"]) / "class-images").glob(pattern))


def test_the_base_as_prior_target(
    personalize: Personalize, tiny_base: Path, plain: Path, runs: Path, curve: Curve
) -> None:
    """Before its first step the model is the base, so the first prior loss is zero; then they part."""
    first, second = curve(
        personalize(tiny_base, runs, "base-target", "--prior-target", "base", "--other-classes", "teapot")
    )
    assert float(first["loss/prior"]) == pytest.approx(0, abs=1e-9)
    assert float(second["loss/prior"]) > 1e-9
    assert float(first["loss/instance"]) == float(curve(plain)[0]["loss/instance"])
    assert len(list(_cached("*teapot*/*.png"))) == 2


def test_background_of_the_class(
    personalize: Personalize, tiny_base: Path, plain: Path, runs: Path, curve: Curve
) -> None:
    """The same draws of photos count in other places; class images are the same ones, some of them with the
    identifier.
    """
    before = _cached("*")
    first, expected = curve(personalize(tiny_base, runs, "background", "--background", "class"))[0], curve(plain)[0]
    assert _cached("*") == before
    for term in ("instance", "prior"):
        assert float(first[f"loss/{term}"]) == pytest.approx(float(expected[f"loss/{term}"]), rel=0.5)
        assert first[f"loss/{term}"] != expected[f"loss/{term}"]


def test_own_class_images(
    personalize: Personalize, tiny_base: Path, plain: Path, runs: Path, photos: Path, curve: Curve
) -> None:
    before = _cached("*")
    run = personalize(tiny_base, runs, "own-class-images", "--class-folder", photos, "--set", "prior.seed=99")
    assert _cached("*") == before
    first, expected = curve(run)[0], curve(plain)[0]
    assert first["loss/instance"] == expected["loss/instance"]
    assert first["loss/prior"] != expected["loss/prior"]


def test_gradient_checkpointing_changes_nothing(
    personalize: Personalize, tiny_base: Path, plain: Path, runs: Path, curve: Curve
) -> None:
    for row, expected in zip(
        curve(personalize(tiny_base, runs, "checkpointing", "--gradient-checkpointing")), curve(plain), strict=True
    ):
        for name in ("loss/instance", "loss/prior", "gradient_norm"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-3)


def test_half_precision_passes(
    personalize: Personalize, tiny_base: Path, plain: Path, runs: Path, curve: Curve, weights: Weights
) -> None:
    run = personalize(tiny_base, runs, "bf16", "--precision", "bf16", "--save-precision", "fp16")
    found, expected = float(curve(run)[0]["loss/total"]), float(curve(plain)[0]["loss/total"])
    assert found != expected
    assert found == pytest.approx(expected, rel=0.02)
    assert {value.dtype for value in weights(run / "model").values() if value.is_floating_point()} == {torch.float16}


def test_min_snr_weighs_the_same_draws_less(
    personalize: Personalize, tiny_base: Path, plain: Path, runs: Path, curve: Curve
) -> None:
    row, expected = curve(personalize(tiny_base, runs, "snr", "--snr-gamma", 0.01))[0], curve(plain)[0]
    assert 0 < float(row["loss/instance"]) < float(expected["loss/instance"])
    assert 0 < float(row["loss/prior"]) < float(expected["loss/prior"])


def test_the_moving_average_is_the_result(
    personalize: Personalize, tiny_base: Path, plain: Path, runs: Path, weights: Weights
) -> None:
    run = personalize(tiny_base, runs, "ema", "--ema", 0.9)
    state = torch.load(run / "checkpoints" / "step-000002" / "state.ckpt", weights_only=True)
    average, last = state["callbacks"]["MovingAverage"]["average"], state["state_dict"]
    found, unaveraged = weights(run / "model"), weights(plain / "model")
    for name, value in average.items():
        key = name.replace(".", "/", 1).replace("text_encoder/", "text_encoder/text_model.")
        assert torch.equal(found[key], value)
        assert torch.equal(unaveraged[key], last[name])  # and averaging leaves training as it is
    assert not same(found, unaveraged)


def test_accumulated_steps_count_once(
    personalize: Personalize, tiny_base: Path, plain: Path, runs: Path, curve: Curve
) -> None:
    """Two micro-steps of one photo: a row a step, whose loss is the mean over both."""
    rows = curve(
        personalize(tiny_base, runs, "accumulate", "--accumulate", 2, "--batch-size", 1, "--schedule", "linear")
    )
    assert [row["step"] for row in rows] == ["1", "2"]
    assert [float(row["learning_rate/unet"]) for row in rows] == pytest.approx([1e-3, 5e-4])
    bands = [float(value) for name, value in rows[0].items() if name.startswith("instance/") and value]
    assert 1 <= len(bands) <= 2
    assert min(bands) <= float(rows[0]["loss/instance"]) <= max(bands)


def test_nothing_is_overwritten_unasked(
    personalize: Personalize,
    femtobooth: Callable[..., int],
    tiny_base: Path,
    photos: Path,
    plain: Path,
    runs: Path,
    weights: Weights,
) -> None:
    run = shutil.copytree(plain, runs / "twice")
    before, command = snapshot(run), ["personalize", photos, "--class-noun", "robot", "--runs", runs, "--name", "twice"]
    assert femtobooth(*command, "--base", tiny_base) == 2
    assert (
        femtobooth(*command, "--overwrite", "--base", "nowhere") == 2
    )  # bad input costs nothing, even with --overwrite
    assert snapshot(run) == before
    old = weights(run / "model")
    personalize(tiny_base, runs, "twice", "--overwrite", "--seed", 1)
    assert not same(weights(run / "model"), old)
