"""Rectified flow: what it draws, what it asks for, what it refuses; and how Stable Diffusion 3 trains with it."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from femtobooth.core.errors import SettingsError
from femtobooth.generator import trainable
from femtobooth.generator.flow import RectifiedFlow, shifted
from femtobooth.generator.latents import encode
from femtobooth.generator.load import load
from femtobooth.generator.loss_settings import LossSettings
from femtobooth.generator.process import DDPM
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings

from .conftest import Offline, settings

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
CAPTIONS = [["a sks robot"], ["a photo of a sks robot"], ["sks robot on the beach"]]


def flow(shift: float = 1.0, **loss: float) -> RectifiedFlow:
    return RectifiedFlow(FlowMatchEulerDiscreteScheduler(shift=shift), LossSettings(**loss))


def training(model: Any, *sets: str) -> Offline:
    module = Offline(model, settings("prior.weight=0", *sets), "sks", lambda _: None)
    module.instance, module.prior = encode(model, PICTURES, CAPTIONS), None
    return module


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (0.5, 1.0, 1.0), (-0.5, 0.5, 3.0)])
def test_times_are_drawn_logit_normally_and_shifted(mean: float, std: float, shift: float) -> None:
    """Shifting by s moves the logit by log(s), so mean and deviation can be told from what is drawn."""
    process = flow(shift, timestep_mean=mean, timestep_std=std)
    drawn = process.draw_timesteps(40_000, torch.Generator().manual_seed(0)) / 1000
    assert ((drawn > 0) & (drawn < 1)).all()
    logits = torch.logit(drawn.double())
    error = std / math.sqrt(len(drawn))
    assert float(logits.mean()) == pytest.approx(mean + math.log(shift), abs=4 * error)
    assert float(logits.std()) == pytest.approx(std, abs=4 * error)
    below = float((drawn < shifted(torch.tensor(1 / (1 + math.exp(-mean - std))), shift)).float().mean())
    assert below == pytest.approx(0.8413, abs=0.008)  # the normal distribution, one deviation up


def test_the_shift_is_the_papers_and_the_schedulers() -> None:
    assert float(shifted(torch.tensor(0.5), 3.0)) == pytest.approx(0.75)  # 3/2 / (1 + 2/2)
    assert flow(3.0).shift == 3.0
    assert flow(3.0, timestep_shift=1.5).shift == 1.5
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    torch.testing.assert_close(shifted(torch.arange(1000, 0, -1) / 1000, 3.0), theirs.sigmas)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("base", ["tiny_sd3_without_t5", "tiny_z_image"])
def test_a_dynamic_shift_follows_the_size_as_in_diffusers(
    base: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = shutil.copytree(request.getfixturevalue(base), tmp_path / "base")
    file = folder / "scheduler" / "scheduler_config.json"
    dynamic = {
        "use_dynamic_shifting": True, "time_shift_type": kind, "base_image_seq_len": 8, "max_image_seq_len": 24,
        "base_shift": 0.7, "max_shift": 1.9,
    }  # fmt: skip
    file.write_text(json.dumps(json.loads(file.read_text()) | dynamic))
    model: Any = load(str(folder))
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    scale = 4.0 if base == "tiny_sd3_without_t5" else 3.0  # Z-Image's pipeline counts one less
    for width, height, tokens, mu in ((64, 64, 16, 1.3), (96, 64, 24, 1.9)):
        latents = torch.randn(1, 16, height // 8, width // 8, generator=torch.Generator().manual_seed(5))
        how = {"width": width, "height": height, "num_inference_steps": 3, "guidance_scale": scale}
        drawn = pipeline("a dog", latents=latents, output_type="np", **how).images
        euler = SamplingSettings(sampler="euler", steps=3, guidance=4.0)
        process = model.process_for(height // 8, width // 8)
        assert (process.tokens, process.mu) == (tokens, pytest.approx(mu))
        assert process.shift == pytest.approx(math.exp(mu) if kind == "exponential" else mu)
        torch.testing.assert_close(process.solver(euler)[1], pipeline.scheduler.timesteps)
        ours = sample(model, ["a dog"], [0], euler, (width, height), latents=latents)
        assert np.abs(ours / 255 - drawn).max() <= 1 / 255
        pictures = np.zeros((1, height, width, 3), np.uint8)
        latent_set = encode(model, pictures, [["a dog"]])
        (moved,) = latent_set.micro_batch(model, "instance", 0, 0, 0, 1, 1).timesteps
        model.loss = LossSettings(timestep_shift=1.0)  # which goes before the base's own
        (plain,) = latent_set.micro_batch(model, "instance", 0, 0, 0, 1, 1).timesteps
        model.loss = None
        assert float(moved) == pytest.approx(1000 * float(shifted(plain / 1000, process.shift)), rel=1e-5)


def test_noise_is_added_as_the_scheduler_does() -> None:
    process, theirs = flow(3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    clean, noise = torch.randn(2, 4, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    timesteps = theirs.timesteps[[0, 10, 500, 999]]
    torch.testing.assert_close(process.add_noise(clean, noise, timesteps), theirs.scale_noise(clean, timesteps, noise))
    assert torch.equal(process.add_noise(clean, noise, torch.full((4,), 1000.0)), noise)
    assert torch.equal(process.add_noise(clean, noise, torch.zeros(4)), clean)


def test_a_known_flow_costs_nothing_and_is_walked_back_exactly() -> None:
    process = flow(3.0)
    clean, noise = torch.randn(2, 1, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    direction = noise - clean
    assert (process.target(clean, noise, torch.tensor([300.0])) - direction).square().sum() == 0
    solver, timesteps = process.solver(settings("samples.sampling.sampler=euler", "samples.sampling.steps=5").samples.sampling)  # fmt: skip
    x = noise
    for t in timesteps:
        x = solver.step(direction, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, clean, rtol=0, atol=1e-5)


def test_buckets_and_fixed_times() -> None:
    process = flow(3.0)
    assert process.middles(4).tolist() == [125, 375, 625, 875]
    assert process.noisiest(3).tolist() == [750, 875, 1000]
    assert process.buckets(torch.tensor([0.1, 249.9, 250.0, 999.9, 1000.0]), 4).tolist() == [0, 0, 1, 3, 3]
    assert [process.bucket_name(bucket, 4) for bucket in (0, 3)] == ["t000-249", "t750-999"]
    assert process.weights(torch.tensor([1.0, 999.0]), LossSettings()).tolist() == [1, 1]


def test_settings_of_the_other_process_are_refused(tiny_sd3_without_t5: Path) -> None:
    with pytest.raises(SettingsError, match=r"`loss.snr_gamma=5`: min-SNR weighs .* a rectified flow") as caught:
        training(load(str(tiny_sd3_without_t5)), "loss.snr_gamma=5")
    assert str(caught.value).count("\n") <= 1
    for name in ("timestep_mean", "timestep_std", "timestep_shift"):
        with pytest.raises(
            SettingsError, match=f"`loss.{name}=2`: says how a rectified flow draws timesteps; this base is none"
        ):
            DDPM(DDIMScheduler()).refuse(LossSettings(**{name: 2.0}))
    DDPM(DDIMScheduler()).refuse(LossSettings(timestep_std=1.0, snr_gamma=5.0))


def test_the_prediction_is_that_of_the_pipelines_transformer_to_the_bit(tiny_sd3: Path) -> None:
    model: Any = load(str(tiny_sd3))
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3, local_files_only=True)
    module = training(model, "training.batch_size=1", "loss.timestep_shift=2")
    batch = module.instance.micro_batch(model, "instance", 0, 3, 0, 1, 1)
    assert 0 < float(batch.timesteps) < 1000
    caption = next(text for (text,) in CAPTIONS if torch.equal(model.tokenize([text]), batch.tokens))
    t = batch.timesteps / 1000
    noisy = t * batch.noise + (1 - t) * batch.latents
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(caption, None, None, do_classifier_free_guidance=False)
        # A copy, whose weights begin where ours do: mapped from a file, they are multiplied by other instructions.
        theirs = copy.deepcopy(pipeline.transformer)(
            hidden_states=noisy, timestep=batch.timesteps, encoder_hidden_states=states, pooled_projections=pooled
        ).sample
        loss = module.losses(batch)
        ours = model.denoise(noisy, batch.timesteps, model.condition_once(batch.tokens))
    assert torch.equal(ours, theirs)
    assert torch.equal(loss, (batch.noise - batch.latents - theirs).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("parts", ["[unet,text_encoder]", "[attention]", "[token]", "[lora]"])
def test_all_that_trains_gets_a_gradient_and_t5_never_trains(parts: str, tiny_sd3: Path) -> None:
    module = training(load(str(tiny_sd3)), f"train.parts={parts}", "training.gradient_checkpointing=true")
    module.training_step(0).backward()
    trained = {name: one for name, one in module.named_parameters() if one.requires_grad}
    assert [name for name, one in trained.items() if one.grad is None] == []
    networks = {name.partition(".")[0] for name in trained}
    encoders = {"text_encoder", "text_encoder_2"}
    assert (
        networks
        == {
            "[unet,text_encoder]": {"transformer", *encoders},
            "[attention]": {"transformer"},
            "[token]": encoders,
            "[lora]": {"transformer", *encoders},
        }[parts]
    )
    assert not any(one.requires_grad for one in module.model.text_encoder_3.parameters())  # type: ignore[attr-defined]
    if parts == "[attention]":
        assert all(".attn." in name or ".attn2." in name for name in trained)


def test_both_clips_have_rates_of_their_own(tiny_sd3_without_t5: Path) -> None:
    model = load(str(tiny_sd3_without_t5))
    chosen = settings("train.unet_learning_rate=2e-6", "train.text_encoder_learning_rate=1e-5")
    trainable.select(model, chosen, {"sks": "dog"})
    rates = {group["name"]: group["lr"] for group in trainable.optimizer_groups(model, chosen)}
    assert rates == {"transformer": 2e-6, "text_encoder": 1e-5, "text_encoder_2": 1e-5}
