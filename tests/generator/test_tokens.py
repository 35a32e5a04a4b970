"""Identifiers on the real bundled base: whole rare words, ranked by the base's own response."""

from __future__ import annotations

from typing import Any

import pytest
from adapter_readers import published, published_xl
from torch import Tensor

from femtobooth.core.config import resolve
from femtobooth.core.errors import SettingsError
from femtobooth.core.events import Event, listening
from femtobooth.generator import taught, tokens
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.load import load
from femtobooth.generator.subject_settings import IdentifierSettings

from .conftest import settings


@pytest.fixture(scope="module")
def bundled() -> StableDiffusion:
    return load("bundled")


def test_sks_is_one_token_without_meaning_here(bundled: StableDiffusion) -> None:
    found = tokens.check(bundled, "sks", "robot")
    assert found.pieces == ("sks",)
    assert found.warnings == []


def test_a_word_that_means_something_warns(bundled: StableDiffusion) -> None:
    for word in ("glossy", "yellow", "penguin"):
        found = tokens.check(bundled, word, "robot")
        assert len(found.pieces) == 1
        if found.warnings:
            assert "already means something" in found.warnings[0]
            return
    pytest.fail("none of three words that the base knows well was noticed")


def test_a_word_that_splits_warns(bundled: StableDiffusion) -> None:
    found = tokens.check(bundled, "qqzzxv", "robot")
    assert len(found.pieces) > 1
    assert "splits into" in found.warnings[0]


@pytest.mark.parametrize("token", ["two words", "", " ", "[V]", "{token}"])
def test_no_word_at_all_is_refused(token: str) -> None:
    with pytest.raises(SettingsError, match="is not one word"):
        resolve(IdentifierSettings, {"token": token})


def test_auto_ranks_whole_rare_tokens(bundled: StableDiffusion) -> None:
    found = tokens.choose(bundled, "robot")
    assert len(found) == 5
    assert all(len(one.pieces) == 1 for one in found)
    assert [one.response for one in found] == sorted(one.response for one in found)
    everyday = tokens.rank(bundled, ["glossy", "red"], "robot")
    assert found[0].response < min(one.response for one in everyday)
    assert found == tokens.choose(bundled, "robot")


def test_bases_up_to_21_are_listened_to_at_their_own_size_and_larger_ones_at_less() -> None:
    found = {}
    for name, base in {"1.x": published("1.x"), "2.x": published("2.x"), "XL": published_xl()}.items():
        if name == "2.x":
            base.unet.register_to_config(sample_size=96)  # which is drawn at 768 pixels
        how = tokens.Listening.to(base)
        found[name] = (how.cells, how.timesteps.tolist())
    every = [749, 874, 999]
    assert found == {"1.x": (64, every), "2.x": (96, every), "XL": (32, every[1:2])}


def test_a_large_base_is_heard_with_a_small_part_of_the_work(
    bundled: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: list[int] = []

    def counted(noisy: Tensor, *rest: Any) -> Tensor:
        work.append(noisy.numel())
        found: Tensor = StableDiffusion.denoise(bundled, noisy, *rest)
        return found

    monkeypatch.setattr(bundled, "denoise", counted)
    whole = tokens.rank(bundled, ["qvk", "glossy"], "robot")
    before = sum(work)
    work.clear()
    monkeypatch.setattr(tokens, "LARGE", 0)
    told: list[Event] = []
    with listening(told.append):
        assert taught.identifiers(bundled, settings("identifier.token=qvk")) == {"V": "qvk"}
    assert (
        sum(work) * 16 * 3 * 11 == before * 10
    )  # a sixteenth of the pixels at a third of the timesteps, and a word less
    assert [one.data["text"] for one in told if one.kind == "note"] == [
        "this base is large: what words mean to it is measured at 16 px, in about the time of a step"
    ]
    small = tokens.rank(bundled, ["qvk", "glossy"], "robot")
    for rare, known in (whole, small):
        assert rare.response < 0.5
        assert known.response > 2 * rare.response


def test_a_new_word_can_be_added_for_textual_inversion(tiny_base: object) -> None:
    model = load(str(tiny_base))
    size = len(model.tokenizer)
    tokens.TokenEmbedding.install(model, "<my-robot>", "robot")
    assert len(model.tokenizer) == size + 1
    assert tokens.pieces(model, "a <my-robot> robot")[1] == "<my-robot>"
    assert model.condition(model.tokenize(["a <my-robot> robot"])).tensors["encoder_hidden_states"].shape == (1, 77, 32)
    tokens.TokenEmbedding.remove(model)
    assert model.text_encoder.embeddings.token_embedding.weight.shape[0] == size + 1
