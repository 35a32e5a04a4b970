"""Several subjects in one run: their names, their words, their prompts, and what training sees of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from femtobooth.core import config
from femtobooth.core.errors import FemtoboothError, PhotoError, SettingsError
from femtobooth.generator import prior, prompts, taught, tokens
from femtobooth.generator.load import load
from femtobooth.generator.photos import Photo
from femtobooth.generator.prompts import Called, called, of_templates
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.generator.taught import Taught
from femtobooth.parsing import overrides
from femtobooth.workflows.personalizing.training_data import latents

REX, MUG = Called("sks", "dog"), Called("zwx", "mug")
BOTH = {"rex": REX, "mug": MUG}
GIVEN = {"rex": "photos/rex:dog", "mug": {"paths": ["m"], "class_noun": "mug", "token": "zwx"}}


def settle(**given: Any) -> PersonalizeSettings:
    return config.settle(PersonalizeSettings, {"subjects": GIVEN, **given})


# --- settings


def test_each_subject_has_its_own_settings_and_all_share_the_rest() -> None:
    settings = settle(photos={"crop": "center"})
    rex, mug = settings.each.values()
    assert (rex.photos.paths, rex.photos.class_noun, rex.identifier.token) == (["photos/rex"], "dog", "auto")
    assert (mug.photos.paths, mug.photos.class_noun, mug.identifier.token) == (["m"], "mug", "zwx")
    assert rex.photos.crop == mug.photos.crop == "center" and rex.subjects == {}
    assert settings.nouns == ["dog", "mug"]
    layer = config.Layer(config.read_yaml(_file(config.dump(settings))))
    assert config.resolve(PersonalizeSettings, layer) == settings
    alone = config.resolve(PersonalizeSettings, {"photos": {"paths": ["x"], "class_noun": "cat"}})
    assert alone.each == {"V": alone} and alone.nouns == ["cat"]


def _file(text: str) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_line_says_them_as_a_file_does() -> None:
    flags = {"subjects": ["rex=photos/rex:dog", "mug=m:mug"]}
    assert config.settle(PersonalizeSettings, overrides(PersonalizeSettings, ["subjects.mug.token=zwx"], flags)) == (
        settle()
    )


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"../x": "p:dog"}, r"subjects: '\.\./x' is no name"),
        ({"a b": "p:dog"}, "is no name"),
        ({"": "p:dog"}, "is no name"),
        ({"x" * 33: "p:dog"}, "is no name"),
        ({"v": "p:dog"}, "other than V"),
        ({"rex": "p:dog", "REX": "q:dog"}, "two subjects with the name rex"),
        ({"rex": {**GIVEN["mug"]}, "mug": {**GIVEN["mug"], "token": "ZWX"}}, "two subjects with the token zwx"),  # type: ignore[dict-item]
        ({"rex": "photos/rex"}, r"subjects\.rex: 'photos/rex' does not say what the subject is"),
        ({"rex": "C:/photos/rex"}, "does not say what the subject is"),
        ({"rex": {"paths": ["p"]}}, r"subjects\.rex\.class_noun: not given"),
        ({"rex": {"paths": [], "class_noun": "dog"}}, r"subjects\.rex\.paths: list should have at least 1"),
        ({"rex": {**GIVEN["mug"], "token": "a b"}}, r"subjects\.rex\.token: 'a b' is not one word"),  # type: ignore[dict-item]
    ],
)
def test_what_is_no_subject_is_refused_in_a_line(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as raised:
        config.settle(PersonalizeSettings, {"subjects": given})
    assert len(raised.value.lines) <= 2


def test_photos_and_words_of_one_do_not_stand_beside_several(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="says the photos and the noun of each"):
        settle(photos={"paths": ["x"]})
    assert (
        "beside `subjects`"
        in settle()
        .model_copy(update={"identifier": config.resolve(type(settle().identifier), {"token": "abc"})})
        .without_effect()["identifier.token"]
    )
    with pytest.raises(PhotoError, match="photos/rex: no such file or folder"):
        settle().refuse_at_once()


# --- prompts


@pytest.mark.parametrize(
    ("template", "made"),
    [
        ("a [V] {class} here", [("a sks dog here", "rex"), ("a zwx mug here", "mug")]),
        ("a {class}", [("a dog", None), ("a mug", None)]),
        ("a [v:REX] {class}", [("a sks dog", "rex")]),
        ("a [V:rex] dog next to a [V:mug] mug", [("a sks dog next to a zwx mug", None)]),
        ("a red apple", [("a red apple", None)]),
    ],
)
def test_a_template_is_made_once_for_each_subject_that_it_means(template: str, made: list[Any]) -> None:
    found = of_templates([template, template], BOTH)
    assert [(one.text, one.of) for one in found] == made
    assert all("sks" not in one.bare and "zwx" not in one.bare for one in found)


def test_one_subject_is_as_ever() -> None:
    (one, two) = of_templates(["a [V] {class}", "a {class}"], {"V": REX})
    assert (one.text, one.of, one.bare) == ("a sks dog", "V", "a dog")
    assert (two.text, two.of) == ("a dog", None)
    assert called("a [V] and [v]", {"rex": "sks"}) == called("a [V:rex] and [V]", {"rex": "sks"}) == "a sks and sks"


@pytest.mark.parametrize(
    ("template", "problem", "way_out"),
    [
        ("a [V] dog", r"\[V\] could be any of 2 subjects", r"write \[V:rex\] or \[V:mug\]"),
        ("a [V:max] dog", "there is no subject 'max'", r"write \[V:rex\] or \[V:mug\]"),
        ("a [V:max] {class}", "there is no subject 'max'", r"write \[V:rex\] or \[V:mug\]"),
        ("[V:rex] and [V:mug] {class}", r"\{class\} could be the noun of any of 2", "write the nouns out"),
        ("[V] and [V:mug] {class}", r"\[V\] could be any of 2", r"write \[V:rex\]"),
    ],
)
def test_a_prompt_that_could_mean_any_is_refused(template: str, problem: str, way_out: str) -> None:
    with pytest.raises(SettingsError, match=problem) as raised:
        of_templates([template], BOTH)
    assert raised.value.way_out is not None
    import re

    assert re.search(way_out, raised.value.way_out)


def test_what_a_model_folder_says_is_read_again() -> None:
    for subjects in ({"V": REX}, {"rex": REX}, BOTH):
        assert prompts.called_in(prompts.known_of(subjects)) == subjects
    assert prompts.known_of({"V": REX}) == {"token": "sks", "class_noun": "dog"}
    assert prompts.known_of({"rex": REX})["token"] == "sks"
    assert "token" not in prompts.known_of(BOTH)
    for wrong in ({"subjects": []}, {"subjects": {"rex": 3}}, {"subjects": {"rex": {"token": 3}}}):
        with pytest.raises(ValueError, match="must be"):
            prompts.called_in(wrong)


# --- words


def test_words_are_chosen_far_apart(tiny_base: Path) -> None:
    model = load(str(tiny_base))
    found = tokens.choose_apart(model, {"a": ("auto", "dog"), "b": ("auto", "dog"), "c": ("sks", "mug")})
    words = [found[name][0].token for name in "abc"]
    assert len(set(words)) == 3 and words[2] == "sks"
    ranked = [one.token for one in tokens.choose(model, "dog", tokens.SHORTLIST) if one.token != "sks"]
    far = tokens.distances(model, ranked, ["sks"])[:, 0]
    assert words[0] == ranked[int(far.argmax())]  # the farthest from the one that was given
    rest = [word for word in ranked if word != words[0]]
    assert words[1] == rest[int(tokens.distances(model, rest, ["sks", words[0]]).min(dim=1).values.argmax())]
    apart = tokens.distances(model, words, words)
    assert [found[name][1] for name in "abc"] == pytest.approx(apart.fill_diagonal_(9).min(dim=1).values.tolist())
    assert torch.equal(apart, apart.T) and 0 < float(apart.min()) <= 2


def test_words_that_the_base_reads_alike_are_refused(tiny_base: Path) -> None:
    with pytest.raises(SettingsError, match="a and b have identifiers that this base reads alike: sks and SKS"):
        tokens.choose_apart(load(str(tiny_base)), {"a": ("sks", "dog"), "b": ("SKS", "mug")})


def test_several_new_words_train_and_stay(tiny_base: Path) -> None:
    model = load(str(tiny_base))
    plain = model.text_encoder.embeddings.token_embedding.weight.detach().clone()
    tokens.TokenEmbedding.install_all(model, {"<a>": "dog", "sks": "mug"})
    table = model.text_encoder.embeddings.token_embedding
    noun = model.tokenizer("dog", add_special_tokens=False).input_ids
    first, second = (rows[0] for rows in tokens.TokenEmbedding.rows(model))
    torch.testing.assert_close(first, plain[noun].mean(0))
    with torch.no_grad():
        first.fill_(1.0)
        second.fill_(2.0)
    ids = torch.tensor([model.tokenizer("<a> sks red", add_special_tokens=False).input_ids])
    seen = table(ids)[0]
    assert seen[0].unique().tolist() == [1.0] and seen[1].unique().tolist() == [2.0]
    assert torch.equal(seen[2], plain[ids[0, 2]])
    assert sorted(name for name, one in table.named_parameters() if one.requires_grad) == ["row", "table.row"]
    tokens.TokenEmbedding.remove(model)
    weight = model.text_encoder.embeddings.token_embedding.weight
    assert weight[ids[0, 0]].unique().tolist() == [1.0] and weight[ids[0, 1]].unique().tolist() == [2.0]
    untouched = torch.ones(len(plain), dtype=torch.bool)
    untouched[ids[0, 1]] = False
    assert torch.equal(weight[: len(plain)][untouched], plain[untouched])


# --- what training sees


def _taught(settings: PersonalizeSettings, tmp_path: Path, dogs: int = 2) -> dict[str, Taught]:
    """Two subjects: `dogs` photos of rex, the first seen twice as often, and one of mug."""
    random = np.random.default_rng(0)

    def photo(name: str, *captions: str, repeats: int = 1) -> Photo:
        return Photo(tmp_path / name, random.integers(0, 255, (64, 64, 3), np.uint8), captions, (), repeats=repeats)

    rex = [photo(f"r{number}.png", "a {token} {class}", repeats=2 - min(number, 1)) for number in range(dogs)]
    mug = [photo("m.png", "a {token} {class}", "my {token} {class}")]
    each = settings.each
    return {"rex": Taught(each["rex"], "sks", rex, []), "mug": Taught(each["mug"], "zwx", mug, [])}


ALONE: Any = SimpleNamespace(
    strategy=SimpleNamespace(barrier=lambda: None, broadcast=lambda value, source=0: value), global_rank=0, world_size=1
)


def test_each_photo_is_seen_as_often_whoses_it_is(tmp_path: Path, tiny_base: Path) -> None:
    settings, model = settle(prior={"weight": 0.0}), load(str(tiny_base))
    subjects = _taught(settings, tmp_path)
    photos, none = latents(ALONE, settings, model, [*subjects.values()], 64)
    assert none is None and photos.repeats.tolist() == [2, 1, 1]
    wanted = model.tokenize(["a sks dog"] * 4 + ["a zwx mug", "my zwx mug"]).reshape(3, 2, -1)
    assert torch.equal(photos.tokens, wanted)
    seen = torch.zeros(3, dtype=torch.int64)
    for step in range(6):  # three passes over four visits, two at a time
        batch = photos.micro_batch(model, "instance", 0, step, 0, 1, 2)
        for one in batch.tokens:
            seen[2 if any(torch.equal(one, own) for own in wanted[2]) else 0] += 1
    assert seen.tolist() == [9, 0, 3]


def test_class_images_are_made_once_for_a_noun(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    made = prior.class_images

    def counted(model: Any, prompt: str, *rest: Any) -> np.ndarray:
        drawn.append(prompt)
        return made(model, prompt, *rest)

    monkeypatch.setattr(prior, "class_images", counted)
    wanted = {"images": 2, "other_classes": ["cat"], "prompt": "a {class}", "sampling": {"steps": 1}}
    same = {"rex": "a:dog", "mug": "b:dog"}
    for subjects, background, prompts_of, kept_of in (
        (same, "photos", ["a dog", "a cat"], ["a dog"] * 2 + ["a cat"] * 2),
        (GIVEN, "photos", ["a dog", "a mug", "a cat"], ["a dog"] * 2 + ["a mug"] * 2 + ["a cat"] * 2),
        (
            GIVEN,
            "class",
            ["a dog", "a mug", "a cat"],
            [
                *(["a dog"] * 2 + ["a cat"] * 2) * 2, *["a sks dog"] * 2,
                *(["a mug"] * 2 + ["a cat"] * 2) * 2, *["a zwx mug"] * 2,
            ],
        ),
    ):  # fmt: skip
        drawn.clear()
        settings = settle(subjects=subjects, prior=wanted, loss={"background": background})
        model = load(str(tiny_base))
        photos, kept = latents(ALONE, settings, model, [*_taught(settings, tmp_path).values()], 64)
        assert len(photos) == 3 and kept is not None
        assert drawn == prompts_of
        assert torch.equal(kept.tokens[:, 0], model.tokenize(kept_of))
        assert kept.taught.tolist() == ["sks" in text or "zwx" in text for text in kept_of]
    torch.testing.assert_close(kept.mean[18:], kept.mean[10:12], rtol=1e-3, atol=1e-4)


def test_captions_may_name_other_subjects(tmp_path: Path, tiny_base: Path) -> None:
    settings, model = settle(prior={"target": "photos"}, loss={"background": "class"}), load(str(tiny_base))
    subjects = _taught(settings, tmp_path)

    def with_caption(text: str) -> dict[str, Taught]:
        first, *rest = subjects["rex"].photos
        return {**subjects, "rex": replace(subjects["rex"], photos=[replace(first, captions=(text,)), *rest])}

    found = taught.captioned(model, with_caption("a [V:rex] {class} by a [V:MUG] mug"))
    assert found["rex"].photos[0].captions == ("a {token} {class} by a zwx mug",)
    with pytest.raises(PhotoError, match=r"r0\.png: its caption names another subject \(zwx\)"):
        taught.tell_of_class(model, found)
    with pytest.raises(FemtoboothError, match=r"r0\.png: its caption .* there is no subject 'max' here"):
        taught.captioned(model, with_caption("a [V:max] {class}"))
    _, kept = latents(ALONE, settings, model, [*subjects.values()], 64)
    assert kept is not None
    asked = [*["a dog", "a dog", "my mug"] * 2, "a sks dog", "a sks dog", "my zwx mug"]
    assert torch.equal(kept.tokens[:, 1], model.tokenize(asked))
