"""Identifiers on the real bundled base: whole rare words, ranked by the base's own response."""

from __future__ import annotations

import pytest

from femtobooth.core.config import resolve
from femtobooth.core.errors import SettingsError
from femtobooth.generator import tokens
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.load import load
from femtobooth.generator.subject_settings import IdentifierSettings


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


def test_a_new_word_can_be_added_for_textual_inversion(tiny_sd1: object) -> None:
    model = load(str(tiny_sd1))
    size = len(model.tokenizer)
    tokens.TokenEmbedding.install(model, "<my-robot>", "robot")
    assert len(model.tokenizer) == size + 1
    assert tokens.pieces(model, "a <my-robot> robot")[1] == "<my-robot>"
    assert model.condition(model.tokenize(["a <my-robot> robot"])).tensors["encoder_hidden_states"].shape == (1, 77, 32)
    tokens.TokenEmbedding.remove(model)
    assert model.text_encoder.embeddings.token_embedding.weight.shape[0] == size + 1
