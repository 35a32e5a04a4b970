"""Prompt + seed -> latents -> picture, over diffusers' noise schedulers.

A picture is a function of model, prompt, seed, settings and size alone: its noise comes from a generator of its own
on the CPU, so neither the batch, the device nor the global random state has a say (up to float rounding).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..core.errors import InputError, NotFiniteError, SettingsError, shortened
from .families.family import Condition, Family
from .sampling_settings import SamplingSettings


class Bar(Protocol):
    def advance(self, amount: int = 1, note: str | None = None) -> None: ...


@torch.inference_mode()
def sample(
    model: Family,
    prompts: list[str],
    seeds: list[int],
    settings: SamplingSettings,
    size: tuple[int, int] | None = None,
    *,
    batch_size: int = 8,
    latents: Tensor | None = None,
    init: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    strength: float = 1.0,
    bar: Bar | None = None,
) -> np.ndarray:
    """Draw prompt i with seed i; uint8 (N, H, W, 3).

    `size` is (width, height) in pixels, the model's own or that of `init` if not given. `latents` (N, C, h, w) replaces
    the seeds' standard normal start. `init` uint8 (H, W, 3) is the picture to start from, of which `strength` in (0, 1]
    may change. `mask` (H, W) in [0, 1] redraws `init` where it is at least 0.5 and keeps every other pixel as it is.
    `bar` moves by N x steps in all. Modes, parameters and random state are left as they were.
    Raises InputError for a size, sampler or number of steps that the model cannot do.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
    if mask is not None and init is None:
        raise InputError("`mask`: there is no picture to redraw", "give `init_image` too")
    width, height = (init.shape[1], init.shape[0]) if init is not None else size or (model.size, model.size)
    factor, block = model.vae_factor, model.block
    if width % block or height % block:
        raise InputError(
            f"`size={width}x{height}`: not multiples of {block}",
            f"this model draws in blocks of {block} pixels",
        )
    if model.largest and max(width, height) > model.largest:
        raise InputError(
            f"`size={width}x{height}`: this model knows no positions beyond {model.largest} pixels",
            "give a smaller one",
        )
    shape = (model.latent_channels, height // factor, width // factor)

    _refuse_what_needs_two(model, settings)
    images = np.empty((len(prompts), height, width, 3), np.uint8)
    with _ready(model):
        texts = {  # each alone: no row sways another
            text: model.condition(model.no_prompt() if text is None else model.tokenize([text]))
            for text in dict.fromkeys([settings.negative, *prompts])
        }
        start = _encode(model, init) if init is not None else None  # (1, C, h, w)
        for first in range(0, len(prompts), batch_size):
            rows = slice(first, first + batch_size)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[rows]]
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])  # (B, C, h, w)
            if latents is not None:
                noise = latents[rows].float()
            found = _denoise(
                model,
                settings,
                condition=Condition.cat([texts[prompt] for prompt in prompts[rows]]),
                negative=texts[settings.negative],
                noise=noise,
                generators=generators,
                start=start,
                mask=mask,
                strength=strength,
                bar=bar,
            )
            for row, latent in enumerate(found.split(1), start=first):
                pixels = model.decode(latent, settings.tiles)  # (1, 3, H, W)
                if not pixels.isfinite().all():
                    raise NotFiniteError(
                        f"{model.source}: draws NaN or infinite values instead of a picture", "try precision fp32"
                    )
                images[row] = to_images(pixels)[0]
    return images if mask is None else _paste(images, init, mask, factor)  # type: ignore[arg-type]


def _denoise(
    model: Family,
    settings: SamplingSettings,
    *,
    condition: Condition,  # of B prompts
    negative: Condition,  # of one
    noise: Tensor,  # (B, C, h, w), standard normal
    generators: list[torch.Generator],
    start: Tensor | None,  # (1, C, h, w)
    mask: np.ndarray | None,  # (H, W)
    strength: float,
    bar: Bar | None,
) -> Tensor:
    """Denoise latents (B, C, h, w) in 32-bit floats, which is what every solver's arithmetic is done in."""
    solver, timesteps = model.process_for(*noise.shape[-2:]).solver(settings, strength if start is not None else 1.0)
    device, dtype, batch = model.device, model.denoiser.dtype, len(noise)
    moved = timesteps.to(device)
    noise, guided = noise.to(device), settings.guidance > 1 and not model.embeds_guidance
    if guided:
        condition = Condition.cat([negative.expand(batch), condition])  # of 2B
    condition = condition.to(dtype)
    if model.embeds_guidance:
        condition = condition.guided(settings.guidance)

    def noised(index: int) -> Tensor:
        """Give the start picture at the noise level at which step `index` begins; clean after the last."""
        assert start is not None  # noqa: S101
        clean = start.expand_as(noise)
        return clean if index == len(timesteps) else solver.add_noise(clean, noise, timesteps[index].expand(batch))

    redrawn = None  # (1, 1, h, w): 1 where any pixel of a latent's block is redrawn
    if mask is not None:
        redrawn = functional.adaptive_max_pool2d(
            torch.from_numpy(mask >= 0.5).float()[None, None], noise.shape[-2:]
        ).to(device)

    x = noised(0) if start is not None and strength < 1 else noise * solver.init_noise_sigma
    extra = {"generator": generators} if settings.sampler == "euler-a" else {}
    for index, t in enumerate(timesteps):
        inputs = solver.scale_model_input(x, t).to(dtype)
        predicted = model.denoise(torch.cat([inputs, inputs]) if guided else inputs, moved[index], condition).float()
        if guided:
            without, with_prompt = predicted.chunk(2)
            predicted = without + settings.guidance * (with_prompt - without)
            if settings.guidance_rescale:
                predicted = _rescaled(predicted, with_prompt, settings.guidance_rescale)
        x = solver.step(predicted, t, x, return_dict=False, **extra)[0]
        if redrawn is not None:
            x = torch.where(redrawn > 0, x, noised(index + 1))
        if bar is not None:  # in picture-steps, though plms takes one more and img2img fewer
            done, total = batch * settings.steps, len(timesteps)
            bar.advance(done * (index + 1) // total - done * index // total)
    return x


def check(model: Family, settings: SamplingSettings, group: str = "sampling") -> None:
    """Raise now the SettingsError that drawing with these settings, of this group, would raise."""
    model.process.solver(settings, group=group)
    _refuse_what_needs_two(model, settings, group)


def _refuse_what_needs_two(model: Family, settings: SamplingSettings, group: str = "sampling") -> None:
    """Raise SettingsError for what only two predictions a step bring, where guidance is told and takes one."""
    given = {"negative": settings.negative, "guidance_rescale": settings.guidance_rescale}
    for name, value in given.items() if model.embeds_guidance else ():
        if value:
            told = f"`{group}.{name}={shortened(str(value), 40)}`"
            raise SettingsError(f"{told}: this base is told its guidance, and has no second prediction", "leave it out")


def _rescaled(guided: Tensor, conditional: Tensor, amount: float) -> Tensor:
    """Give the guided prediction the contrast of the conditional one (arXiv 2305.08891, equations 15 and 16)."""
    axes = tuple(range(1, guided.ndim))
    same_contrast = guided * (conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
    return amount * same_contrast + (1 - amount) * guided


@contextmanager
def _ready(model: Family) -> Iterator[None]:
    """Put the model into evaluation mode, with no ambient autocast and a VAE that does not overflow; all put back
    afterwards.
    """
    parts = [*model.trainable.values(), model.vae]
    training = [(module, module.training) for part in parts for module in part.modules()]
    dtype = model.vae.dtype
    try:
        for part in parts:
            part.eval()
        if dtype != torch.float32 and model.vae.config.force_upcast:
            model.vae.float()
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        model.vae.to(dtype)
        for module, mode in training:
            module.training = mode


def _encode(model: Family, image: np.ndarray) -> Tensor:
    """Encode one uint8 picture (H, W, 3) as its latent (1, C, h, w): the posterior's mean."""
    pixels = to_pixels(image[None]).to(model.vae.device, model.vae.dtype)
    return model.scaled(model.encode(pixels)[0].float())


def _paste(images: np.ndarray, original: np.ndarray, mask: np.ndarray, radius: int) -> np.ndarray:
    """Put the original pixels back where `mask` is below 0.5, exactly; a soft seam of `radius` pixels on the redrawn
    side.
    """
    redrawn = torch.from_numpy(mask >= 0.5).float()[None, None]
    soft = functional.avg_pool2d(redrawn, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    share = (redrawn * soft)[0, 0, :, :, None].numpy()  # (H, W, 1)
    return (original + share * (images.astype(np.float32) - original)).round().astype(np.uint8)


def to_pixels(images: np.ndarray) -> Tensor:
    """Turn pictures into pixels: uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(images, order="C")).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> np.ndarray:
    """Turn pixels into pictures: (B, 3, H, W) in [-1, 1] (clipped) -> uint8 (B, H, W, 3)."""
    levels = (pixels.float() / 2 + 0.5).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
