"""The recipe of the bundled base on a handful of drawn sprites: no network, no cache."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from femtobooth.generator.formats.folder import load_tokenizer, save_tokenizer
from recipes.emoji_world import autoencoder, backdrops, captions, scenes, sprites, tokenizer


def _draws(world: sprites.World, count: int, **options: Any) -> list[scenes.Scene]:
    return [scenes.scene(world, 3, index, **options) for index in range(count)]


@pytest.fixture(scope="module")
def drawn(world: sprites.World) -> list[scenes.Scene]:
    return _draws(world, 4000)


def test_a_scene_is_a_function_of_seed_and_index(world: sprites.World) -> None:
    first, again = scenes.scene(world, 1, 5), scenes.scene(world, 1, 5)
    assert first.pixels.shape == (64, 64, 3)
    assert first.pixels.dtype == np.uint8
    assert np.array_equal(first.pixels, again.pixels)
    assert (first.caption, first.items, first.backdrop) == (again.caption, again.items, again.backdrop)
    others = [scenes.scene(world, seed, index).pixels for seed, index in ((1, 6), (2, 5))]
    assert not any(np.array_equal(first.pixels, other) for other in others)


def test_training_never_draws_what_is_held_out(world: sprites.World, drawn: list[scenes.Scene]) -> None:
    for scene in drawn:
        for item in scene.items:
            name = world.concepts[item.concept].name
            assert not scenes.held_out(name, scene.backdrop)
            assert not scenes.held_out_style(name, world.styles[item.style])


def test_the_unseen_streams_draw_nothing_else() -> None:
    tints = np.zeros((400, sprites.SIZE, sprites.SIZE, 4), np.uint8)
    tints[:, 20:70, 20:70] = (200, 30, 30, 255)
    world = sprites.World(
        [sprites.Concept(f"thing {k}", colours=[""] * 4) for k in range(100)], list(sprites.STYLES), tints
    )
    for kind in ("backdrop", "style"):
        for scene in _draws(world, 60, unseen=kind):
            (item,) = scene.items
            name = world.concepts[item.concept].name
            assert scenes.held_out(name, scene.backdrop) == (kind == "backdrop")
            assert scenes.held_out_style(name, world.styles[item.style]) == (kind == "style")


def test_about_a_tenth_of_all_pairs_is_held_out_and_a_style_remains() -> None:
    names = [f"concept {k}" for k in range(300)]
    share = np.mean([scenes.held_out(name, place) for name in names for place in backdrops.names()])
    assert 0.08 < share < 0.12
    styles = [[scenes.held_out_style(name, style) for style in sprites.STYLES] for name in names]
    assert 0.02 < np.mean(styles) < 0.08
    assert max(sum(row) for row in styles) == 1


@pytest.fixture(scope="module")
def captioned(drawn: list[scenes.Scene]) -> list[scenes.Scene]:
    return [scene for scene in drawn if scene.caption and scene.items]


def _says(scene: scenes.Scene, phrase: str) -> bool:
    return f" {phrase} " in f" {scene.caption} "


def test_captions_name_what_is_there_and_count_it(world: sprites.World, captioned: list[scenes.Scene]) -> None:
    seen: set[str] = set()
    for scene in captioned:
        concepts = [world.concepts[item.concept] for item in scene.items]
        for concept in concepts:
            names = [name for name in (concept.name, *concept.also, concept.kind) if name]
            assert any(_says(scene, form) for name in names for form in (name, captions.plural(name))), scene
        for word, count in (("two", 2), ("three", 3), ("four", 4)):
            if _says(scene, word):
                assert (len(scene.items), len({item.concept for item in scene.items})) == (count, 1), scene
                seen.add(word)
        for style in (
            style for style, some in captions.STYLE_WORDS.items() if any(_says(scene, word) for word in some)
        ):
            assert style in {world.styles[item.style] for item in scene.items}, scene
            seen.add(style)
    assert seen == {"two", "three", "four", *sprites.STYLES}


def test_captions_say_the_styles_as_often_as_is_asked_and_the_picture_stays(world: sprites.World) -> None:
    usual, styled = _draws(world, 300), _draws(world, 300, styled=1.0)
    for one, other in zip(usual, styled, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        if other.caption and other.items:
            assert all(
                any(_says(other, word) for word in captions.STYLE_WORDS[world.styles[item.style]])
                for item in other.items
            )
    said = [
        sum(any(_says(one, word) for some in captions.STYLE_WORDS.values() for word in some) for one in drawn)
        for drawn in (usual, styled)
    ]
    assert said[0] < 0.45 * said[1]


def test_captions_are_true_of_size_and_place(captioned: list[scenes.Scene]) -> None:
    seen: set[str] = set()
    for scene in (scene for scene in captioned if len(scene.items) == 1):
        item = scene.items[0]
        facts = {
            "on the left": item.x < 32,
            "on the right": item.x > 32,
            "at the top": item.y < 32,
            "at the bottom": item.y > 32,
        }
        facts |= dict.fromkeys(captions.SIZES[0], item.size < 32) | dict.fromkeys(captions.SIZES[1], item.size > 32)
        for phrase in facts:
            if _says(scene, phrase):
                assert facts[phrase], scene
                seen.add(phrase)
    assert seen == set(facts)


def test_captions_are_true_of_two_things_side_by_side(world: sprites.World, captioned: list[scenes.Scene]) -> None:
    seen: set[str] = set()
    places = "|".join(phrase for _, some in backdrops.PLACES.values() for phrase in some)
    for scene in captioned:
        text = re.sub(rf" ({places})$", "", scene.caption)  # "under water" is no relation
        relation = re.search(r" (left of|right of|above|over|below|under) ", text)
        if relation and "toy" not in text:
            assert len(scene.items) == 2, scene
            concept = world.concepts[scene.items[0].concept]
            in_order = any(name in text[: relation.start()] for name in (concept.name, *concept.also))
            first, second = scene.items if in_order else scene.items[::-1]
            dx, dy = second.x - first.x, second.y - first.y
            assert {"left of": dx, "right of": -dx, "above": dy, "over": dy, "below": -dy, "under": -dy}[
                relation[1]
            ] > 0, scene
            seen.add(relation[1])
    assert seen >= {"left of", "right of"}


def test_plain_backgrounds_have_the_colour_that_is_said(captioned: list[scenes.Scene]) -> None:
    said = [(scene, re.search(r" on a ([a-z ]+) background$", scene.caption)) for scene in captioned]
    found = [
        (scene, match[1])
        for scene, match in said
        if match and match[1] in backdrops.COLOURS and scene.items[0].size < 60
    ]
    assert len(found) > 50
    for scene, colour in found:
        border = np.concatenate([scene.pixels[0], scene.pixels[:, 0], scene.pixels[:, -1]]).astype(int)
        assert np.abs(np.median(border, axis=0) - backdrops.COLOURS[colour]).max() < 40, scene


def test_dyed_sprites_have_the_colour_that_is_said(world: sprites.World) -> None:
    dyed = [(scene, item) for scene in _draws(world, 600, plain=1.0) for item in scene.items if item.dyed]
    assert dyed
    hues = {
        "red": (0,),
        "green": (1,),
        "blue": (2,),
        "yellow": (0, 1),
        "orange": (0,),
        "purple": (0, 2),
        "pink": (0, 2),
    }
    for scene, item in dyed:
        centre = scene.pixels[round(item.y), round(item.x)].astype(int)
        assert int(np.argmax(centre)) in hues[item.colour], (scene.caption, item, centre)


def test_a_tenth_has_no_caption_and_plain_scenes_have_one_sprite(
    world: sprites.World, drawn: list[scenes.Scene]
) -> None:
    assert 0.07 < np.mean([not scene.caption for scene in drawn]) < 0.13
    for scene in _draws(world, 60, plain=1.0):
        assert len(scene.items) == 1
        assert scene.backdrop.endswith(" background")


@pytest.mark.parametrize("name", backdrops.names())
def test_every_backdrop_can_be_drawn_and_varies(name: str) -> None:
    drawn = [backdrops.draw(scenes.Random(seed), name) for seed in range(3)]
    for one in drawn:
        assert one.image.size == (128, 128)
        assert one.ground is None or 0.3 < one.ground[0] <= one.ground[1] < 1
    if name not in ("white background", "black background"):
        assert len({one.image.tobytes() for one in drawn}) > 1


def test_names_are_joined_and_ambiguous_ones_left_out() -> None:
    def emoji(code: str, short: list[str], subcategory: str, order: int) -> dict[str, Any]:
        return {"unified": code, "short_names": short, "category": "c", "subcategory": subcategory, "sort_order": order}

    drawn = {"icons": {name: {} for name in ("automobile", "teapot", "lady-beetle", "grinning-face")}, "aliases": {}}
    less = {"icons": {name: {} for name in ("automobile", "lady-beetle", "grinning-face")}, "aliases": {}}
    listed = [
        emoji("1F41E", ["beetle", "bug"], "animal-bug", 2),
        emoji("1F697", ["car", "bug"], "transport-ground", 1),
        emoji("1FAD6-FE0F", ["teapot"], "drink", 3),
        emoji("1F600", ["grinning"], "face-smiling", 4),
    ]
    codes = {"1f697": "automobile", "1f41e": "lady-beetle", "1fad6": "teapot", "1f600": "grinning-face"}
    found = sprites.join(listed, codes, {"one": drawn, "two": drawn})
    assert [concept.name for concept in found] == ["car", "ladybug", "teapot"]
    assert found[1].also == ["lady beetle", "beetle"]
    assert [concept.kind for concept in found] == ["car", "insect", ""]
    assert [concept.name for concept in sprites.join(listed, codes, {"one": drawn, "two": less})] == ["car", "ladybug"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[("cherry blossom", "cherry blossoms"), ("box", "boxes"), ("butterfly", "butterflies"), ("monkey", "monkeys")],
        *[
            ("computer mouse", "computer mice"),
            ("glass of milk", "glasses of milk"),
            ("brush", "brushes"),
            ("snowman", "snowmen"),
        ],
    ],
)
def test_plurals(name: str, expected: str) -> None:
    assert captions.plural(name) == expected


def test_the_tokenizer_knows_words_and_identifiers_and_splits_the_rest(world: sprites.World, tmp_path: Path) -> None:
    made = tokenizer.build([scene.caption for scene in _draws(world, 200)], tokenizer.words(world), merges=60)
    save_tokenizer(made, tmp_path)
    loaded = load_tokenizer(tmp_path)
    for word in (*tokenizer.words(world), *tokenizer.RARE):
        assert loaded.tokenize(word) == [word + tokenizer.END]
    text = "a sks teapot, wearing Zürich's hat!"
    assert loaded.unk_token_id not in loaded(text, add_special_tokens=False).input_ids
    assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(
        " ", ""
    )
    assert loaded.model_max_length == tokenizer.LENGTH
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (tmp_path / "tokenizer.json").unlink()  # older programs read the other two files
        assert load_tokenizer(tmp_path)(text).input_ids == made(text).input_ids


def test_training_the_autoencoder_resumes_bit_for_bit(
    world: sprites.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder, "WIDTHS", (8, 8, 16))
    changes = {"steps": 4, "batch_size": 2, "checkpoint_every": 2, "trackers": ["csv"]}
    settings = autoencoder.SETTINGS.model_copy(update={**autoencoder.SMOKE, **changes})
    autoencoder.train(tmp_path, world, settings, measure=4)
    whole, step = autoencoder.trained(tmp_path)
    curves = (tmp_path / "logs/metrics.csv").read_text()
    assert step == 4
    shutil.rmtree(tmp_path / "checkpoints/step-000004")
    autoencoder.train(tmp_path, world, settings, measure=4)
    resumed, _ = autoencoder.trained(tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (tmp_path / "logs/metrics.csv").read_text() == curves
    assert (
        autoencoder.export(tmp_path, world, *autoencoder.trained(tmp_path), 8) / "diffusion_pytorch_model.safetensors"
    ).is_file()


def test_the_linear_code_keeps_detail_small_and_colour_large(world: sprites.World) -> None:
    weight, bias = autoencoder.linear_code(world, 64)
    latents = torch.nn.functional.conv2d(autoencoder.unseen(world, 64), weight, bias, stride=4)  # (64, 20, 16, 16)
    assert latents.shape[1:] == (autoencoder.LATENTS, 16, 16)
    assert latents.square().mean().item() == pytest.approx(1, rel=0.3)  # other scenes than those it was made from
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.5
    spread = latents.std(dim=(0, 2, 3))
    assert spread[0] > 1.5
    assert spread[8:].max() < 0.5
    rows = weight.flatten(1)
    lengths = rows.norm(dim=1)
    assert torch.allclose(rows @ rows.T, torch.diag(lengths**2), atol=1e-4)  # an orthogonal basis
    assert torch.allclose(autoencoder.linear_code(world, 64)[0], weight)


def test_psnr_of_known_errors() -> None:
    pictures = torch.zeros(2, 3, 4, 4)
    made = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    overall, each = autoencoder.psnr(pictures, made)
    assert each == pytest.approx((20 + 40) / 2, abs=1e-3)
    assert overall == pytest.approx(10 * np.log10(4 / ((0.04 + 0.0004) / 2)), abs=1e-3)
