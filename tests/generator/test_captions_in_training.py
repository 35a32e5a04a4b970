"""Captions in training: dropped for a share of the samples, their tags in many orders, photos seen in proportion; all of
it a function of (seed, micro-step, rank).
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from pydantic import ValidationError

from femtobooth.core.config import resolve
from femtobooth.generator import locate
from femtobooth.generator.deterministic import fixed_batches
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.formats.folder import load_tokenizer
from femtobooth.generator.latents import LatentSet, MicroBatch
from femtobooth.generator.load import load
from femtobooth.generator.photos import load_photos
from femtobooth.generator.prompts import Reader
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.generator.stored_photos import restore_photos, store_photos
from femtobooth.generator.tags import ORDERS, shuffled
from femtobooth.generator.taught import Taught
from femtobooth.workflows.personalizing.training_data import latents

TOKENIZER = load_tokenizer(locate.bundled_folder() / "tokenizer")
READER = Reader(TOKENIZER, 22)
STEPS = 400


def settings_of(base: Path, folder: Path, **more: object) -> PersonalizeSettings:
    given = {"base": str(base), "photos": {"paths": [str(folder)], "class_noun": "dog"}, "prior": {"weight": 0.0}}
    return resolve(PersonalizeSettings, given, more)


def pictures(tokens: torch.Tensor, repeats: list[int] | None = None) -> LatentSet:
    """As many pictures as there are rows of tokens, each told apart by the first of its mean."""
    mean = torch.arange(len(tokens)).float().view(-1, 1, 1, 1, 1).expand(-1, 1, 4, 8, 8)
    return LatentSet(mean, mean * 0 - 60, tokens, repeats=torch.tensor(repeats or [1] * len(tokens)))


def test_a_share_of_captions_becomes_the_prompt_that_guidance_starts_from(tiny_base: Path) -> None:
    model = load(str(tiny_base))
    empty, written = model.tokenize([""]), model.tokenize(["a sks dog"])
    photos = pictures(written.expand(4, 1, -1))

    def batch(step: int, share: float, rank: int = 0) -> MicroBatch:
        return photos.micro_batch(model, "instance", 3, step, rank, 1, 2).without_captions(share, empty, 3, step, rank)

    def dropped(share: float, rank: int = 0) -> list[bool]:
        rows = [row for step in range(STEPS) for row in batch(step, share, rank).tokens]
        assert all(torch.equal(row, empty[0]) or torch.equal(row, written[0]) for row in rows)
        return [torch.equal(row, empty[0]) for row in rows]

    tenth, half = dropped(0.1), dropped(0.5)
    assert abs(sum(tenth) / len(tenth) - 0.1) < 0.035  # three deviations of 800 draws
    assert abs(sum(half) / len(half) - 0.5) < 0.055
    assert tenth == dropped(0.1) != dropped(0.1, rank=1)
    plain, without = photos.micro_batch(model, "instance", 3, 7, 0, 1, 2), batch(7, 0.5)
    for name in ("latents", "noise", "timesteps", "mask", "taught"):  # all else is drawn as without it
        assert torch.equal(getattr(plain, name), getattr(without, name))


def test_the_training_step_drops_them_and_the_deterministic_loss_does_not(
    tiny_base: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tiny_base, photo_folder, photos={"caption_dropout": 0.5}, training={"batch_size": 4})
    model = load(str(tiny_base))
    module = DreamBooth(model, settings, "sks", lambda _: None)
    module.instance, module.prior = pictures(model.tokenize(["a sks dog"]).expand(4, 1, -1)), None
    module.empty = model.tokenize([""])
    module._trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    seen: list[MicroBatch] = []
    monkeypatch.setattr(module, "losses", lambda batch: seen.append(batch) or torch.ones(4, requires_grad=True))
    for micro_step in range(8):
        module.training_step(micro_step)
    rows = [torch.equal(row, module.empty[0]) for batch in seen for row in batch.tokens]
    assert 8 < sum(rows) < 24
    assert not (fixed_batches(module.instance, model, 0)[0].tokens == module.empty).all(1).any()


def test_each_photo_is_seen_in_proportion_to_its_repeats(tiny_base: Path) -> None:
    model = load(str(tiny_base))
    photos = pictures(torch.zeros(3, 1, 4, dtype=torch.int64), [1, 2, 4])

    def seen(steps: range, world: int = 1) -> Counter[int]:
        return Counter(
            round(float(one[0, 0, 0]) / model.vae.config.scaling_factor)
            for step in steps
            for rank in range(world)
            for one in photos.micro_batch(model, "instance", 0, step, rank, world, 1).latents
        )

    assert seen(range(7)) == seen(range(7, 14)) == {0: 1, 1: 2, 2: 4}  # of every pass
    assert seen(range(21), world=2) == {0: 6, 1: 12, 2: 24}
    assert len(photos) == 3 and (photos + photos).repeats.tolist() == [1, 2, 4, 1, 2, 4]


CAPTION = "a {token} {class}, on grass, sunny, from above"


def test_tags_come_in_every_order_and_the_first_keep_their_place() -> None:
    orders = shuffled([CAPTION], 1, 0, 0, READER, "sks", "dog")
    assert orders[0] == CAPTION and len(orders) == ORDERS
    expected = {", ".join(["a {token} {class}", *tail]) for tail in itertools.permutations(CAPTION.split(", ")[1:])}
    assert set(orders) == expected  # 3! of them
    assert len(set(shuffled([CAPTION], 0, 0, 0, READER, "sks", "dog"))) > 20  # of 4!
    assert {order.split(", ")[:2] == ["a {token} {class}", "on grass"] for order in
            shuffled([CAPTION], 2, 0, 0, READER, "sks", "dog")} == {True}  # fmt: skip
    assert orders == shuffled([CAPTION], 1, 0, 0, READER, "sks", "dog")
    assert orders != shuffled([CAPTION], 1, 0, 1, READER, "sks", "dog") != shuffled([CAPTION], 1, 1, 0, READER, "sks", "dog")  # fmt: skip


def test_each_of_several_captions_stays_as_likely() -> None:
    orders = shuffled([CAPTION, "the {token} {class}"], 1, 0, 0, READER, "sks", "dog")
    assert orders.count("the {token} {class}") * 2 == len(orders) == 2 * ORDERS
    unmoved = ["a {token} {class}, on grass", "a {token} {class}"]  # two tags, of which one is kept
    assert shuffled(unmoved, 1, 0, 0, READER, "sks", "dog") == unmoved


def test_no_order_pushes_the_identifier_out_of_what_is_read() -> None:
    long = "a red picture, one big happy animal, on the green grass, by the blue water, under the white moon, a {token} {class}"
    orders = shuffled([long], 0, 0, 0, READER, "sks", "dog")
    sks, limit = TOKENIZER.convert_tokens_to_ids("sks</w>"), TOKENIZER.model_max_length
    assert all(
        sks in TOKENIZER(order.replace("{token}", "sks").replace("{class}", "dog")).input_ids[: limit - 1]
        for order in orders[1:]
    )


def test_the_latents_hold_every_order_and_no_step_tokenizes(
    tiny_base: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        (photo_folder / f"photo{index}.txt").write_text("a [V] dog, red, round, small\n")
    (photo_folder / "photo3.txt").write_text("the [V] dog\n")
    model, lightning = load(str(tiny_base)), Trainer(accelerator="cpu", logger=False)
    settings = settings_of(tiny_base, photo_folder, photos={"shuffle_tags": True})
    first, *others = load_photos(settings.photos, 64)[0]
    photos = [replace(first, repeats=3), *others]
    made, none = latents(lightning, settings, model, [Taught(settings, "sks", photos, [])], 64)
    assert none is None and made.tokens.shape == (4, ORDERS, 77)
    assert torch.equal(made.tokens[0, 0], model.tokenize(["a sks dog, red, round, small"])[0])
    assert made.repeats.tolist() == [3, 1, 1, 1]
    assert len(made.tokens[0].unique(dim=0)) == 6 and len(made.tokens[3].unique(dim=0)) == 1
    plain = settings_of(tiny_base, photo_folder)
    without = latents(lightning, plain, model, [Taught(plain, "sks", photos, [])], 64)[0]
    assert without.tokens.shape == (4, 1, 77)
    store_photos(photos, photo_folder / "run")  # as a run does, and reads again to go on
    restored = [
        replace(one, repeats=was.repeats) for one, was in zip(restore_photos(photo_folder / "run"), photos, strict=True)
    ]
    resumed = latents(lightning, settings, model, [Taught(settings, "sks", restored, [])], 64)[0]
    assert all(torch.equal(getattr(made, one.name), getattr(resumed, one.name)) for one in fields(LatentSet))
    monkeypatch.setattr(type(model), "tokenize", None)
    made.micro_batch(model, "instance", 0, 0, 0, 1, 2)


def test_what_makes_no_sense_is_refused_or_told(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="nothing reaches the word that trains"):
        PersonalizeSettings.model_validate(
            {"photos": {"paths": ["x"], "class_noun": "dog", "caption_dropout": 0.1}, "train": {"parts": ["token"]}}
        )
    settings = settings_of(tmp_path, tmp_path, photos={"keep_tags": 2})
    assert settings.without_effect() == {"photos.keep_tags": "without shuffle_tags"}
