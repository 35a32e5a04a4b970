"""The recognizer, its role as the judge, and what its answers add up to."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from femtobooth.core.errors import FemtoboothError
from femtobooth.core.files import write_json
from femtobooth.recognizer.model.backbone import Recognizer
from recipes.emoji_world import backdrops, evaluate, judge, package, recognizer, scenes, sprites, stages, subjects
from recipes.emoji_world.judge import Asked

TINY = replace(recognizer.KINDS["recognizer"], architecture="test_convnext")


@pytest.fixture(scope="module")
def tiny(world: sprites.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a very small recognizer was trained for a few steps and exported."""
    where = tmp_path_factory.mktemp("recipe") / "judge"
    _train(where, world)
    recognizer.export(where, world, TINY, 16)
    return where


def _train(where: Path, world: sprites.World) -> dict[str, torch.Tensor]:
    changes = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "trackers": ["csv"], "seed": 12}
    settings = recognizer.SETTINGS.model_copy(update={**recognizer.SMOKE, **changes})
    average = recognizer.averages.MovingAverage(settings.ema)
    callbacks = [average, recognizer.Quality(world, 8, average, 2)]
    stages.fit(recognizer.Recognition(settings, world, TINY), settings, where, callbacks)
    return stages.averaged(where)[0]


def test_training_the_recognizer_resumes_bit_for_bit(world: sprites.World, tiny: Path) -> None:
    (whole, step), curves = stages.averaged(tiny), (tiny / "logs/metrics.csv").read_text()
    assert step == 4
    assert "concept_accuracy" in curves
    shutil.rmtree(tiny / "checkpoints/step-000004")
    resumed = _train(tiny, world)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tiny / "logs/metrics.csv").read_text() == curves


def test_an_exported_recognizer_is_an_artifact_with_three_groups(world: sprites.World, tiny: Path) -> None:
    loaded = Recognizer.load(tiny / "model")
    assert list(loaded.labels.groups) == ["concept", "style", "backdrop"]
    assert loaded.labels.names == (*(one.name for one in world.concepts), *world.styles, *backdrops.names())
    made = scenes.scene(world, 1, 2)
    x = loaded.preprocess.normalize(torch.from_numpy(made.pixels[None].copy()))
    assert torch.allclose(x, recognizer.inputs(made.pixels[None].copy()), atol=1e-6)
    assert "Apache-2.0" in loaded.provenance["licence"]


def test_a_warm_start_takes_over_what_fits_and_leaves_the_rest(world: sprites.World, tiny: Path) -> None:
    start = Recognizer.load(tiny / "model").model.state_dict()
    model = recognizer.new_recognizer(TINY, world).model
    model.reset_classifier(3)
    before = model.state_dict()["head.fc.weight"].clone()
    recognizer.warm(model, tiny / "model")
    assert torch.equal(model.state_dict()["head.fc.weight"], before)
    assert torch.equal(model.state_dict()["stem.0.weight"], start["stem.0.weight"])


def test_targets_share_each_group_among_what_is_there(world: sprites.World) -> None:
    where, seen = recognizer.groups(world), set()
    for index in range(150):
        made = scenes.scene(world, 5, index)
        wanted = recognizer.target(world, made)
        parts = {name: wanted[first:last] for name, (first, last) in where.items()}
        assert all(part.sum() == pytest.approx(1) for part in parts.values())
        assert parts["backdrop"][backdrops.names().index(made.backdrop)] == 1
        concepts = {item.concept for item in made.items}
        if concepts:
            assert set(np.flatnonzero(parts["concept"])) == concepts
            assert set(np.flatnonzero(parts["style"])) == {item.style for item in made.items}
        else:
            assert np.ptp(parts["concept"]) == 0
        seen.add(len(concepts))
    assert seen == {0, 1, 2}


def test_weathering_changes_pixels_but_not_colours(world: sprites.World) -> None:
    changed = 0
    for index in range(60):
        pixels = scenes.scene(world, 6, index).pixels
        one, again = (recognizer.weathered(pixels, scenes.Random(index)) for _ in "ab")
        assert one.shape == (64, 64, 3)
        assert one.dtype == np.uint8
        assert np.array_equal(one, again)
        assert np.abs(one.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max() < 60
        changed += not np.array_equal(one, pixels)
    assert 30 < changed < 60


def test_a_colour_is_weathered_unevenly_but_to_no_gradient() -> None:
    colours, gradients = [], []
    for index in range(60):
        random = scenes.Random(index)
        plain, fade = (
            np.asarray(backdrops.draw(random, name).image.reduce(2)) for name in ("blue background", "gradient")
        )
        for spreads, pixels in ((colours, recognizer.weathered(plain, random)), (gradients, fade)):
            blocks = pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))  # whatever is finer is grain
            spreads.append(blocks.std(axis=(0, 1)).max())
    assert max(colours) > 2.5
    assert max(colours) < 2 * recognizer.UNEVEN + 1
    assert np.mean(np.array(gradients) > max(colours)) > 0.9


def test_how_even_a_judge_wants_a_colour(world: sprites.World, tiny: Path) -> None:
    found = judge.uneven(judge.Judge(world, tiny / "model"), world, 6)
    assert [len(one) for one in found.values()] == [len(judge.LEVELS), len(judge.LEVELS), 1]
    assert found["patches"][0] == found["a tilt"][0]  # level 0: the same scenes
    assert all(6 * share == pytest.approx(round(6 * share)) for one in found.values() for share in one)


def test_what_a_caption_asks_for(world: sprites.World) -> None:
    ball, teapot, flat = world.index["ball"], world.index["teapot"], world.styles.index("flat")

    def told(caption: str, *concepts: int, backdrop: str = "moon") -> Asked:
        items = [scenes.Item(concept, flat, 30, 32, 32, "red") for concept in concepts]
        return judge.asked(world, scenes.Scene(np.zeros((64, 64, 3), np.uint8), caption, items, backdrop))

    assert told("a flat ball on the moon", ball) == Asked((ball,), "flat", "moon")
    assert told("two minimal balls", ball, ball) == Asked((ball,), "flat", "")
    assert told("a toy on the surface of the moon", ball) == Asked((), "", "moon")
    assert told("a ball and a kettle", ball, teapot) == Asked(tuple(sorted((ball, teapot))), "", "")
    assert told("a flat ball and a toy", ball, teapot) == Asked((), "", "")
    assert told("a ball on a red and blue gradient", ball, backdrop="gradient").backdrop == "gradient"
    assert told("a ball on a red background", ball, backdrop="red background").backdrop == "red background"


def test_verdicts_follow_the_logits(world: sprites.World, tiny: Path) -> None:
    one = judge.Judge(world, tiny / "model")
    logits = np.zeros((3, len(recognizer.names(world))), np.float32)
    where = recognizer.groups(world)
    logits[:, where["concept"][0] + 1] = 5
    logits[:, where["concept"][0] + 2] = 4
    logits[:, where["style"][0] + 3] = 1
    logits[:, where["backdrop"][0] + backdrops.names().index("moon")] = 1
    questions = [Asked((1,), world.styles[3], "moon"), Asked((2,), "noto", "beach"), Asked((1, 2), "", "")]
    somewhere = np.zeros((3, len(world.concepts)), bool)
    somewhere[2, [0, 1, 2]] = True
    found = one.verdicts(logits, questions, somewhere)
    expected = {"concept": [1, 0], "concept in 5": [1, 1], "style": [1, 0], "backdrop": [1, 0]}
    for name, values in expected.items():
        assert found[name][:2].tolist() == values, name
        assert np.isnan(found[name][2])
    assert found["both objects"].tolist()[2] == 1
    assert np.isnan(found["both objects"][:2]).all()
    somewhere[2, 1] = False
    assert one.verdicts(logits, questions, somewhere)["both objects"][2] == 0
    assert np.isnan(one.verdicts(logits, questions)["both objects"]).all()


def test_a_thing_that_fills_a_window_is_seen_somewhere(world: sprites.World, tiny: Path) -> None:
    one = judge.Judge(world, tiny / "model")
    picture, thing = np.zeros((1, 64, 64, 3), np.uint8), scenes.scene(world, 5, 0).pixels[12:52, 12:52]
    picture[0, 24:, :40] = thing
    alone, whole = (one.best(one.look(part)[0], "concept")[0, 0] for part in (thing[None], picture))
    seen = one.somewhere(picture)
    assert seen.shape == (1, len(world.concepts))
    assert seen[0, [alone, whole]].all()
    assert seen.sum() <= 10


def test_shares_count_prompts_and_leave_out_what_was_not_asked() -> None:
    found = judge.shares({"concept": np.array([1, 0, np.nan, np.nan, 1, 1]), "style": np.full(6, np.nan)}, seeds=2)
    assert list(found) == ["concept"]
    assert found["concept"]["share"] == 0.75
    assert found["concept"]["prompts"] == 2
    assert found["concept"]["low"] < 0.75 < found["concept"]["high"]


def test_kid_is_the_unbiased_squared_mmd_of_the_cubic_kernel() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 3)), random.normal(0.5, 1, size=(4, 3))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = np.mean([kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert judge.kid(x, y) == pytest.approx(within_x + within_y - 2 * between)
    same = [judge.kid(random.normal(size=(200, 8)), random.normal(size=(200, 8))) for _ in range(20)]
    assert abs(np.mean(same)) < 0.02
    assert judge.kid(random.normal(size=(200, 8)), random.normal(1, 1, size=(200, 8))) > 0.5


@pytest.mark.parametrize("kind", ["backdrop", "style"])
def test_novel_prompts_show_what_training_never_does(kind: scenes.Unseen) -> None:
    tints = np.zeros((400, sprites.SIZE, sprites.SIZE, 4), np.uint8)
    tints[:, 20:70, 20:70] = (200, 30, 30, 255)
    names = [f"thing{chr(97 + k // 26)}{chr(97 + k % 26)}" for k in range(100)]
    many = sprites.World([sprites.Concept(name, colours=[""] * 4) for name in names], list(sprites.STYLES), tints)
    for novel in (True, False):
        for made in evaluate.novel_prompts(many, kind, novel, 25):
            (item,) = made.items
            name, asked = many.concepts[item.concept].name, judge.asked(many, made)
            held = {
                "backdrop": scenes.held_out(name, made.backdrop),
                "style": scenes.held_out_style(name, many.styles[item.style]),
            }
            assert held[kind] == novel
            assert sum(held.values()) == novel
            assert asked.concepts == (item.concept,)
            assert getattr(asked, kind)


def test_a_world_too_small_for_novelty_is_told_so(world: sprites.World) -> None:
    few = sprites.World(world.concepts[:3], world.styles, world.pixels[:12])
    names = [one.name for one in few.concepts]
    held = [place for place in backdrops.PLACES if any(scenes.held_out(name, place) for name in names)]
    assert 0 < len(held) < len(backdrops.PLACES)
    assert scenes.places_for(few, "backdrop") == held
    assert not any(scenes.held_out_style(name, style) for name in names for style in few.styles)
    assert scenes.places_for(few, "style") == []
    recognizer.batch(few, 0, 0, 0, 64)  # does not look for what is not there


class _Colours(judge.Judge):
    """Sees the mean colours of an 8x8 grid: enough to tell plain shapes apart."""

    def look(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(pictures), 1)), pictures.reshape(-1, 8, 8, 8, 8, 3).mean(axis=(2, 4)).reshape(
            len(pictures), -1
        )


def test_identities_tell_subjects_apart_from_each_other_and_from_sprites(world: sprites.World, tiny: Path) -> None:
    identities = subjects.Identities(_Colours(world, tiny / "model"), 400)
    rows = np.arange(64) // 4 % 2
    checks, lines = np.zeros((2, 5, 64, 64, 3), np.uint8)
    checks[:, rows == 1] = (250, 90, 10)
    lines[:, :, 40:] = (10, 250, 250)
    noise = np.random.default_rng(0).integers(0, 30, (2, 5, 64, 64, 3)).astype(np.uint8)
    photos = {
        "checks": identities.of(np.maximum(checks, noise[0])),
        "lines": identities.of(np.maximum(lines, noise[1])),
    }
    for name in photos:
        assert identities.ceiling(photos, name) == 1
    assert identities.recognised(photos["lines"], photos, "checks") == 0
    plain = np.stack([scenes.scene(world, 9, index, plain=1.0).pixels for index in range(20)])
    assert identities.recognised(identities.of(plain), photos, "checks") <= 0.1


def test_figures_of_other_weights_do_not_reach_the_card(tmp_path: Path) -> None:
    told = {"share": 0.5, "low": 0.1, "high": 0.9, "prompts": 2}
    facts = {
        "model": {"hash": "this"},
        "commit": "abc",
        "size": {"prompts": 2, "seeds": 1},
        "sampling": {"steps": 25, "guidance": 4.0},
        "autoencoder": {"psnr": 30.123, "ssim": 0.9},
        "speed": {"seconds_for_16": 5.0, "threads": 2},
        "kid": {"generated": 0.5, "autoencoder": 0.1, "real": 0.0},
        "prompts": {key: {"concept": told} for key in ("generated", "real", "shuffled")},
        "novel": {},
    }
    write_json(tmp_path / "evaluation.json", facts)
    assert "| concept | 50.0% (10% to 90%) |" in package.measured("this", {}, tmp_path)
    assert "30.1 dB" in package.measured("this", {}, tmp_path)
    assert "Nothing yet" in package.measured("that", {}, tmp_path)
    bear = {"class_noun": "teddy bear", "tuned": True, "seconds": 99.6}
    bear |= dict.fromkeys(("recognised", "backdrop", "class_before", "class_after", "photos_recognised"), 0.5)
    dreambooth = {"model": {"hash": "this"}, "recommended": {"steps": 300}, "tried": {}, "subjects": {"bear": bear}}
    write_json(tmp_path / "dreambooth.json", dreambooth)
    assert "| bear | teddy bear | 50% | 50% | 50% \N{RIGHTWARDS ARROW} 50% | 50% | 100 |" in package.measured(
        "this", {"steps": 300}, tmp_path
    )
    assert "bear" not in package.measured("this", {"steps": 200}, tmp_path)
    write_json(tmp_path / "dreambooth.json", dreambooth | {"tried": {"steps": 300}})
    assert "bear" not in package.measured("this", {"steps": 300}, tmp_path)


def test_what_is_too_large_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(b"0" * 100)
    package.check_size(tmp_path, "model")
    monkeypatch.setitem(package.LARGEST, "model", 99)
    with pytest.raises(FemtoboothError, match="at most"):
        package.check_size(tmp_path, "model")


def test_an_installed_folder_replaces_the_old_one_readable_by_everyone(tmp_path: Path) -> None:
    made, target = tmp_path / "made", tmp_path / "assets" / "bundled"
    for folder, name in ((made / "unet", "new"), (target, "old")):
        folder.mkdir(parents=True)
        (folder / name).write_text(name)
        (folder / name).chmod(0o600)
    package.install(made, target)
    assert sorted(path.name for path in target.rglob("*")) == ["new", "unet"]
    assert (target / "unet/new").stat().st_mode & 0o044 == 0o044
