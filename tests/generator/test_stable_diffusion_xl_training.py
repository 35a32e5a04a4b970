"""How Stable Diffusion XL trains: every picture with its own micro-conditions, both text encoders at their rates, one
vector of a word in each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from femtobooth.generator import trainable
from femtobooth.generator.latents import LatentSet, encode
from femtobooth.generator.load import load
from femtobooth.generator.photos import Photo
from femtobooth.generator.stored_photos import restore_photos, store_photos
from femtobooth.generator.tokens import TokenEmbedding
from femtobooth.pictures.framing import Framing

from .conftest import Offline, settings

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
CAPTIONS = [["a sks robot"], ["a photo of a sks robot"], ["sks robot on the moon"]]
FRAMINGS = [Framing(800, 1203, 0, 20, 7), None, Framing(96, 96)]


@pytest.fixture
def model(tiny_xl: Path) -> Any:
    return load(str(tiny_xl))


def training(model: Any, *sets: str) -> Offline:
    module = Offline(model, settings("prior.weight=0", *sets), "sks", lambda _: None)
    module.instance, module.prior = encode(model, PICTURES, CAPTIONS, mirrored=True, framings=FRAMINGS), None
    return module


def test_every_picture_has_its_own_numbers_and_so_has_its_mirror(model: Any) -> None:
    photos = encode(model, PICTURES, CAPTIONS, mirrored=True, framings=FRAMINGS)
    assert photos.framing.tolist() == [
        [[800, 1203, 0, 20, 64, 64], [800, 1203, 0, 7, 64, 64]],
        [[64, 64, 0, 0, 64, 64]] * 2,
        [[96, 96, 0, 0, 64, 64]] * 2,
    ]
    both = photos + photos.relabelled(model, CAPTIONS, torch.ones(()))
    assert torch.equal(both.framing[3:], photos.framing)
    assert torch.equal(photos.background(model, PICTURES[:2], "a robot").framing, photos.framing[:2])
    batch = both.micro_batch(model, "instance", 0, 0, 0, 1, 6)
    rows = {tuple(row) for row in batch.framing.tolist()}
    assert rows <= {tuple(row) for row in photos.framing.flatten(0, 1).tolist()}
    assert len(rows) > 2


def test_a_class_image_changes_no_photo(model: Any) -> None:
    def told(of_class: Framing) -> torch.Tensor:
        photos = encode(model, PICTURES, CAPTIONS, framings=FRAMINGS)
        classes = encode(model, PICTURES[:1], [["a robot"]], framings=[of_class])
        seen = []
        hook = model.unet.add_time_proj.register_forward_hook(lambda _, given, __: seen.append(given[0]))
        module = training(model, "training.batch_size=1")
        module.instance, module.prior = photos, classes
        with torch.no_grad():
            module.training_step(0)
        hook.remove()
        return seen[0].view(-1, 6)

    first, second = told(Framing(64, 64)), told(Framing(512, 700, 5, 6, 7))
    assert torch.equal(first[:1], second[:1])
    assert first[1:].tolist() == [[64, 64, 0, 0, 64, 64]]
    assert second[1:].tolist() == [[512, 700, 5, 6, 64, 64]]


def test_the_prediction_is_that_of_the_pipelines_unet_to_the_bit(model: Any, tiny_xl: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_xl, add_watermarker=False, local_files_only=True)
    module = training(model, "training.batch_size=1")
    batch = module.instance.micro_batch(model, "instance", 0, 3, 0, 1, 1)
    caption = next(text for (text,) in CAPTIONS if torch.equal(model.tokenize([text]), batch.tokens))
    height, width, top, left, *now = batch.framing[0].tolist()
    noisy = model.process.add_noise(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
        ids = pipeline._get_add_time_ids((height, width), (top, left), tuple(now), states.dtype, 40)
        told = {"text_embeds": pooled, "time_ids": ids}
        theirs = pipeline.unet(noisy, batch.timesteps, encoder_hidden_states=states, added_cond_kwargs=told).sample
        ours = model.denoise(noisy, batch.timesteps, model.framed(model.condition_once(batch.tokens), batch.framing))
        loss = module.losses(batch)
    assert torch.equal(ours, theirs)
    assert torch.equal(loss, (batch.noise - theirs).square().mean(dim=(1, 2, 3)))
    assert not torch.equal(ours, model.denoise(noisy, batch.timesteps, model.condition_once(batch.tokens)))


@pytest.mark.parametrize("parts", ["[unet,text_encoder]", "[attention]", "[token]"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_that_trains_gets_a_gradient(model: Any, parts: str, checkpointing: bool) -> None:
    """DistributedDataParallel waits for parameters that nothing computes with."""
    module = training(model, f"train.parts={parts}", f"training.gradient_checkpointing={checkpointing}".lower())
    module.training_step(0).backward()
    trained = {name: one for name, one in module.named_parameters() if one.requires_grad}
    assert [name for name, one in trained.items() if one.grad is None] == []
    last = [name for name in trained if name.startswith(("text_encoder.encoder.layers.1", "text_encoder.final"))]
    assert last == []
    assert ("text_encoder_2.text_projection.weight" in trained) == ("text_encoder" in parts)


def test_both_text_encoders_have_rates_of_their_own(model: Any) -> None:
    given = ("train.unet_learning_rate=2e-6", "train.text_encoder_learning_rate=1e-5")
    chosen = settings(*given, "train.text_encoder_2_learning_rate=3e-6")
    trainable.select(model, chosen, {"sks": "dog"})
    rates = {group["name"]: group["lr"] for group in trainable.optimizer_groups(model, chosen)}
    assert rates == {"unet": 2e-6, "text_encoder": 1e-5, "text_encoder_2": 3e-6}
    assert chosen.rates["train.text_encoder_2_learning_rate"] == 3e-6
    alike = settings(*given)
    assert [group["lr"] for group in trainable.optimizer_groups(model, alike)] == [2e-6, 1e-5, 1e-5]
    assert "train.text_encoder_2_learning_rate" not in alike.rates


def test_a_word_has_a_vector_in_each_encoder_and_the_end_stays_the_end(model: Any) -> None:
    """Configs of 2023 say eos_token_id 2, by which transformers takes the largest number for the end: the new word."""
    second = model.text_encoder_2
    second.config.eos_token_id = second.text_model.eos_token_id = 2
    plain = model.condition(model.tokenize(["a robot"])).tensors["text_embeds"]
    TokenEmbedding.install(model, "qzxvw", "robot")
    rows = [table.embeddings.token_embedding.row for table in model.token_tables()]
    assert [len(row) for row in rows] == [32, 48]
    assert torch.equal(model.condition(model.tokenize(["a robot"])).tensors["text_embeds"], plain)
    ids = model.tokenize(["a qzxvw"])
    state = second(ids[:, 1]).last_hidden_state
    end = (ids[0, 1] == model.tokenizer_2.eos_token_id).nonzero()[0, 0]
    torch.testing.assert_close(second(ids[:, 1]).text_embeds[0], second.text_projection(state[0, end]))
    model.condition(ids).tensors["text_embeds"].sum().backward()
    assert rows[1].grad is not None
    with torch.no_grad():
        rows[0] += 1
    learned = [row.detach().clone() for row in rows]
    TokenEmbedding.remove(model)
    for row, (tokenizer, _, embeddings, _) in zip(learned, model.token_tables(), strict=True):
        assert torch.equal(embeddings.token_embedding.weight[tokenizer.convert_tokens_to_ids("qzxvw")], row)


def test_captions_are_dropped_to_what_guidance_starts_from(model: Any) -> None:
    module = training(model)
    batch = module.instance.micro_batch(model, "instance", 0, 0, 0, 1, 3)
    dropped = batch.without_captions(1.0, model.no_prompt(), 0, 0, 0)
    condition = model.condition_once(dropped.tokens)
    assert not any(tensor.any() for tensor in condition.tensors.values())


def test_photos_remember_how_they_were_framed(tmp_path: Path) -> None:
    photos = [
        Photo(tmp_path / f"{index}.jpg", pixels, ("a {token} {class}",), (), framing=framing)
        for index, (pixels, framing) in enumerate(zip(PICTURES, FRAMINGS, strict=True))
    ]
    store_photos(photos, tmp_path / "photos")
    assert [photo.framing for photo in restore_photos(tmp_path / "photos")] == FRAMINGS


def test_sets_made_by_hand_know_no_framing() -> None:
    mean = torch.zeros(2, 1, 4, 8, 8)
    assert LatentSet(mean, mean, torch.zeros(2, 1, 2, 77)).framing.shape == (2, 1, 6)
