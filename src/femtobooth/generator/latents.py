"""What training sees of pictures: their latents, encoded once, and the micro-batches that are sampled from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from ..core.events import progress
from ..core.machine import Precision
from ..pictures.framing import Framing
from ..training.randomness import chosen_group, generator, shuffled_indices
from .families.family import Family
from .loss_masks import Region, loss_mask
from .sampling import to_pixels

AT_ONCE = 4  # pictures that the VAE encodes


def _ones() -> Tensor:
    return torch.ones(())


def _none() -> Tensor:
    return torch.zeros((), dtype=torch.bool)


def _unknown() -> Tensor:
    return torch.zeros(6, dtype=torch.int64)


def _once() -> Tensor:
    return torch.ones((), dtype=torch.int64)


@dataclass
class LatentSet:
    """Pictures as the VAE sees them, encoded once: posterior mean and log-variance, and their captions, on the CPU."""

    mean: Tensor  # (N, F, c, h, w), unscaled; F is 2 with mirrored copies, else 1
    log_variance: Tensor  # (N, F, c, h, w)
    tokens: Tensor  # (N, K, ...): K captions each, one of which is sampled
    mask: Tensor = field(default_factory=_ones)  # (N, F, 1, h, w): how much each cell counts in the loss; all alike
    taught: Tensor = field(default_factory=_none)  # (N,) bool: whether the target is the teacher's prediction; none
    repeats: Tensor = field(default_factory=_once)  # (N,) int64: how often each is seen in one pass; once
    framing: Tensor = field(default_factory=_unknown)  # (N, F, 6): `Framing.numbers` of each; zeros

    def __post_init__(self) -> None:
        pictures, views, _, height, width = self.mean.shape
        self.mask = self.mask.expand(pictures, views, 1, height, width)
        self.taught = self.taught.expand(pictures)
        self.repeats = self.repeats.expand(pictures)
        self.framing = self.framing.expand(pictures, views, 6)

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def captions(self) -> Tensor:
        """The tokens of all captions, (N K, ...)."""
        return self.tokens.flatten(0, 1)

    def __add__(self, other: LatentSet) -> LatentSet:
        """Put the pictures of both together, which have as many views and captions each."""
        return LatentSet(
            *(torch.cat([getattr(one, field.name) for one in (self, other)]) for field in fields(LatentSet))
        )

    def some(self, first: int, count: int) -> LatentSet:
        """Take `count` of these pictures from the `first` on."""
        return LatentSet(*(getattr(self, field.name)[first : first + count] for field in fields(LatentSet)))

    def relabelled(self, model: Family, captions: Sequence[Sequence[str]], mask: Tensor) -> LatentSet:
        """Take the same pictures with as many other captions each and another mask, of any shape that expands to its
        own; the target is the teacher's prediction.
        """
        tokens = torch.stack([model.tokenize(own) for own in _evened(captions)])
        return LatentSet(self.mean, self.log_variance, tokens, mask, torch.tensor(True), self.repeats, self.framing)

    def background(
        self,
        model: Family,
        pictures: np.ndarray,
        caption: str,
        subjects: Sequence[np.ndarray] | None = None,
        first: int = 0,
    ) -> LatentSet:
        """Take n of these from the `first` on, whose pixels are `pictures` uint8 (n, H, W, 3), with another caption;
        only the background (of `subjects`: `loss_mask`) counts, and there the target is the teacher's prediction.
        """
        count, end = len(pictures), first + len(pictures)
        tokens = model.tokenize([caption] * count)[:, None]
        mask = loss_mask(pictures, model.vae_factor, "background", subjects=subjects)[:, None]
        taught, framing = torch.tensor(True), self.framing[first:end]
        return LatentSet(self.mean[first:end], self.log_variance[first:end], tokens, mask, taught, framing=framing)

    def micro_batch(
        self,
        model: Family,
        purpose: str,
        seed: int,
        micro_step: int,
        rank: int,
        world: int,
        size: int,
        turn: int | None = None,
    ) -> MicroBatch:
        """Sample everything random in a micro-step, as a function of the arguments alone.

        The `world` processes of one micro-step take neighbouring entries of one shuffled order, `size` each, and each
        has its own noise. `turn` says how many batches were taken before, if not one in every process and micro-step.
        """
        first = (micro_step * world + rank if turn is None else turn) * size
        visits = torch.arange(len(self)).repeat_interleave(self.repeats)  # of one pass
        indices = visits[shuffled_indices(seed, purpose, len(visits), first, size)]
        random = generator(seed, purpose, micro_step, rank)
        views = torch.randint(self.mean.shape[1], (size,), generator=random)
        captions = torch.randint(self.tokens.shape[1], (size,), generator=random)
        mean, log_variance = self.mean[indices, views], self.log_variance[indices, views]
        posterior_noise = torch.randn(mean.shape, generator=random)
        return MicroBatch(
            latents=model.scaled(mean + torch.exp(0.5 * log_variance) * posterior_noise),
            noise=torch.randn(mean.shape, generator=random),
            timesteps=model.process_for(*mean.shape[-2:]).draw_timesteps(size, random),
            tokens=self.tokens[indices, captions],
            mask=self.mask[indices, views],
            taught=self.taught[indices],
            framing=self.framing[indices, views],
        )


@dataclass
class LatentSets:
    """Pictures of several shapes: a set of each, one of which every micro-batch is of, as a UNet sees one shape a call.

    Sets take turns in proportion to `counts`. Those of photos are the photos' visits in one pass, by which every photo
    is seen equally often, whatever its shape; class images have the same, by which they have the photos' shapes in
    every micro-step.
    """

    sets: Sequence[LatentSet]
    counts: Sequence[int]

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    @property
    def captions(self) -> Tensor:
        """The tokens of all captions, (M, ...)."""
        return torch.cat([one.captions for one in self.sets])

    def micro_batch(
        self, model: Family, purpose: str, seed: int, micro_step: int, rank: int, world: int, size: int
    ) -> MicroBatch:
        """Sample as a `LatentSet` does, from the set whose turn it is: a function of the arguments alone."""
        number, turn = chosen_group(seed, "shape", self.counts, micro_step * world + rank)
        return self.sets[number].micro_batch(model, purpose, seed, micro_step, rank, world, size, turn)


Latents = LatentSet | LatentSets


def together(sets: Sequence[LatentSet], counts: Sequence[int]) -> Latents:
    """Put sets of several shapes together, which take turns in proportion to `counts`; the only one stays as it is."""
    return sets[0] if len(sets) == 1 else LatentSets(sets, counts)


@dataclass
class MicroBatch:
    """The random part of a micro-step, sampled on the CPU, whose numbers are the same for every device."""

    latents: Tensor  # (B, c, h, w) scaled posterior samples
    noise: Tensor  # (B, c, h, w)
    timesteps: Tensor  # (B,)
    tokens: Tensor  # (B, ...)
    mask: Tensor  # (B, 1, h, w)
    taught: Tensor  # (B,) bool
    framing: Tensor  # (B, 6)

    def __len__(self) -> int:
        return len(self.latents)

    def without_captions(self, share: float, empty: Tensor, seed: int, micro_step: int, rank: int) -> MicroBatch:
        """Put the empty prompt (1, ...) in the place of about this share of the captions, chosen as a function of the
        arguments alone: guidance starts from what is drawn by it (Ho and Salimans, arXiv 2207.12598, algorithm 1).
        """
        random = generator(seed, "caption dropout", micro_step, rank)
        kept = torch.rand(len(self), generator=random) >= share
        return replace(self, tokens=torch.where(kept.view(-1, *[1] * (self.tokens.ndim - 1)), self.tokens, empty))

    @staticmethod
    def cat(parts: Sequence[MicroBatch]) -> MicroBatch:
        """Put several micro-batches below each other."""
        return MicroBatch(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(MicroBatch)))

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Move latents, noise, timesteps and mask to a device, without waiting for it."""
        tensors = (self.latents, self.noise, self.timesteps, self.mask)
        if device.type == "cuda":  # copies from pinned memory alone go beside what the device computes
            tensors = tuple(tensor.pin_memory() for tensor in tensors)  # type: ignore[assignment]
        latents, noise, timesteps, mask = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return latents, noise, timesteps, mask


def at_once(held: Precision) -> int:
    """Say how many pictures the VAE encodes at a time: one, where weights are held in less to need less memory."""
    return AT_ONCE if held == "fp32" else 1


@torch.no_grad()
def encode(
    model: Family,
    pictures: np.ndarray,
    captions: Sequence[Sequence[str]],
    mirrored: bool = False,
    region: Region = "all",
    taught: bool = False,
    batch: int | None = None,
    repeats: Sequence[int] | None = None,
    masks: Sequence[np.ndarray | None] = (),
    outside: float = 0.0,
    subjects: Sequence[Sequence[np.ndarray]] = (),
    framings: Sequence[Framing | None] = (),
) -> LatentSet:
    """Encode (N, H, W, 3) uint8 pictures with the frozen VAE, on the device it is on; the result is on the CPU.

    Each of the N has its own captions, and is seen as often in a pass as `repeats` says, once if not given. Only
    `region` of every picture will count in the loss, or its mask of `masks`, and what is outside of that by `outside`
    (`loss_mask`); `subjects` says for each view what was found, where that was among more pictures. The target is the
    truth or, if `taught`, the teacher's prediction. `framings` say how each was framed; those of which that is not
    known are whole pictures. `batch` pictures
    are encoded at a time, `at_once` if not given.
    """
    batch = batch or at_once(model.held)
    views = [pictures, pictures[:, :, ::-1]] if mirrored else [pictures]
    means, variances = [], []
    for start in progress(range(0, len(pictures), batch), "encoding"):
        posteriors = [model.encode(to_pixels(view[start : start + batch]).to(model.vae.device)) for view in views]
        means.append(torch.stack([mean for mean, _ in posteriors], dim=1).cpu())
        variances.append(torch.stack([log_variance for _, log_variance in posteriors], dim=1).cpu())
    tokens = torch.stack([model.tokenize(own) for own in _evened(captions)])
    over = [masks, [None if one is None else one[:, ::-1] for one in masks]][: len(views)]
    weights = [
        loss_mask(view, model.vae_factor, region, ours, outside, subjects[number] if subjects else None)
        for number, (view, ours) in enumerate(zip(views, over, strict=True))
    ]
    mask = torch.stack(weights, dim=1)
    times = torch.tensor(repeats) if repeats else _once()
    framing = _framing(framings or [None] * len(pictures), pictures.shape[1:3], len(views))
    return LatentSet(torch.cat(means), torch.cat(variances), tokens, mask, torch.tensor(taught), times, framing)


def _framing(framings: Sequence[Framing | None], now: tuple[int, int], views: int) -> Tensor:
    """Give the numbers of how pictures of this height and width were framed, and mirrored: (N, F, 6)."""
    known = [one or Framing(*now) for one in framings]
    return torch.tensor([[view.numbers(*now) for view in (one, one.mirrored())[:views]] for one in known])


def _evened(captions: Sequence[Sequence[str]]) -> list[list[str]]:
    """Repeat captions in turn, so that all pictures have as many."""
    most = max(map(len, captions))
    return [[own[turn % len(own)] for turn in range(most)] for own in captions]
