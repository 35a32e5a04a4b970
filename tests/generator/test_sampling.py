import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from femtobooth.core.errors import InputError
from femtobooth.generator import locate
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.load import load
from femtobooth.generator.process import SOLVERS
from femtobooth.generator.sampling import sample, to_images, to_pixels
from femtobooth.generator.sampling_settings import SamplingSettings

PROMPTS = ["a glossy dog on the beach", "a flat cat in the snow", "a noto apple in space"]


def settings(sampler: str = "ddim", steps: int = 3, **other: object) -> SamplingSettings:
    return SamplingSettings.model_validate({"sampler": sampler, "steps": steps, "guidance": 4.0, **other})


def folder_of(kind: str, request: pytest.FixtureRequest) -> Path:
    return locate.bundled_folder() if kind == "bundled" else request.getfixturevalue(kind)


@cache
def loaded(folder: Path) -> StableDiffusion:
    return load(str(folder))


@pytest.fixture(scope="module")
def bundled() -> StableDiffusion:
    return loaded(locate.bundled_folder())


@pytest.fixture(scope="module")
def picture(bundled: StableDiffusion) -> np.ndarray:
    """(64, 64, 3), drawn in fine steps."""
    return sample(bundled, PROMPTS[:1], [2], settings("ddim", 40))[0]


@pytest.fixture(scope="module")
def tiny(tiny_sd1: Path) -> StableDiffusion:
    return loaded(tiny_sd1)


def shares_off(one: np.ndarray, other: np.ndarray) -> tuple[int, float]:
    """The largest difference in levels, and the share of values that differ at all."""
    difference = np.abs(one.astype(int) - other)
    return int(difference.max()), float((difference > 0).mean())


@pytest.mark.parametrize("kind", ["tiny_sd1", "tiny_sd2", "bundled"])
@pytest.mark.parametrize(
    "how",
    [{}, {"negative": "a flat cat"}, {"guidance_rescale": 0.7, "steps": 4}, {"guidance": 1.0}],
    ids=["plain", "negative", "rescale", "unguided"],
)
def test_ddim_draws_what_diffusers_own_pipeline_draws(
    kind: str, how: dict[str, object], request: pytest.FixtureRequest
) -> None:
    folder = folder_of(kind, request)
    model, chosen = loaded(folder), settings(**how)
    latents = torch.randn((1, model.unet.config.in_channels, 64 // model.vae_factor, 64 // model.vae_factor))
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = model.scheduler  # the tiny Stable Diffusion 1 names PNDM, the sampler it was published with
    expected = pipeline(
        PROMPTS[0],
        negative_prompt=chosen.negative,
        num_inference_steps=chosen.steps,
        guidance_scale=chosen.guidance,
        guidance_rescale=chosen.guidance_rescale,
        latents=latents,
        output_type="np",
    ).images
    drawn = sample(model, PROMPTS[:1], [0], chosen, latents=latents)
    assert expected.std() > 0.01
    assert np.abs(drawn / 255 - expected).mean() <= 1 / 255


@pytest.mark.parametrize("sampler", ["ddim", "euler-a"])
def test_a_picture_does_not_depend_on_its_batch(bundled: StableDiffusion, sampler: str) -> None:
    prompts, seeds = [PROMPTS[index % 3] for index in range(5)], [3, 1, 4, 1, 5]
    alone = sample(bundled, prompts, seeds, settings(sampler, 2), batch_size=1)
    assert shares_off(alone[0], alone[1])[0] > 50
    for batch_size in (2, 5):
        most, share = shares_off(alone, sample(bundled, prompts, seeds, settings(sampler, 2), batch_size=batch_size))
        assert most <= 1 and share < 0.01


@pytest.mark.parametrize("sampler", [name for name in SOLVERS if name != "plms"])
def test_every_sampler_agrees_with_the_fine_solution(
    bundled: StableDiffusion, picture: np.ndarray, sampler: str
) -> None:
    """On the zero-terminal-SNR base; euler-a walks elsewhere, so only its contrast and smoothness are held against
    DDIM's.
    """
    fine = picture.astype(float)
    drawn = sample(bundled, PROMPTS[:1], [2], settings(sampler, 12))[0].astype(float)
    assert 0.8 < drawn.std() / fine.std() < 1.2
    assert np.abs(np.diff(drawn, axis=1)).mean() < 1.5 * np.abs(np.diff(fine, axis=1)).mean()
    assert sampler == "euler-a" or np.abs(drawn - fine).mean() < 8


@pytest.mark.parametrize("sampler", list(SOLVERS))
@pytest.mark.parametrize("kind", ["tiny_sd1", "tiny_sd2"])
def test_every_sampler_runs_on_both_stable_diffusions(kind: str, sampler: str, request: pytest.FixtureRequest) -> None:
    model = loaded(folder_of(kind, request))
    drawn = sample(model, PROMPTS[:1], [0], settings(sampler, 2), (64, 32))
    assert drawn.shape == (1, 32, 64, 3) and drawn.std() > 1


@pytest.mark.parametrize("steps", [1, 7, 61, 103])
def test_trailing_spacing_never_leaves_the_schedule(bundled: StableDiffusion, steps: int) -> None:
    """diffusers' float steps give 61 and 103 steps one more, at timestep -1: there the whole picture was lost."""

    for sampler in set(SOLVERS) - {"plms"}:
        solver, timesteps = bundled.process.solver(settings(sampler, steps))
        assert len(timesteps) == steps and timesteps[0] == 999 and timesteps[-1] >= 0
        assert not hasattr(solver, "sigmas") or (
            len(solver.sigmas) == steps + 1 and solver.sigmas[-2] > 0 == solver.sigmas[-1]
        )


def test_nothing_but_the_pictures_changes(tiny: StableDiffusion) -> None:
    tiny.unet.train()
    next(tiny.text_encoder.children()).train()  # mixed modes, as when only parts train
    modes = [module.training for part in (tiny.unet, tiny.text_encoder, tiny.vae) for module in part.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = sample(tiny, PROMPTS, [0, 1, 2], settings("euler-a"))
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    assert modes == [module.training for part in (tiny.unet, tiny.text_encoder, tiny.vae) for module in part.modules()]
    torch.manual_seed(99)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(first, sample(tiny, PROMPTS, [0, 1, 2], settings("euler-a")))
    tiny.unet.eval()
    tiny.text_encoder.eval()


@pytest.mark.parametrize("sampler", [name for name in SOLVERS if name != "plms"])
def test_strength_leads_from_the_start_picture_to_a_new_one(
    bundled: StableDiffusion, picture: np.ndarray, sampler: str
) -> None:
    drawn = [
        sample(bundled, PROMPTS[:1], [1], settings(sampler, 12), init=picture, strength=part)[0]
        for part in (0.1, 0.5, 1.0)
    ]
    near, middle, far = (np.abs(one.astype(float) - picture).mean() for one in drawn)
    assert near < 8 and near < middle < far
    assert np.array_equal(drawn[2], sample(bundled, PROMPTS[:1], [1], settings(sampler, 12))[0])


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_plms_starts_anywhere_on_its_schedule(tiny: StableDiffusion, strength: float) -> None:
    start = to_images(torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1)[0]
    near, exact = (
        sample(tiny, PROMPTS[:1], [1], settings(name, 20), init=start, strength=strength) for name in ("plms", "ddim")
    )
    assert np.abs(near.astype(float) - exact).mean() < 4


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp-2m"])
def test_inpainting_keeps_what_is_not_masked(bundled: StableDiffusion, picture: np.ndarray, sampler: str) -> None:
    mask = np.zeros((64, 64))
    mask[10:50, 33:60] = 1
    drawn = sample(bundled, PROMPTS[2:], [1], settings(sampler, 6), init=picture, mask=mask)[0]
    assert np.array_equal(drawn[mask == 0], picture[mask == 0])
    assert np.abs(drawn[mask == 1].astype(float) - picture[mask == 1]).mean() > 20


def test_bar_moves_by_pictures_times_steps(tiny: StableDiffusion) -> None:
    class Bar:
        moved = 0

        def advance(self, amount: int = 1, note: str | None = None) -> None:
            self.moved += amount

    for how in ({}, {"init": np.zeros((64, 64, 3), np.uint8), "strength": 0.4}):
        bar = Bar()
        sample(tiny, PROMPTS, [0, 1, 2], settings("plms", 5), batch_size=2, bar=bar, **how)
        assert bar.moved == 15


@pytest.mark.parametrize(
    ("how", "other", "named"),
    [
        ({"sampler": "plms"}, {}, "sampling.sampler: plms"),
        ({}, {"size": (62, 64)}, "`size=62x64`"),
        ({}, {"mask": np.ones((64, 64))}, "`mask`"),
    ],
)
def test_what_cannot_be_done_is_said(bundled: StableDiffusion, how: dict, other: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        sample(bundled, PROMPTS[:1], [0], settings(**how), **other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_nearly_the_same(dtype: torch.dtype, bundled: StableDiffusion) -> None:
    full = sample(bundled, PROMPTS[:1], [0], settings(steps=2)).astype(float)
    half = load("bundled").to("cpu", dtype)
    drawn = sample(half, PROMPTS[:1], [0], settings(steps=2)).astype(float)
    assert half.vae.dtype == dtype
    assert np.abs(full - drawn).mean() < (1 if dtype == torch.float16 else 6)


def test_pixels_survive_the_round_trip() -> None:
    images = np.arange(256 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    assert np.array_equal(to_images(to_pixels(images)), images)
    assert to_pixels(images).min() == -1 and to_pixels(images).max() == 1
