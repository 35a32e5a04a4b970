"""The loss against its definition, and what the module trains."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from femtobooth.core import config
from femtobooth.generator import adapter_layers, tokens
from femtobooth.generator.dreambooth import DreamBooth, sample_losses
from femtobooth.generator.latents import LatentSet, LatentSets, MicroBatch, encode
from femtobooth.generator.load import load
from femtobooth.generator.process import DDPM, min_snr_weights, signal_to_noise
from femtobooth.generator.settings import PersonalizeSettings

KINDS = ("epsilon", "v_prediction", "sample")


def _settings(**changes: Any) -> PersonalizeSettings:
    return config.resolve(
        PersonalizeSettings,
        {"photos": {"paths": ["x"], "class_noun": "robot"}, "training": {"batch_size": 4}},
        *(config.nested(k, v) for k, v in changes.items()),
    )


def _scheduler(kind: str, zero_snr: bool = False) -> DDIMScheduler:
    return DDIMScheduler(
        prediction_type=kind, rescale_betas_zero_snr=zero_snr, beta_schedule="scaled_linear", clip_sample=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weighs_the_error_of_x0_by_the_clipped_snr(kind: str) -> None:
    """Whatever is predicted, weight x error must be min(SNR, gamma) x the error of the x0 that it implies."""
    torch.manual_seed(0)
    scheduler, t = _scheduler(kind), torch.tensor([3, 250, 600, 990])
    x0, noise, mistake = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64)
    noisy = scheduler.add_noise(x0, noise, t)
    target = DDPM(scheduler).target(x0, noise, t)
    predicted = target + 0.1 * mistake
    abar = scheduler.alphas_cumprod[t].double()[:, None, None, None]
    implied = {
        "epsilon": (noisy - (1 - abar).sqrt() * predicted) / abar.sqrt(),
        "v_prediction": abar.sqrt() * noisy - (1 - abar).sqrt() * predicted,
        "sample": predicted,
    }[kind]
    snr = signal_to_noise(scheduler.alphas_cumprod, t).double()
    weights = min_snr_weights(snr, kind, gamma=5.0)
    ours = weights * (predicted - target).square().mean(dim=(1, 2, 3))
    paper = snr.clamp(max=5.0) * (implied - x0).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(ours, paper, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_terminal_step_of_a_zero_snr_schedule_still_trains(kind: str) -> None:
    snr = signal_to_noise(_scheduler(kind, zero_snr=True).alphas_cumprod, torch.tensor([999, 500]))
    assert snr[0] == 0
    weights = min_snr_weights(snr, kind, gamma=5.0, floor=0.05)
    assert torch.isfinite(weights).all()
    assert weights[0] >= 0.05


def test_without_gamma_all_timesteps_weigh_the_same() -> None:
    assert min_snr_weights(torch.tensor([0.0, 1.0, 1e6]), "epsilon", None).tolist() == [1, 1, 1]


def _pictures(count: int, mirrored: int = 1) -> LatentSet:
    torch.manual_seed(count)
    mean, log_variance = torch.randn(count, mirrored, 4, 8, 8), torch.randn(count, mirrored, 4, 8, 8) - 3
    ids = torch.arange(count * 6).reshape(count, 1, 6)
    return LatentSet(mean, log_variance, ids)


def test_micro_batches_differ_between_ranks_and_terms_and_repeat_exactly(tiny_base: Path) -> None:
    model, pictures = load(str(tiny_base)), _pictures(5, mirrored=2)

    def one(purpose: str = "instance", micro_step: int = 7, rank: int = 0) -> Any:
        return pictures.micro_batch(model, purpose, 0, micro_step, rank, 2, 2)

    assert torch.equal(one().noise, one().noise)
    assert torch.equal(one().latents, one().latents)
    for other in (one(rank=1), one(purpose="prior"), one(micro_step=8)):
        assert not torch.equal(one().noise, other.noise)
        assert not torch.equal(one().timesteps, other.timesteps)


def test_processes_share_one_order_without_overlap(tiny_base: Path) -> None:
    model, pictures = load(str(tiny_base)), _pictures(8)
    seen = [
        row
        for step in range(2)
        for rank in range(2)
        for row in pictures.micro_batch(model, "instance", 0, step, rank, 2, 2).tokens[:, 0].tolist()
    ]
    assert sorted(seen) == [6 * index for index in range(8)]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 3), (3, 1)])
def test_photos_of_all_shapes_are_seen_equally_often(tiny_base: Path, world: int, accumulate: int) -> None:
    model, size = load(str(tiny_base)), 2

    def one(first: int, count: int, height: int, width: int, repeats: list[int]) -> LatentSet:
        ids = torch.arange(first, first + count).reshape(count, 1, 1)
        mean = torch.zeros(count, 1, 4, height, width)
        return LatentSet(mean, mean, ids, repeats=torch.tensor(repeats))

    photos = LatentSets([one(0, 3, 8, 8, [1, 1, 2]), one(3, 1, 4, 12, [1]), one(4, 1, 12, 4, [1])], [4, 1, 1])
    kept = LatentSets([one(0, 8, 8, 8, [1] * 8), one(8, 2, 4, 12, [1] * 2), one(10, 2, 12, 4, [1] * 2)], [4, 1, 1])
    seen, of_class = Counter[int](), Counter[int]()
    micro_steps = 2 * 6 * accumulate  # two passes of 6 micro-batches in each process
    for micro_step in range(micro_steps):
        for rank in range(world):
            batch = photos.micro_batch(model, "instance", 0, micro_step, rank, world, size)
            beside = kept.micro_batch(model, "prior", 0, micro_step, rank, world, size)
            assert len(MicroBatch.cat([batch, beside])) == 4  # which needs one shape
            seen.update(batch.tokens.flatten().tolist())
            of_class.update(beside.tokens.flatten().tolist())
    often = 2 * world * accumulate * size
    assert seen == {0: often, 1: often, 2: 2 * often, 3: often, 4: often}
    assert set(of_class.values()) == {often // 2}  # as there are 12 of them


def test_the_posterior_is_sampled_anew_each_step(tiny_base: Path) -> None:
    model, shape = load(str(tiny_base)), (1, 1, 1, 64, 64)
    model.vae.register_to_config(scaling_factor=0.5)
    pictures = LatentSet(torch.full(shape, 2.0), torch.full(shape, np.log(0.25)), torch.zeros(1, 1, 4))
    first, second = (pictures.micro_batch(model, "instance", 0, step, 0, 1, 1).latents for step in (0, 1))
    assert not torch.equal(first, second)
    for latents in (first, second):  # mean 2, deviation 0.5, both times the scale 0.5
        assert latents.mean().item() == pytest.approx(1.0, abs=0.02)
        assert latents.std().item() == pytest.approx(0.25, abs=0.02)


class _Offline(DreamBooth):
    """The module without a Trainer around it."""

    global_rank = 0  # type: ignore[assignment]
    device = torch.device("cpu")  # type: ignore[assignment]
    trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]


def _module(folder: Path, instance: int = 3, prior: int = 4, **changes: Any) -> _Offline:
    module = _Offline(load(str(folder)), _settings(**changes), "sks", lambda _: None)
    module.instance, module.prior = _pictures(instance), _pictures(prior) if module.settings.prior.weight else None
    ids = module.model.tokenize(["a sks robot", "a robot"])
    for pictures, row in ((module.instance, ids[0]), (module.prior, ids[1])):
        if pictures is not None:
            pictures.tokens = row.expand(len(pictures.mean), 1, -1).clone()
    if module.prior is not None and module.settings.prior.target == "base":
        module.prior.taught = torch.ones(prior, dtype=torch.bool)
    return module


def test_loss_is_instance_plus_lambda_times_prior(tiny_base: Path) -> None:
    def loss(weight: float) -> float:
        return _module(tiny_base, **{"prior.weight": weight}).training_step(5).item()

    alone, one, three = loss(0.0), loss(1.0), loss(3.0)
    assert three - alone == pytest.approx(3 * (one - alone), rel=1e-4)
    assert one > alone


def test_lambda_does_not_depend_on_the_prior_batch(tiny_base: Path) -> None:
    """One class image eight times over must weigh what it weighs once: both terms are means over their own samples."""
    for batch in (1, 8):
        module = _module(tiny_base, **{"prior.batch_size": batch, "prior.weight": 1.0})
        module.training_step(2)
        sums = module.read_losses().sum(dim=1)
        assert sums[:, 1].tolist() == [4, batch]
        means = sums[:, 0] / sums[:, 1]
        assert module.training_step(2).item() == pytest.approx(float(means.sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("parts", "trains", "rests"),
    [
        (["unet", "text_encoder"], ["unet.conv_in.weight", "text_encoder.final_layer_norm.weight"], []),
        (["unet"], ["unet.conv_in.weight"], ["text_encoder."]),
        (["text_encoder"], ["text_encoder.final_layer_norm.weight"], ["unet."]),
        (["attention"], ["attn1.to_q", "attn2.to_v"], ["text_encoder.", "conv", "proj_in", "time_embedding"]),
        (["token"], ["token_embedding.row"], ["unet.", "encoder.layers", "table"]),
    ],
)
def test_only_what_was_asked_for_trains(tiny_base: Path, parts: list[str], trains: list[str], rests: list[str]) -> None:
    module = _module(tiny_base, **{"train.parts": parts})
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer = module.configure_optimizers()["optimizer"]
    module.training_step(0).backward()
    optimizer.step()
    moved = [name for name, value in module.named_parameters() if not torch.equal(value, before[name])]
    assert all(any(part in name for name in moved) for part in trains)
    assert not [name for name in moved if any(part in name for part in rests)]
    assert not [name for name, _ in module.named_parameters() if "vae" in name]


def test_textual_inversion_starts_from_the_noun_and_changes_one_row(tiny_base: Path) -> None:
    module = _module(tiny_base, **{"train.parts": ["token"], "train.token_learning_rate": 0.1})
    model = module.model
    embedding = model.text_encoder.embeddings.token_embedding
    noun = model.tokenizer("robot", add_special_tokens=False).input_ids
    torch.testing.assert_close(embedding.row, embedding.table.weight[noun].mean(dim=0))
    table = embedding.table.weight.clone()
    optimizer = module.configure_optimizers()["optimizer"]
    module.training_step(0).backward()
    optimizer.step()
    tokens.TokenEmbedding.remove(model)
    after = model.text_encoder.embeddings.token_embedding.weight
    changed = (after != table).any(dim=1).nonzero().flatten().tolist()
    assert changed == model.tokenizer("sks", add_special_tokens=False).input_ids


def test_the_base_can_be_the_prior_target(tiny_base: Path) -> None:
    """Before any step the model is the base: asked for the base's own prediction, its prior loss is zero."""
    module = _module(tiny_base, **{"prior.target": "base"})
    module.training_step(0)
    instance, prior = module.read_losses()[:, :, 0].sum(dim=1)
    assert prior == pytest.approx(0, abs=1e-9)
    assert instance > 0.1
    optimizer = module.configure_optimizers()["optimizer"]
    assert module.teacher is not None
    teacher = module.teacher.denoiser.state_dict()
    before = copy.deepcopy(teacher)
    module.training_step(0).backward()
    optimizer.step()
    module.read_losses()
    module.training_step(0)
    assert module.read_losses()[1, :, 0].sum() > 1e-9
    assert all(torch.equal(value, before[name]) for name, value in teacher.items())


def test_the_photos_as_their_class_must_stay_what_the_base_says(tiny_base: Path) -> None:
    """After steps, too, their target is the untouched base's own output, to the last bit."""
    module, base = _module(tiny_base, **{"prior.target": "photos"}), load(str(tiny_base))
    ids = base.tokenize(["a sks robot", "a robot"])
    module.prior = module.instance.relabelled(base, [["a robot"]] * 3, torch.ones(()))
    assert torch.equal(module.prior.tokens, ids[1].expand(3, 1, -1))
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for step in range(2):
        module.training_step(step).backward()
        optimizer.step()
    batch = module.prior.micro_batch(module.model, "prior", 0, 5, 0, 1, 4)
    latents, noise, timesteps, mask = batch.on(torch.device("cpu"))
    assert batch.taught.all()
    noisy, process = base.process.add_noise(latents, noise, timesteps), base.process
    with torch.no_grad():
        asked = base.denoise(noisy, timesteps, base.condition_once(batch.tokens))
        now = module.model.denoise(noisy, timesteps, module.model.condition_once(batch.tokens))
        expected = sample_losses(now, asked, process.weights(timesteps, module.settings.loss), mask)
        assert torch.equal(module.losses(batch), expected)
    assert expected.min() > 1e-7
    assert not torch.allclose(asked, process.target(latents, noise, timesteps), atol=0.1)


def test_the_pull_keeps_what_trains_once(tiny_base: Path) -> None:
    """4 bytes for each number that trains, in main memory; nothing where a teacher has them, or without a pull."""
    assert _module(tiny_base).anchor is None
    given = {"train.parts": ["attention"], "prior.weights": 400.0}
    alone, beside = _module(tiny_base, **given), _module(tiny_base, **given, **{"prior.target": "base"})
    assert alone.anchor is not None
    assert beside.anchor is not None
    trained = sum(parameter.numel() for parameter in alone.parameters() if parameter.requires_grad)
    assert (alone.anchor.kept_bytes, beside.anchor.kept_bytes) == (4 * trained, 0)
    assert len(alone.anchor.starts) == len(beside.anchor.starts)


def test_the_pull_shrinks_an_adapters_offset(tiny_base: Path) -> None:
    """By lr x weight, in every layer, beside a teacher that is the model with its adapter switched off."""
    given = {"train.parts": ["lora"], "lora.unet_learning_rate": 1e-2, "lora.text_encoder": False}
    module = _module(tiny_base, **given, **{"prior.weights": 30.0, "prior.target": "base"})
    assert module.anchor is not None
    assert module.anchor.kept_bytes == 0
    optimizer = module.configure_optimizers()["optimizer"]
    module.training_step(0).backward()
    optimizer.step()
    before = adapter_layers.read(module.model).modules
    module.anchor.pull(optimizer)
    after = adapter_layers.read(module.model).modules
    moved = 0  # not of an attention over a single cell, which has no gradient
    for layer, tensors in before.items():
        offsets = [one["lora_up"].flatten(1) @ one["lora_down"].flatten(1) for one in (tensors, after[layer])]
        moved += int(offsets[0].any())
        torch.testing.assert_close(offsets[1], 0.7 * offsets[0])
    assert moved > len(before) / 2


def test_the_background_asks_for_the_teacher_and_class_images_for_the_truth(tiny_base: Path) -> None:
    module = _module(tiny_base, prior=4, **{"loss.background": "class", "prior.batch_size": 4})
    assert module.prior is not None
    losses = []
    for count in (0, 2, 4):  # of the four, all of which every step samples
        module.prior.taught = torch.arange(4) < count
        module.read_losses()
        module.training_step(0)
        losses.append(float(module.read_losses()[1, :, 0].sum()))
    none, two, all_of_them = losses
    assert 0.1 * none < two < 0.9 * none
    assert all_of_them == pytest.approx(0, abs=1e-9)


def test_photos_are_encoded_as_the_pipeline_would(tiny_base: Path) -> None:
    model = load(str(tiny_base))
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    encoded = encode(model, pictures, [["a sks robot"], ["x", "y"], ["z"]], mirrored=True, batch=2)
    assert encoded.mean.shape == (3, 2, 4, 8, 8)
    assert encoded.tokens.shape == (3, 2, 77)
    with torch.no_grad():
        pixels = torch.from_numpy(pictures[2, :, ::-1].copy()).permute(2, 0, 1)[None] / 127.5 - 1
        expected = model.vae.encode(pixels).latent_dist
    torch.testing.assert_close(encoded.mean[2, 1], expected.mean[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.log_variance[2, 1], expected.logvar[0], rtol=1e-4, atol=1e-5)


def test_subject_and_background_share_a_picture(tiny_base: Path) -> None:
    picture = np.full((64, 64, 3), 200, np.uint8)
    picture[24:56, 8:32] = (220, 30, 30)  # left of the middle
    model = load(str(tiny_base))
    every, subject, around = (
        encode(model, picture[None], [["a sks robot"]], mirrored=True, region=region).mask
        for region in ("all", "subject", "background")
    )
    assert every.shape == subject.shape == around.shape == (1, 2, 1, 8, 8)
    assert torch.equal(every, torch.ones_like(every))
    assert torch.equal(subject == 0, around > 0)
    assert (subject[0, 0, 0, 3:7, 1:4] > 1).all()
    assert (around[0, 0, 0, 0] > 1).all()
    assert (around[0, 0, 0, :, 6:] > 1).all()
    for one in (subject, around):
        assert len(one.unique()) == 2
        torch.testing.assert_close(one.mean((2, 3, 4)), torch.ones(1, 2))
        assert torch.equal(one[:, 1], one[:, 0].flip(-1))


def test_an_error_where_nothing_counts_is_none() -> None:
    target, mask = torch.randn(1, 4, 8, 8), torch.ones(1, 1, 8, 8)
    prediction, weights = target.clone(), torch.ones(1)
    prediction[..., :4] += 3
    assert sample_losses(prediction, target, weights, mask).item() == pytest.approx(4.5)
    mask[..., :4] = 0
    assert sample_losses(prediction, target, weights, mask).item() == 0
