"""The subject's identifier: a rare word that is one token and means nothing to the base yet (paper, section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AddedToken

from ..core.errors import ModelError, SettingsError
from ..core.events import progress
from ..training.randomness import generator
from .families.family import Condition, Family

# Everyday words, against whose effect that of a candidate is measured: a word that means nothing moves the
# base's predictions less than these do.
EVERYDAY_WORDS = ("red", "big", "blue", "small", "old", "green", "happy", "wooden")
TIMESTEPS = 3  # at which a prediction is taken


@dataclass(frozen=True)
class Identifier:
    """A candidate and what is known of it."""

    token: str
    pieces: tuple[str, ...]
    """What the tokenizer makes of it; one piece is best."""
    response: float
    """How far the word moves the base's prediction for the class, relative to everyday words (1 = as far)."""

    @property
    def warnings(self) -> list[str]:
        found = []
        if len(self.pieces) > 1:
            found.append(
                f"`identifier.token={self.token}` splits into {len(self.pieces)} tokens "
                f"({' '.join(self.pieces)}); `identifier.token=auto` picks a whole one"
            )
        if self.response > 1:
            found.append(
                f"`identifier.token={self.token}` already means something to this base ({self.response:.1f} "
                "times the effect of an everyday word); "
                "`identifier.token=auto` picks a rarer one"
            )
        return found


def pieces(model: Family, text: str) -> tuple[str, ...]:
    """Give the tokens of `text`, without the markers of word ends."""
    return tuple(piece.replace("</w>", "") for piece in model.tokenizer.tokenize(text))


def check(model: Family, token: str, class_noun: str) -> Identifier:
    """Measure what tokenizer and base make of `token`."""
    return rank(model, [token], class_noun)[0]


def choose(model: Family, class_noun: str, shown: int = 5) -> list[Identifier]:
    """Choose the best identifiers of this base, least meaning first.

    Candidates are whole-word tokens of three or four letters without a vowel pattern of words, from the rare end
    of the vocabulary; they are ranked by the base's own response.
    """
    vocabulary = model.tokenizer.get_vocab()
    words = [
        (number, name.removesuffix("</w>"))
        for name, number in vocabulary.items()
        if re.fullmatch(r"[a-z]{3,4}</w>", name) and not re.search(r"[aeiouy]", name.removesuffix("</w>"))
    ]
    rarest = [word for _, word in sorted(words, reverse=True)[:48]]
    if not rarest:
        raise SettingsError(
            "identifier.token: auto finds no rare single tokens in this tokenizer", "name one yourself, such as sks"
        )
    return sorted(rank(model, rarest, class_noun), key=lambda one: (len(one.pieces), one.response))[:shown]


@torch.inference_mode()
def rank(model: Family, tokens: list[str], class_noun: str) -> list[Identifier]:
    """Measure each token's response: |prediction("a photo of a TOKEN CLASS") - prediction("a photo of a CLASS")|.

    Root mean square over fixed noise at the noisiest timesteps, where the caption alone decides; divided by the median
    of the same for everyday words.
    """
    words = [*tokens, *(word for word in EVERYDAY_WORDS if word not in class_noun.split())]
    prompts = [f"a photo of a {class_noun}", *(f"a photo of a {word} {class_noun}" for word in words)]
    condition = model.condition(model.tokenize(prompts))
    timesteps = model.process.noisiest(TIMESTEPS).to(model.device)
    shape = (len(timesteps), model.latent_channels, model.cells, model.cells)
    noise = torch.randn(shape, generator=generator(0, "token response")).to(model.device)

    def prediction(one: Condition) -> Tensor:
        return model.denoise(noise, timesteps, one.expand(len(timesteps)))

    plain = prediction(condition[:1])
    moved = [
        float((prediction(condition[i + 1 : i + 2]) - plain).square().mean().sqrt())
        for i in progress(range(len(words)), "listening to the base")
    ]
    usual = float(torch.tensor(moved[len(tokens) :]).median())
    return [
        Identifier(token, pieces(model, token), change / max(usual, 1e-12))
        for token, change in zip(tokens, moved, strict=False)
    ]


class TokenEmbedding(nn.Module):
    """The text encoder's embedding table with one row that trains (textual inversion, arXiv 2208.01618).

    Everything but the row is frozen, so the optimizer holds D numbers and weight decay touches no other word.
    """

    start: Tensor

    def __init__(self, table: nn.Embedding, token_id: int, start: Tensor) -> None:
        super().__init__()
        self.table, self.token_id = table, token_id
        self.row = nn.Parameter(start.detach().clone())  # (D,)
        self.register_buffer("start", start.detach().clone(), persistent=False)
        self.is_on = True  # else it is what it was at the start

    def forward(self, ids: Tensor) -> Tensor:  # (B, L) -> (B, L, D)
        row = self.row if self.is_on else self.start
        return torch.where((ids == self.token_id)[..., None], row.to(self.table.weight.dtype), self.table(ids))

    @staticmethod
    def install(model: Family, token: str, class_noun: str) -> None:
        """Make `token` trainable, starting from the mean embedding of the class noun; a token that splits is added."""
        for tokenizer, text_encoder, embeddings in model.token_tables():
            if len(tokenizer.tokenize(token)) > 1:
                tokenizer.add_tokens([AddedToken(token, single_word=True, normalized=False)])
                text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
                if hasattr(text_encoder, "text_projection"):
                    # What is projected is the state at the end, which configs of 2023 (eos_token_id 2) have found as
                    # the largest number: from now on that is the new word's.
                    text_encoder.text_model.eos_token_id = text_encoder.config.eos_token_id = tokenizer.eos_token_id
            token_id = tokenizer(token, add_special_tokens=False).input_ids[0]
            noun_ids = tokenizer(class_noun, add_special_tokens=False).input_ids
            table = embeddings.token_embedding.requires_grad_(False)
            embeddings.token_embedding = TokenEmbedding(table, token_id, table.weight[noun_ids].mean(dim=0))

    @staticmethod
    def remove(model: Family, write: bool = True) -> None:
        """Write the row into the table, unless it is to be forgotten, and put the plain table back."""
        for _, _, embeddings in model.token_tables():
            trained = embeddings.token_embedding
            if isinstance(trained, TokenEmbedding):
                with torch.no_grad():
                    if write:
                        trained.table.weight[trained.token_id] = trained.row
                embeddings.token_embedding = trained.table

    @staticmethod
    def teach(model: Family, token: str, rows: Sequence[Tensor]) -> None:
        """Give `token` what was learned for it elsewhere, a row (D,) for each text encoder. Raises ModelError where the
        model's words are of another width.
        """
        TokenEmbedding.install(model, token, token)
        for (_, text_encoder, embeddings), row in zip(model.token_tables(), rows, strict=True):
            if row.shape != embeddings.token_embedding.row.shape:
                raise ModelError(
                    f"{token}: has {len(row)} numbers, words of {model.source} have {text_encoder.config.hidden_size}",
                    "it was made for another base",
                )
            with torch.no_grad():
                embeddings.token_embedding.row.copy_(row)
        TokenEmbedding.remove(model)
