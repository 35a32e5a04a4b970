"""A family of another kind costs one file: a rectified flow with two text encoders and a shifted VAE trains and draws
through the interface alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from femtobooth.core import config
from femtobooth.generator import tokens, trainable
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.families.family import Condition, Family, TokenTable
from femtobooth.generator.latents import LatentSet, MicroBatch, encode
from femtobooth.generator.load import load
from femtobooth.generator.loss_settings import LossSettings
from femtobooth.generator.process import NoiseProcess
from femtobooth.generator.sampling import sample, to_pixels
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import PersonalizeSettings


class Euler:
    """Walks a rectified flow in straight steps."""

    init_noise_sigma = 1.0

    def __init__(self, steps: int) -> None:
        self.width = 1 / steps

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> tuple[Tensor]:
        return (sample - self.width * model_output,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return Flow().add_noise(original_samples, noise, timesteps)


class Flow(NoiseProcess):
    """A rectified flow (arXiv 2209.03003): x_t = (1 - t) x_0 + t noise, t in [0, 1]; predicted is noise - x_0."""

    prediction_type = "flow"

    def draw_timesteps(self, count: int, random: torch.Generator) -> Tensor:
        return torch.rand(count, generator=random)

    def middles(self, count: int) -> Tensor:
        return (torch.arange(count) * 2 + 1) / (2 * count)

    def noisiest(self, count: int) -> Tensor:
        return torch.linspace(0.75, 1, count)

    def buckets(self, timesteps: Tensor, count: int) -> Tensor:
        return (timesteps * count).long().clamp(max=count - 1)

    def bucket_name(self, bucket: int, count: int) -> str:
        return f"t{bucket / count:.2f}-{(bucket + 1) / count:.2f}"

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        t = timesteps.view(-1, 1, 1, 1)
        return (1 - t) * latents + t * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def weights(self, timesteps: Tensor, loss: LossSettings) -> Tensor:
        return torch.ones_like(timesteps)

    def solver(
        self, settings: SamplingSettings, strength: float = 1.0, group: str = "sampling"
    ) -> tuple[Euler, Tensor]:
        return Euler(settings.steps), torch.arange(settings.steps, 0, -1) / settings.steps


class Part(nn.Module):
    device, dtype = torch.device("cpu"), torch.float32


class Transformer(Part):
    """Knows that there is one picture only; `bias`, which trains, moves it."""

    def __init__(self, picture: Tensor) -> None:
        super().__init__()
        self.register_buffer("picture", picture)
        self.bias, self.attn = nn.Parameter(torch.zeros(())), nn.Linear(64, 1, bias=False)

    def forward(self, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        said = 0 * self.attn(states).mean(dim=1)[..., None, None]
        return (noisy - self.picture) / timesteps.view(-1, 1, 1, 1) + self.bias + said


class Pixels(Part):
    """A VAE whose latents are the pixels."""

    config = SimpleNamespace(block_out_channels=(1,), scaling_factor=2.0, shift_factor=0.25, force_upcast=False)

    def encode(self, pixels: Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=pixels, logvar=torch.full_like(pixels, -60)))

    def decode(self, latents: Tensor) -> Any:
        return SimpleNamespace(sample=latents)


@dataclass(kw_only=True)
class Toy(Family):
    PIPELINES = ("ToyPipeline",)
    NETWORKS = {"transformer": Transformer, "vae": Pixels, "text_encoder": nn.Module, "text_encoder_2": nn.Module}
    DENOISER = "transformer"
    TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    ATTENTION = ("attn.",)
    process = Flow()
    latent_channels, cells = 3, 8

    transformer: Transformer
    text_encoder: Any
    text_encoder_2: Any
    tokenizer_2: Any

    def tokenize(self, prompts: Sequence[str]) -> Tensor:  # (B, 2, L)
        how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return torch.stack([one(list(prompts), **how).input_ids for one in (self.tokenizer, self.tokenizer_2)], dim=1)

    def condition(self, tokens: Tensor) -> Condition:
        encoders = self.text_encoders.values()
        states = [one(ids).last_hidden_state for one, ids in zip(encoders, tokens.unbind(1), strict=True)]
        return Condition({"states": torch.cat(states, dim=-1)})  # (B, L, 2D)

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        return self.transformer(noisy, timesteps, **condition.tensors)

    def token_tables(self) -> Sequence[TokenTable]:
        encoders = zip((self.tokenizer, self.tokenizer_2), self.text_encoders.values(), strict=True)
        return [TokenTable(tokenizer, encoder, encoder.embeddings) for tokenizer, encoder in encoders]

    def pipeline(self) -> Any:
        raise NotImplementedError

    @classmethod
    def refuse_misfits(cls, networks: Mapping[str, Any], where: object) -> None:
        pass


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture
def toy(tiny_sd1: Path, picture: np.ndarray) -> Toy:
    words: Any = load(str(tiny_sd1))
    return Toy(
        transformer=Transformer((to_pixels(picture[None]) - 0.25) * 2.0),
        vae=Pixels(),
        scheduler=None,
        tokenizer=words.tokenizer,
        tokenizer_2=copy.deepcopy(words.tokenizer),
        text_encoder=words.text_encoder,
        text_encoder_2=copy.deepcopy(words.text_encoder),
        source="toy",
        hash="",
    )


def training(toy: Toy, picture: np.ndarray, **changes: Any) -> DreamBooth:
    given = {"photos": {"paths": ["x"], "class_noun": "robot"}, "training": {"batch_size": 4}, **changes}
    module = DreamBooth(toy, config.resolve(PersonalizeSettings, given), "sks", lambda _: None)
    module.instance = encode(toy, picture[None], [["a sks robot"]])
    module.prior = None
    return module


def batch(pictures: LatentSet, toy: Toy) -> MicroBatch:
    return pictures.micro_batch(toy, "instance", 0, 0, 0, 1, 4)


def test_a_flow_that_is_known_has_no_loss(toy: Toy, picture: np.ndarray) -> None:
    module = training(toy, picture)
    sampled = batch(module.instance, toy)
    assert sampled.timesteps.is_floating_point()
    assert sampled.tokens.shape == (4, 2, 77)
    losses = module.losses(sampled)
    torch.testing.assert_close(losses, torch.zeros(4), rtol=0, atol=1e-8)
    with torch.no_grad():
        toy.transformer.bias += 0.5
    torch.testing.assert_close(module.losses(sampled), torch.full((4,), 0.25))


def test_it_draws_what_it_knows_through_scale_and_shift(toy: Toy, picture: np.ndarray) -> None:
    drawn = sample(toy, ["a robot"], [0], SamplingSettings(steps=4, guidance=3.0), batch_size=1)
    assert np.array_equal(drawn[0], picture)


def test_all_its_networks_train_and_the_teacher_stays(toy: Toy, picture: np.ndarray) -> None:
    module = training(toy, picture, prior={"target": "base"})
    rates = {group["name"]: group["lr"] for group in trainable.optimizer_groups(toy, module.settings)}
    assert rates == {"transformer": 2e-6, "text_encoder": 2e-6, "text_encoder_2": 2e-6}
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == set(rates)
    with torch.no_grad():
        toy.transformer.bias += 0.5
    sampled = batch(module.instance, toy)
    sampled.taught = torch.tensor([True, False, True, False])
    torch.testing.assert_close(module.losses(sampled), torch.full((4,), 0.25))  # the teacher says what is true
    assert module.teacher is not None
    with torch.no_grad():
        module.teacher.transformer.bias += 0.5
    torch.testing.assert_close(module.losses(sampled), torch.tensor([0.0, 0.25, 0.0, 0.25]), rtol=0, atol=1e-8)


def test_a_word_trains_in_every_text_encoder(toy: Toy, picture: np.ndarray) -> None:
    module = training(toy, picture, train={"parts": ["token"]}, prior={"weight": 0})
    trained = [name for name, value in module.named_parameters() if value.requires_grad]
    assert trained == [f"{name}.embeddings.token_embedding.row" for name in ("text_encoder", "text_encoder_2")]
    tokens.TokenEmbedding.remove(toy)
    assert all(isinstance(table.embeddings.token_embedding, nn.Embedding) for table in toy.token_tables())


def test_only_attention_layers_of_the_denoiser_train(toy: Toy, picture: np.ndarray) -> None:
    module = training(toy, picture, train={"parts": ["attention"]}, prior={"weight": 0})
    assert [name for name, value in module.named_parameters() if value.requires_grad] == ["transformer.attn.weight"]
