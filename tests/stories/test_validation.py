"""Validation during training: the same training, and the best of its steps as the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from femtobooth.core import config
from femtobooth.core.errors import SettingsError
from femtobooth.core.files import write_json
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.generator.taught import Taught
from femtobooth.judging import selection
from femtobooth.workflows.personalizing.scored import interval, outside_prompts
from femtobooth.workflows.personalizing.validation import Validator

Weights = Callable[[Path], dict[str, torch.Tensor]]
Personalize = Callable[..., Path]
Curve = Callable[[Path], list[dict[str, str]]]
STEPS = 5


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("validated")


@pytest.fixture(scope="module")
def validated(personalize: Personalize, tiny_base: Path, tiny: Path, runs: Path) -> Callable[..., Path]:
    """`validated(name, *flags)`: a run that is scored every other step."""

    def call(name: str, *flags: object) -> Path:
        given = (
            "--steps",
            STEPS,
            "--validate-every",
            2,
            "--validation-encoder",
            tiny,
            "--set",
            "validation.steps=2",
            "--set",
            "validation.loss_every=1",
        )
        return personalize(tiny_base, runs, name, *given, "--checkpoint-every", 2, *flags)

    return call


@pytest.fixture(scope="module")
def whole(validated: Callable[..., Path]) -> Path:
    return validated("whole")


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    """The steps that the choice was between when `kept` was trained."""
    return []


@pytest.fixture(scope="module")
def kept(validated: Callable[..., Path], asked: list[list[int]]) -> Path:
    """The same run, every step of which is on the front, as it is before it removes what it kept to choose from."""
    choose = selection.choose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            selection, "choose", lambda points: (asked.append([one.step for one in points]), choose(points))[1]
        )
        patch.setattr(selection, "pareto_front", list)
        patch.setattr(Validator, "remove_weights", lambda _: None)
        return validated("kept")


def state(run: Path, step: int = STEPS) -> dict[str, Any]:
    return dict(torch.load(run / "checkpoints" / f"step-{step:06d}" / "state.ckpt", weights_only=True))


def seen(run: Path) -> dict[str, Any]:
    """What validation found, without how long it took."""
    curve = json.loads((run / "validation" / "validation.json").read_text())
    return {name: value for name, value in curve.items() if name != "seconds"}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_curve_is_kept_and_drawn(whole: Path, curve: Curve) -> None:
    found = seen(whole)
    assert [point["step"] for point in found["points"]] == [0, 2, 4, 5]
    assert found["points"][0]["drift"] == pytest.approx(0, abs=1e-6)
    assert all(len(point["fidelity"]) == 6 for point in found["points"])
    assert found["outside"] == ["a red apple on a table", "a house in the snow"]
    assert all(len(point["outside"]) == 4 for point in found["points"])
    assert found["points"][0]["outside"] == pytest.approx([0] * 4, abs=1e-6)
    assert max(found["points"][-1]["outside"]) > 1e-6
    assert [step for step, _ in found["deterministic"]] == list(range(STEPS + 1))
    assert found["photos"] == 4
    rows = {int(row["step"]): row for row in curve(whole)}
    for point in found["points"]:
        assert float(rows[point["step"]]["validation/fidelity"]) == pytest.approx(np.mean(point["fidelity"]))
        assert float(rows[point["step"]]["validation/drift"]) == point["drift"]
        assert float(rows[point["step"]]["validation/outside"]) == pytest.approx(np.mean(point["outside"]))
    assert rows[3]["validation/fidelity"] == ""
    assert [float(rows[step]["deterministic/loss"]) for step in rows] == [loss for _, loss in found["deterministic"]]
    drawn = (whole / "validation" / "curve.svg").read_text()
    assert drawn.startswith("<svg xmlns=")
    assert "Pareto front" in drawn
    assert "Drift of the class, and outside the class (dashed)" in drawn
    assert (whole / "validation" / "step-000000" / "03-1.png").is_file()
    assert (whole / "validation" / "outside" / "step-000005" / "01-1.png").is_file()
    facts = json.loads((whole / "run.json").read_text())
    assert facts["validation"]["scored"] == 4
    assert facts["validation"]["share"] > 0
    assert facts["trained_steps"] == STEPS
    assert facts["steps"] == facts["selected"]["step"] in facts["selected"]["front"]
    assert not (whole / "validation" / "weights").exists()


def test_without_anything_outside_the_class_nothing_else_changes(
    validated: Callable[..., Path], whole: Path, weights: Weights
) -> None:
    run = validated("inside", "--set", "validation.outside=[]")
    found, usual = seen(run), seen(whole)
    points = [dict(point) | {"outside": []} for point in usual["points"]]
    assert found == usual | {"outside": [], "points": points}
    assert not (run / "validation" / "outside").exists()
    assert same(weights(run / "model"), weights(whole / "model"))


@pytest.mark.parametrize(
    ("noun", "left"),
    [("robot", 3), ("house", 2), ("toy car", 2), ("Apple", 2)],
)
def test_what_names_the_class_is_not_outside_of_it(noun: str, left: int) -> None:
    photos = {"paths": ["x"], "class_noun": noun}
    validation = {"outside": ["an apple on a table", "two houses in the snow", "a car"]}
    settings = config.resolve(PersonalizeSettings, {"photos": photos, "validation": validation})
    assert len(outside_prompts(settings)) == left


def test_a_run_of_an_older_version_goes_on_without_what_is_outside(tmp_path: Path) -> None:
    settings = config.resolve(PersonalizeSettings, {"photos": {"paths": ["x"], "class_noun": "dog"}})
    validator = Validator(tmp_path, settings, None, {"V": Taught(settings, "sks", [], [])}, 64, None)
    point = {"step": 0, "fidelity": [0.5], "prompt": [1.0], "drift": 0.0, "moved": [0.0]}
    seconds = {"validation": 1.0, "training": 2.0}
    older = {"points": [point], "base": torch.zeros(7, 2, 3), "losses": [], "seconds": seconds}
    assert validator.outside
    validator.load_state_dict(older)
    assert validator.outside == []
    assert validator.points == [selection.Point(0, (0.5,), (1.0,), 0.0, (0.0,))]
    validator.load_state_dict(validator.state_dict())
    assert validator.points[0].outside == ()


@pytest.mark.parametrize("prompt", ["a [v] in the snow", "a {class} in the snow", "{token}"])
def test_prompts_outside_the_class_name_no_subject(prompt: str) -> None:
    given = {"photos": {"paths": ["x"], "class_noun": "dog"}, "validation": {"outside": [prompt]}}
    with pytest.raises(SettingsError, match=r"validation\.outside: .* names the subject or the class"):
        config.resolve(PersonalizeSettings, given)


@pytest.mark.parametrize(
    ("steps", "validation", "every"),
    [
        (300, {}, 50),
        (300, {"select": "final"}, 100),
        (300, {"select": "final", "stop_when_done": True}, 50),
        (29, {}, 0),
        (29, {"every": 7}, 7),
    ],
)
def test_scorings_are_fewer_where_they_decide_nothing(steps: int, validation: dict[str, Any], every: int) -> None:
    photos = {"paths": ["x"], "class_noun": "robot"}
    assert (
        interval(
            config.resolve(
                PersonalizeSettings, {"photos": photos, "training": {"steps": steps}, "validation": validation}
            )
        )
        == every
    )


@pytest.fixture(scope="module")
def without(personalize: Personalize, tiny_base: Path, runs: Path) -> Path:
    """The same run, never scored."""
    return personalize(
        tiny_base, runs, "without", "--steps", STEPS, "--validate-every", 0, "--set", "validation.loss_every=0"
    )


def test_validation_never_disturbs_training(without: Path, whole: Path, curve: Curve) -> None:
    assert same(state(without)["state_dict"], state(whole)["state_dict"])
    losses = [[row["loss/instance"] for row in curve(run) if row["loss/instance"]] for run in (without, whole)]
    assert losses[0] == losses[1]
    facts = json.loads((without / "run.json").read_text())
    assert facts["validation"] is None
    assert facts["steps"] == STEPS
    assert not (without / "validation").exists()


@pytest.mark.parametrize("step", [2, 4, 5])
def test_the_chosen_step_becomes_the_model(
    step: int,
    kept: Path,
    without: Path,
    femtobooth: Callable[..., int],
    personalize: Personalize,
    tiny_base: Path,
    runs: Path,
    weights: Weights,
    monkeypatch: Any,
) -> None:
    """The same weights as those of a run that ends there."""
    choice = selection.Choice(step, "the test wants it", (2, 4, 5))
    monkeypatch.setattr(selection, "choose", lambda _: choice)
    monkeypatch.setattr(selection, "pareto_front", list)
    run = broken_at(kept, runs / f"chosen-{step}", STEPS)
    assert femtobooth("personalize", "--resume", run) == 0
    ended = without if step == STEPS else personalize(tiny_base, runs, f"ended-{step}", "--steps", step)
    assert same(weights(run / "model"), weights(ended / "model"))
    facts = json.loads((run / "run.json").read_text())
    assert (facts["steps"], facts["trained_steps"]) == (step, STEPS)
    assert json.loads((run / "model" / "femtobooth.json").read_text())["steps"] == step
    assert (run / "samples" / f"step-{step:06d}.png").is_file()


def test_the_moving_average_is_what_is_scored_and_kept(
    validated: Callable[..., Path], weights: Weights, monkeypatch: Any
) -> None:
    monkeypatch.setattr(selection, "choose", lambda _: selection.Choice(4, "the test wants it", (4,)))
    monkeypatch.setattr(selection, "pareto_front", list)
    run = validated("averaged", "--ema", 0.9)
    average = state(run, 4)["callbacks"]["MovingAverage"]["average"]
    found = weights(run / "model")
    assert all(torch.equal(found[stored(name)], value) for name, value in average.items())


def stored(name: str) -> str:
    """What a weight in training is called in model/, where text encoders are written as everyone reads them."""
    return name.replace(".", "/", 1).replace("text_encoder/", "text_encoder/text_model.")


def test_final_keeps_no_weights(
    validated: Callable[..., Path], kept: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing lies in validation/weights even while the run goes on, where those of the best step would."""
    monkeypatch.setattr(Validator, "remove_weights", lambda _: None)  # as they are before the run is done
    monkeypatch.setattr(selection, "pareto_front", list)
    run = validated("final", "--select", "final")
    assert not list(run.glob("validation/weights/*"))
    there = sorted(path.name for path in kept.glob("validation/weights/*"))
    assert there == ["step-000002.safetensors", "step-000004.safetensors"]
    found, last = weights(run / "model"), state(run)["state_dict"]
    assert all(torch.equal(found[stored(name)], value) for name, value in last.items())
    assert json.loads((run / "run.json").read_text())["selected"]["reason"] == "select final takes the last step"


def broken_at(run: Path, copy: Path, step: int) -> Path:
    """The run as it would be had it been killed just after the checkpoint of `step`."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model", "overview.png", "report.html"))
    for path in (copy / "checkpoints").iterdir():
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    facts = json.loads((copy / "run.json").read_text())
    write_json(
        copy / "run.json", {name: value for name, value in facts.items() if name != "selected"} | {"status": "running"}
    )
    return copy


@pytest.mark.parametrize("step", [4, 5])
def test_a_resumed_run_has_the_same_curve(
    step: int, kept: Path, femtobooth: Callable[..., int], runs: Path, weights: Weights, monkeypatch: Any
) -> None:
    monkeypatch.setattr(selection, "pareto_front", list)
    copy = broken_at(kept, runs / f"resumed-{step}", step)
    assert femtobooth("personalize", "--resume", copy) == 0
    assert seen(copy) == seen(kept)
    assert same(weights(copy / "model"), weights(kept / "model"))


def test_lost_weights_leave_the_others_to_choose_from(
    kept: Path, asked: list[list[int]], femtobooth: Callable[..., int], runs: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Every step is on the front; then the weights of one are lost, and then those of all but the last."""
    assert asked == [[0, 2, 4, STEPS]]
    between: list[list[int]] = []

    def choose(points: list[selection.Point]) -> selection.Choice:
        between.append([point.step for point in points])
        return selection.Choice(points[-1].step, "the test wants it", ())

    monkeypatch.setattr(selection, "choose", choose)
    monkeypatch.setattr(selection, "pareto_front", list)
    for lost, told, others in (([2], "2 are gone", [0, 4, STEPS]), ([2, 4], "2, 4 are gone", [0, STEPS])):
        copy = broken_at(kept, runs / f"lost-{len(lost)}", STEPS)
        for step in lost:
            (copy / "validation" / "weights" / f"step-{step:06d}.safetensors").unlink()
        capsys.readouterr()
        assert femtobooth("personalize", "--resume", copy) == 0
        assert f"the weights of step {told}; choosing from the others" in capsys.readouterr().err
        assert between[-1] == others
        assert json.loads((copy / "run.json").read_text())["steps"] == STEPS


def test_it_ends_when_done(
    validated: Callable[..., Path], femtobooth: Callable[..., int], runs: Path, weights: Weights, monkeypatch: Any
) -> None:
    monkeypatch.setattr(selection, "finished", lambda points, patience: len(points) > patience - 1)
    run = validated("done", "--stop-when-done", "--select", "final")
    facts = json.loads((run / "run.json").read_text())
    assert facts["trained_steps"] == facts["steps"] == 4
    assert [point["step"] for point in seen(run)["points"]] == [0, 2, 4]
    copy = broken_at(run, runs / "done-again", 4)  # killed before the model was written: no further step is taken
    assert femtobooth("personalize", "--resume", copy) == 0
    assert json.loads((copy / "run.json").read_text())["trained_steps"] == 4
    assert same(weights(copy / "model"), weights(run / "model"))


def test_stopping_needs_validation(
    personalize: Personalize, femtobooth: Callable[..., int], photos: Path, tiny_base: Path, capsys: Any
) -> None:
    command = ("personalize", photos, "--class-noun", "robot", "--base", tiny_base)
    assert femtobooth(*command, "--stop-when-done", "--validate-every", 0) == 2
    assert "--validate-every 50" in capsys.readouterr().err
    assert femtobooth(*command, "--validation-encoder", "no/such/file.safetensors") == 2


def test_photos_held_out_are_scored_and_never_trained_on(validated: Callable[..., Path], photos: Path) -> None:
    run = validated("held-out", "--hold-out", 1, "--steps", 2)
    facts = json.loads((run / "run.json").read_text())
    assert facts["held_out"] == ["photo3.png"]
    assert seen(run)["photos"] == 1
    assert sorted(path.name for path in (run / "held_out").iterdir()) == ["00.png", "00.txt"]
    held = np.asarray(Image.open(run / "held_out" / "00.png"))
    trained = [np.asarray(Image.open(path)) for path in sorted((run / "photos").glob("*.png"))]
    assert len(trained) == 3
    assert not any(np.array_equal(held, other) for other in trained)
    rows = {Path(row["file"]).name: row["status"] for row in json.loads((run / "preflight.json").read_text())}
    assert rows == {"photo0.png": "used", "photo1.png": "used", "photo2.png": "used", "photo3.png": "held out"}


def test_two_photos_must_be_left(
    femtobooth: Callable[..., int], photos: Path, tiny_base: Path, runs: Path, capsys: Any
) -> None:
    command = ("personalize", photos, "--class-noun", "robot", "--base", tiny_base, "--runs", runs, "--name", "few")
    assert femtobooth(*command, "--hold-out", 3) == 2
    assert "hold out at most 2" in capsys.readouterr().err
    assert not (runs / "few").exists()
