"""What is told of memory before there are weights, against what a training then holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from femtobooth.core import config
from femtobooth.generator import activations, frozen
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats import parts
from femtobooth.generator.latents import LatentSet
from femtobooth.generator.load import load
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.training import trainer
from femtobooth.training.averages import MovingAverage
from femtobooth.workflows.personalizing import told

SD15 = {
    "unet": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8},
    "vae": {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    },
    "text_encoder": {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}


def settings(**groups: Any) -> PersonalizeSettings:
    photos = {"paths": ["x"], "class_noun": "robot"}
    return config.resolve(PersonalizeSettings, {"photos": photos, "prior": {"weight": 0.0}}, groups)


def planned(base: str, given: PersonalizeSettings) -> dict[str, Any]:
    model = load(base, weights=False)
    frozen.hold(model, given.train.held)
    module = DreamBooth(model, given, "sks", lambda _: None)
    return {part.name: part for part in told.memory(module, given)}


def held(tensors: Any) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


@pytest.mark.parametrize(
    "groups",
    [
        {"prior": {"weight": 1.0, "target": "base"}, "training": {"ema": 0.5}},
        {"train": {"parts": ["lora", "token"], "frozen_precision": "bf16"}, "lora": {"rank": 3}},
        {"train": {"parts": ["attention"]}, "training": {"optimizer": "adafactor"}},
    ],
    ids=["whole", "adapter", "attention"],
)
def test_what_is_planned_is_held_to_the_byte(groups: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    given = settings(**groups | {"training": {"steps": 1, "accelerator": "cpu"} | groups.get("training", {})})
    model, random = load(str(tiny_base), held=given.train.held), torch.Generator().manual_seed(0)
    pictures = LatentSet(
        *torch.randn(2, 2, 1, 4, 8, 8, generator=random),
        model.tokenize(["a sks robot"])[None].expand(2, -1, -1),
        taught=torch.tensor(bool(groups.get("prior"))),
    )
    module = DreamBooth(model, given, "sks", lambda _: (pictures, pictures if groups.get("prior") else None))
    average = MovingAverage(given.training.ema)
    lightning = trainer.build(given.training, tmp_path, [average] if given.training.ema else [], [])
    lightning.fit(module)
    (optimizer,) = lightning.optimizers
    rows = planned(str(tiny_base), given)
    assert rows.keys() == {"unet", "text_encoder", "vae"}
    for name, row in rows.items():
        network = getattr(model, name)
        trained = [one for one in network.parameters() if one.requires_grad]
        states = [one for each in trained for key, one in optimizer.state[each].items() if key != "step"]
        assert row.trained == sum(one.numel() for one in trained)
        if name == "vae" and "lora" in given.train.parts:
            assert network.encoder is None and 4 * row.frozen == row.weights > held(network.parameters()) > 0
            continue
        assert row.trained + row.frozen == sum(one.numel() for one in network.parameters())
        assert row.weights == held([*network.parameters(), *network.buffers()])
        assert row.gradients == held(one.grad for one in trained)
        assert row.optimizer == held(states)
        own = {f"{name}.{path}" for path, one in network.named_parameters() if one.requires_grad}
        assert row.average == held(average.average[path] for path in own if average.average)
        copy = getattr(module.teacher, name, None)
        assert row.teacher == (held([*copy.parameters(), *copy.buffers()]) if copy not in (None, network) else 0)
    assert bool(rows["unet"].teacher) == bool(groups.get("prior"))


def stable_diffusion_15() -> StableDiffusion:
    bundled = load("bundled", weights=False)
    bundled.tokenizer.model_max_length = 77
    networks = {name: parts.build(StableDiffusion.NETWORKS[name], made, "x") for name, made in SD15.items()}
    return StableDiffusion(tokenizer=bundled.tokenizer, scheduler=bundled.scheduler, source="sd15", hash="", **networks)


@pytest.mark.parametrize(
    ("groups", "unet", "text_encoder", "total"),
    [
        ({}, 859_520_964, 123_060_480, 16 * 982_581_444),
        # attention's q, k, v and out: 128 layers of rank 16, fp32 with AdamW, beside 16-bit weights
        (
            {"train": {"parts": ["lora"], "frozen_precision": "bf16"}, "lora": {"text_encoder": False}},
            *(3_188_736, 0, 2 * 982_581_444 + 16 * 3_188_736),
        ),
    ],
)
def test_stable_diffusion_15_in_full_and_with_an_adapter(
    groups: dict[str, Any], unet: int, text_encoder: int, total: int
) -> None:
    """859.5 M and 123.1 M parameters: 15.7 GB in full, 2.0 GB beside a 16-bit base."""
    given = settings(**groups)
    model = stable_diffusion_15()
    frozen.hold(model, given.train.held)
    module = DreamBooth(model, given, "sks", lambda _: None)
    rows = {part.name: part for part in told.memory(module, given)}
    assert (rows["unet"].trained, rows["text_encoder"].trained) == (unet, text_encoder)
    buffer = 77 * 8  # the text encoder's positions
    assert rows["unet"].total + rows["text_encoder"].total == total + buffer
    assert (rows["vae"].frozen, rows["vae"].total) == (83_653_863, 4 * 83_653_863)


def test_a_counter_counts_what_is_held_and_the_most_of_it() -> None:
    weight = torch.empty(50, 100, device="meta")
    with activations.Counter(iter([weight])) as counter:
        first = torch.empty(100, 100, device="meta")
        second = weight @ first  # (50, 100)
        view = second.T[3:]
        del first, second
        third = view + 1  # (97, 50)
        assert counter.held == 4 * (5000 + 4850)
        del view, third
    assert (counter.held, counter.peak) == (0, 4 * 15000)


def test_passes_grow_with_their_rows_and_shrink_by_checkpointing(tiny_base: Path) -> None:
    def passes(rows: int, checkpointing: bool = False, **how: Any) -> activations.Pass:
        model = load(str(tiny_base), weights=False)
        model.denoiser.requires_grad_(True).train()
        facts = {"taught": 0, "captions": 0, "size": 64, "precision": "fp32", **how}
        return activations.training_pass(model, None, rows, checkpointing=checkpointing, **facts)

    gradients = 4 * sum(one.numel() for one in load(str(tiny_base), weights=False).denoiser.parameters())
    two, four = passes(2), passes(4)
    assert two.backward >= gradients
    assert four.forward == pytest.approx(2 * two.forward, rel=0.02)
    assert passes(4, checkpointing=True).forward < 0.5 * four.forward
    copies = gradients // 2  # of every weight, in 16 bits
    assert copies < passes(4, precision="bf16").forward < copies + 0.75 * four.forward


def test_what_the_backward_pass_reads_is_counted() -> None:
    """Against torch's own list of what it saves, of the real thing."""
    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    saved: dict[int, int] = {}
    known = {one.untyped_storage().data_ptr() for one in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = network(torch.zeros(32, 8)).square().sum()
    network.to("meta")
    with activations.Counter(network.parameters()) as counter:
        loss = network(torch.zeros(32, 8, device="meta")).square().sum()
    assert kept.numel() == loss.numel() == 1
    assert counter.held == sum(saved.values()) + 4  # the loss itself
