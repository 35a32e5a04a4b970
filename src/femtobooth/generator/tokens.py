"""The subject's identifier: a rare word that is one token and means nothing to the base yet (paper, section 3.2)."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import AddedToken

from ..core.errors import ModelError, SettingsError
from ..core.events import progress
from ..training.randomness import generator
from .families.family import Condition, Family
from .frozen import count
from .subject_settings import AUTO

# Everyday words, against whose effect that of a candidate is measured: a word that means nothing moves the
# base's predictions less than these do.
EVERYDAY_WORDS = ("red", "big", "blue", "small", "old", "green", "happy", "wooden")
SPACE = "Ġ"  # begins the tokens of whole words where `</w>` does not end them
TIMESTEPS = 3  # at which a prediction is taken
LARGE = 10**13  # of a base: the denoiser's parameters times cells; Stable Diffusion 2.1 at 768 pixels has 8e12, XL 4e13
SIDES = 4  # how many times a large base's own side its smaller pictures would fit
SHORTLIST = 12  # candidates of least meaning, among which those far apart are looked for


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


@dataclass(frozen=True)
class Listening:
    """How predictions are taken to measure responses: for latents of `cells` width and height, at some timesteps."""

    cells: int
    timesteps: Tensor
    """On the CPU."""

    @staticmethod
    def to(model: Family) -> Listening:
        """Choose how: at the base's own size, or so that all together take about as long as a step of training.

        Of a large base a quarter of the side and one timestep of three are left. What that changes was measured on the
        bundled base, whose 16 rare words it ranks much as before: the correlation of ranks is 0.7 to 0.85.
        """
        timesteps, block = model.process.noisiest(TIMESTEPS), model.step // model.vae_factor
        if count(model.denoiser) * model.cells**2 <= LARGE or model.cells < SIDES * block:
            return Listening(model.cells, timesteps)
        return Listening(model.cells // SIDES // block * block, timesteps[1:2])


def pieces(model: Family, text: str) -> tuple[str, ...]:
    """Give the tokens of `text`, without the markers of word ends."""
    return tuple(piece.replace("</w>", "").replace(SPACE, "") for piece in model.tokenizer.tokenize(f" {text}"))


def check(model: Family, token: str, class_noun: str) -> Identifier:
    """Measure what tokenizer and base make of `token`."""
    return rank(model, [token], class_noun)[0]


def choose_apart(model: Family, wanted: Mapping[str, tuple[str, str]]) -> dict[str, tuple[Identifier, float]]:
    """Choose identifiers that are far apart, by name of their subject; `wanted` has the token, or `auto`, and the noun.

    Those that are given stand. The others are taken one by one from the best of `choose`: always the one whose nearest
    word among those taken is farthest (`distances`; Gonzalez 1985, farthest-point clustering). Each comes with its
    distance to the nearest other. Raises SettingsError for two that the base reads alike, and for too few words.
    """
    given = {name: token for name, (token, _) in wanted.items() if token != AUTO}
    found: dict[str, Identifier] = {name: check(model, token, wanted[name][1]) for name, token in given.items()}
    for one, other in itertools.combinations(given, 2):
        if given[one].casefold() == given[other].casefold() or found[one].pieces == found[other].pieces:
            raise SettingsError(
                f"`subjects`: {one} and {other} have identifiers that this base reads alike: "
                f"{given[one]} and {given[other]}",
                "give one of them another token, or none, to have it chosen",
            )
    ranked: dict[str, list[Identifier]] = {}
    for name, (token, noun) in wanted.items():
        if token != AUTO:
            continue
        if noun not in ranked:
            ranked[noun] = choose(model, noun, shown=SHORTLIST)
        taken = {one.token for one in found.values()}
        free = [one for one in ranked[noun] if one.token not in taken]
        if not free:
            raise SettingsError(
                f"`subjects`: this base has no more rare words than {len(taken)}", f"give {name} a token of your own"
            )
        farthest = 0
        if found:
            apart = distances(model, [one.token for one in free], [one.token for one in found.values()])
            farthest = int(apart.min(dim=1).values.argmax())
        found[name] = free[farthest]
    words = [found[name].token for name in wanted]
    apart = distances(model, words, words).fill_diagonal_(math.inf)
    return {name: (found[name], float(apart[row].min())) for row, name in enumerate(wanted)}


@torch.no_grad()
def distances(model: Family, first: Sequence[str], second: Sequence[str]) -> Tensor:
    """Measure how far words are apart in what the text encoders make of them: (N, M), 1 - cosine, 0 to 2.

    Of each word it is the state at its last piece in "a photo of a WORD", less the mean of everyday words there, as
    all such states have most in common.
    """
    words = list(dict.fromkeys([*first, *second]))
    tokens = model.tokenize([f"a photo of a {word}" for word in words])
    at = [model.last_place(f"a photo of a {word}") for word in words]
    states = next(iter(model.condition(tokens).tensors.values()))  # (N, L, D)
    rows = torch.stack([states[row, min(place, states.shape[1] - 1)] for row, place in enumerate(at)]).float().cpu()
    usually = model.last_place("a photo of a") + 1
    everyday = model.tokenize([f"a photo of a {word}" for word in EVERYDAY_WORDS])
    usual = next(iter(model.condition(everyday).tensors.values()))[:, usually].float().mean(dim=0).cpu()
    rows = torch.nn.functional.normalize(rows - usual, dim=1)
    index = {word: row for row, word in enumerate(words)}
    ours, theirs = (rows[[index[word] for word in some]] for some in (first, second))
    return 1 - ours @ theirs.T


def choose(model: Family, class_noun: str, shown: int = 5) -> list[Identifier]:
    """Choose the best identifiers of this base, least meaning first.

    Candidates are whole-word tokens of three or four letters without a vowel pattern of words, from the rare end
    of the vocabulary; they are ranked by the base's own response.
    """
    vocabulary = model.tokenizer.get_vocab()
    words = [
        (number, name.removesuffix("</w>").removeprefix(SPACE))
        for name, number in vocabulary.items()
        if re.fullmatch(rf"[b-df-hj-np-tv-xz]{{3,4}}</w>|{SPACE}[b-df-hj-np-tv-xz]{{3,4}}", name)
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
    of the same for everyday words. Large bases predict for smaller pictures (`Listening`).
    """
    words = [*tokens, *(word for word in EVERYDAY_WORDS if word not in class_noun.split())]
    prompts = [f"a photo of a {class_noun}", *(f"a photo of a {word} {class_noun}" for word in words)]
    condition = model.condition(model.tokenize(prompts))
    how = Listening.to(model)
    timesteps = how.timesteps.to(model.device)
    shape = (len(timesteps), model.latent_channels, how.cells, how.cells)
    noise = torch.randn(shape, generator=generator(0, "token response")).to(model.device, model.denoiser.dtype)

    def prediction(one: Condition) -> Tensor:
        return model.denoise(noise, timesteps, one.expand(len(timesteps))).float()

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

    Everything but the row is frozen, so the optimizer holds D numbers and weight decay touches no other word. Several
    words train in tables around each other.
    """

    start: Tensor

    def __init__(self, table: nn.Embedding | TokenEmbedding, token_id: int, start: Tensor) -> None:
        super().__init__()
        self.table, self.token_id = table, token_id
        self.row = nn.Parameter(start.detach().clone())  # (D,)
        self.register_buffer("start", start.detach().clone(), persistent=False)
        self.is_on = True  # else it is what it was at the start

    @property
    def weight(self) -> Tensor:
        """The plain table (V, D), below all rows that train."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:  # (B, L) -> (B, L, D)
        row = self.row if self.is_on else self.start
        return torch.where((ids == self.token_id)[..., None], row.to(self.table.weight.dtype), self.table(ids))

    @staticmethod
    def install(model: Family, token: str, class_noun: str) -> None:
        """Make `token` trainable, starting from the mean embedding of the class noun; a token that splits is added."""
        TokenEmbedding.install_all(model, {token: class_noun})

    @staticmethod
    def install_all(model: Family, nouns: Mapping[str, str]) -> None:
        """Do the same for several tokens with a noun each, in their order, the first innermost."""
        for tokenizer, text_encoder, embeddings, reads_end in model.token_tables():
            for token in nouns:
                if len(tokenizer.tokenize(token)) > 1:
                    tokenizer.add_tokens([AddedToken(token, single_word=True, normalized=False)])
                    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
                    if reads_end:
                        # What is read is the state at the end, which configs of 2023 (eos_token_id 2) have found
                        # as the largest number: from now on that is the new word's.
                        clip = getattr(text_encoder, "text_model", text_encoder)
                        clip.eos_token_id = text_encoder.config.eos_token_id = tokenizer.eos_token_id
            embeddings.token_embedding.requires_grad_(False)
            for token, noun in nouns.items():
                token_id = tokenizer(token, add_special_tokens=False).input_ids[0]
                noun_ids = tokenizer(noun, add_special_tokens=False).input_ids
                table = embeddings.token_embedding
                embeddings.token_embedding = TokenEmbedding(table, token_id, table.weight[noun_ids].float().mean(dim=0))

    @staticmethod
    def rows(model: Family) -> list[tuple[Tensor, ...]]:
        """Give what was learned of each token, in the order of `install_all`: a row (D,) for each text encoder."""
        found = []
        for _, _, embeddings, _ in model.token_tables():
            table, ours = embeddings.token_embedding, []
            while isinstance(table, TokenEmbedding):
                ours.append(table.row.detach())
                table = table.table
            found.append(ours[::-1])
        return list(zip(*found, strict=True))

    @staticmethod
    def remove(model: Family, write: bool = True) -> None:
        """Write every row into the table, unless it is to be forgotten, and put the plain table back."""
        for _, _, embeddings, _ in model.token_tables():
            while isinstance(trained := embeddings.token_embedding, TokenEmbedding):
                with torch.no_grad():
                    if write:
                        trained.weight[trained.token_id] = trained.row
                embeddings.token_embedding = trained.table

    @staticmethod
    def teach(model: Family, token: str, rows: Sequence[Tensor]) -> None:
        """Give `token` what was learned for it elsewhere, a row (D,) for each text encoder. Raises ModelError where the
        model's words are of another width.
        """
        if len(rows) != len(model.token_tables()):
            raise ModelError(
                f"{token}: has {len(rows)} vectors, {model.source} has {len(model.token_tables())} text encoders",
                "it was made for another base",
            )
        TokenEmbedding.install(model, token, token)
        for (_, text_encoder, embeddings, _), row in zip(model.token_tables(), rows, strict=True):
            if row.shape != embeddings.token_embedding.row.shape:
                raise ModelError(
                    f"{token}: has {len(row)} numbers, words of {model.source} have {text_encoder.config.hidden_size}",
                    "it was made for another base",
                )
            with torch.no_grad():
                embeddings.token_embedding.row.copy_(row)
        TokenEmbedding.remove(model)

    @staticmethod
    def beside(model: Family, words: Mapping[str, Sequence[Tensor]]) -> Family:
        """Make a model that knows words, by their rows, and shares all weights with this one but the tables of words.

        This one stays as it is: its tokenizers, and its tables. Raises ModelError as `teach` does.
        """
        if not words:
            return model
        own = [embeddings.token_embedding.weight for _, _, embeddings, _ in model.token_tables()]
        parts = model.text_encoders.values()
        shared = {id(one): one for part in parts for one in (*part.parameters(), *part.buffers())}
        for table in own:
            del shared[id(table)]
        named = dict.fromkeys((*model.TEXT_ENCODERS, *model.TEXT_ENCODERS.values()))
        knowing = replace(model, **copy.deepcopy({name: getattr(model, name) for name in named}, shared))
        for word, rows in words.items():
            TokenEmbedding.teach(knowing, word, rows)
        return knowing
