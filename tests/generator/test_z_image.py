"""Z-Image: what it draws, how it trains, which adapters it reads; a language model is its text encoder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_readers import assert_same_changes, changes, random_lora
from diffusers import ZImagePipeline
from safetensors.torch import load_file, save_file

from femtobooth.core.errors import ModelError, SettingsError
from femtobooth.generator import activations, adapters, tokens
from femtobooth.generator.adapters import layers
from femtobooth.generator.available import available
from femtobooth.generator.families.z_image import PADDED, ZImage
from femtobooth.generator.formats import adapter_header, adapter_keys
from femtobooth.generator.formats.adapter_header import About
from femtobooth.generator.formats.adapter_reading import read
from femtobooth.generator.formats.adapter_writing import DIFFUSERS_NAME, write_diffusers, write_kohya
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.latents import encode
from femtobooth.generator.load import load
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings

from .conftest import Offline, settings

PROMPT = "a photo of a dog on the beach"
EULER = SamplingSettings(sampler="euler", steps=3, guidance=4.0)
LATENTS = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model(tiny_z_image: Path) -> Any:
    return load(str(tiny_z_image))


@pytest.fixture
def pipeline(tiny_z_image: Path) -> Any:
    found = ZImagePipeline.from_pretrained(tiny_z_image, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def theirs(pipeline: Any, **how: Any) -> np.ndarray:
    """Draw with diffusers, whose scale of guidance is less by one."""
    drawn: np.ndarray = pipeline(
        PROMPT, width=64, height=64, num_inference_steps=3, guidance_scale=3.0, latents=LATENTS, output_type="np", **how
    ).images
    return drawn


def test_its_conditions_are_those_of_diffusers_to_the_bit(model: ZImage, pipeline: Any) -> None:
    ids = model.tokenize([PROMPT, ""])
    assert ids.shape == (2, 512)
    with torch.no_grad():
        said = model.condition(ids)
        both, _ = pipeline.encode_prompt([PROMPT, ""], do_classifier_free_guidance=False)
    for row, wanted in enumerate(both):
        there = said.tensors["there"][row] > 0
        assert torch.equal(said.tensors["states"][row][there], wanted)
        assert torch.equal(there, ids[row] != PADDED)
    assert model.tokenizer.convert_ids_to_tokens(int(ids[0, model.last_place(PROMPT)])) == "Ġbeach"


def test_it_draws_what_diffusers_own_pipeline_draws(model: ZImage, pipeline: Any) -> None:
    drawn = theirs(pipeline, negative_prompt="a red robot")
    ours = sample(model, [PROMPT], [0], EULER.model_copy(update={"negative": "a red robot"}), latents=LATENTS)
    assert drawn.std() > 0.01
    assert np.abs(ours / 255 - drawn).max() <= 1 / 255


def test_prompts_of_other_lengths_beside_it_change_nothing(model: ZImage) -> None:
    condition = model.condition(model.tokenize([PROMPT, "a dog"]))
    noisy = LATENTS.expand(2, -1, -1, -1)
    with torch.no_grad():
        together = model.denoise(noisy, torch.tensor(700.0), condition)
        alone = model.denoise(LATENTS, torch.tensor(700.0), condition[1:])
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(together[:1], alone)


def training(model: Any, *sets: str) -> Offline:
    module = Offline(model, settings("prior.weight=0", "train.parts=lora", *sets), "sks", lambda _: None)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    module.instance, module.prior = encode(model, pictures, [["a sks robot"], ["a photo of a sks robot"]]), None
    return module


def test_the_prediction_is_that_of_the_pipelines_transformer_to_the_bit(tiny_z_image: Path, pipeline: Any) -> None:
    model: Any = load(str(tiny_z_image))
    module = training(model, "training.batch_size=1")
    batch = module.instance.micro_batch(model, "instance", 0, 3, 0, 1, 1)
    caption = next(text for text in ("a sks robot", "a photo of a sks robot") if torch.equal(model.tokenize([text]), batch.tokens))  # fmt: skip
    t = batch.timesteps / 1000
    noisy = t * batch.noise + (1 - t) * batch.latents
    with torch.no_grad():
        states, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
        wanted = -pipeline.transformer([noisy[0].unsqueeze(1)], (1000 - batch.timesteps) / 1000, states)[0][0].squeeze(
            1
        )
        loss = module.losses(batch)
    assert torch.equal(loss[0], (batch.noise - batch.latents - wanted).square().mean())
    module.training_step(0).backward()
    trained = {name: one for name, one in module.named_parameters() if one.requires_grad}
    assert {name.partition(".")[0] for name in trained} == {"transformer"}
    assert all(one.grad is not None for one in trained.values())


@pytest.mark.parametrize("parts", ["[unet,text_encoder]", "[token]"])
def test_its_language_model_never_trains(parts: str, model: ZImage) -> None:
    with pytest.raises(SettingsError, match="is a language model, which never trains") as caught:
        Offline(model, settings(f"train.parts={parts}"), "sks", lambda _: None)
    assert caught.value.way_out == "name other parts: lora, unet or attention"
    assert model.card["personalize"]["train"] == {"parts": ["lora"]}


def test_words_are_chosen_and_told_apart(model: ZImage) -> None:
    found = tokens.choose(model, "robot")
    assert {one.token for one in found} == {"sks", "zkq", "xvt"}
    assert all(one.pieces == (one.token,) for one in found)
    apart = tokens.distances(model, ["sks", "zkq"], ["sks", "zkq"])
    assert apart[0, 0] == pytest.approx(0, abs=1e-5)
    assert apart[0, 1] > 0.01


def test_what_is_saved_loads_anywhere(model: ZImage, tmp_path: Path) -> None:
    save_folder(model, tmp_path / "copy", card="# copy\n")
    again: Any = load(str(tmp_path / "copy"))
    for name in ("transformer", "vae", "text_encoder"):
        pairs = zip(getattr(model, name).state_dict().items(), getattr(again, name).state_dict().items(), strict=True)
        assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)
    assert torch.equal(again.tokenize([PROMPT]), model.tokenize([PROMPT]))
    path = tmp_path / "copy" / "text_encoder" / "model.safetensors"
    held = {f"model.{name}": one for name, one in load_file(path).items()}
    save_file(held | {"lm_head.weight": torch.ones(1)}, path)  # as the published one is
    config = path.with_name("config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["Qwen3ForCausalLM"]}))
    with torch.no_grad():
        wanted = model.condition(model.tokenize([PROMPT])).tensors["states"]
        assert torch.equal(load(str(tmp_path / "copy")).condition(model.tokenize([PROMPT])).tensors["states"], wanted)


def test_a_plan_goes_through_it_without_numbers(tiny_z_image: Path) -> None:
    bare = load(str(tiny_z_image), weights=False)
    assert activations.sampling_pass(bare, 128) > activations.sampling_pass(bare, 64) > 0


def test_parts_that_do_not_fit_are_refused(tiny_z_image: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_z_image, tmp_path / "z")
    config = folder / "transformer" / "config.json"
    plain = json.loads(config.read_text())
    for changes_, says in (({"siglip_feat_dim": 8}, "a Z-Image Omni"), ({"cap_feat_dim": 32}, "do not fit together")):
        config.write_text(json.dumps(plain | changes_))
        with pytest.raises(ModelError, match=says):
            load(str(folder), weights=False)


def test_adapters_of_all_layouts_are_read_and_diffusers_draws_ours(tiny_z_image: Path, pipeline: Any, tmp_path: Path) -> None:  # fmt: skip
    model: Any = load(str(tiny_z_image))
    wanted = model.ADAPTED["transformer"]
    names = [name for name, _ in layers(model) if re.fullmatch(wanted["all"], name.partition(".")[2])]
    assert len(names) == 4 * (4 + 3) + 3
    adapter = random_lora(model, names, rank=4)
    metadata = adapter_header.header(adapter, model, About("rex"))
    assert metadata["modelspec.architecture"] == "z-image/lora"
    write_kohya(tmp_path / "kohya.safetensors", adapter, metadata, names=adapter_keys.kohya_names(model))
    write_diffusers(tmp_path / DIFFUSERS_NAME, adapter, {})
    layouts = {
        "diffusion_model.{}.lora_A.weight": "ai-toolkit",
        "lora_unet_{}.lora_down.weight": "kohya",
        "transformer.{}.lora_A.weight": "diffusers",
    }
    for layout, maker in layouts.items():
        held = {}
        for name, kinds in adapter.modules.items():
            path = name.partition(".")[2]
            key = layout.format(path.replace(".", "_") if maker == "kohya" else path)
            held[key] = kinds["lora_down"]
            held[key.replace("lora_A", "lora_B").replace("lora_down", "lora_up")] = kinds["lora_up"] / 4
        save_file(held, tmp_path / "theirs.safetensors")
        assert_same_changes(changes(model, read(tmp_path / "theirs.safetensors", model)), changes(model, adapter))
    for file in ("kohya.safetensors", DIFFUSERS_NAME):
        assert_same_changes(changes(model, read(tmp_path / file, model)), changes(model, adapter))
    pipeline.load_lora_weights(tmp_path, weight_name=DIFFUSERS_NAME)
    drawn = theirs(pipeline)
    bare = sample(model, [PROMPT], [0], EULER, latents=LATENTS) / 255
    adapters.apply(model, read(tmp_path / DIFFUSERS_NAME, model))
    assert np.abs(sample(model, [PROMPT], [0], EULER, latents=LATENTS) / 255 - drawn).max() <= 1 / 255
    assert np.abs(bare - drawn).mean() > 2 / 255


def test_layers_that_are_three_of_ours_are_cut(model: ZImage, tmp_path: Path) -> None:
    """As ComfyUI's and the original code's: `attention.qkv` and `attention.out`."""
    down, up = torch.randn(2, 32), torch.randn(96, 2)
    start = "diffusion_model.layers.1.attention"
    held = {f"{start}.qkv.lora_A.weight": down, f"{start}.qkv.lora_B.weight": up}
    save_file(held | {f"{start}.out.lora_A.weight": down.clone(), f"{start}.out.lora_B.weight": up[:32].clone()}, tmp_path / "a.safetensors")  # fmt: skip
    found = changes(model, read(tmp_path / "a.safetensors", model))
    whole = (up @ down).split(32)
    for name, change in zip(("to_q", "to_k", "to_v"), whole, strict=True):
        torch.testing.assert_close(found[f"transformer.layers.1.attention.{name}"], change)
    torch.testing.assert_close(found["transformer.layers.1.attention.to_out.0"], whole[0])


def test_its_size_is_told_without_loading_it(tiny_z_image: Path, tmp_path: Path) -> None:
    (found,) = [one for one in available(tmp_path, [str(tiny_z_image)]) if one.source == "folder"]
    assert (found.family, found.size) == ("Z-Image", 64)


def test_its_language_model_is_held_in_bf16_where_fp16_is_asked_for(tiny_z_image: Path) -> None:
    model: Any = load(str(tiny_z_image), held="fp16")
    assert (model.text_encoder.dtype, model.transformer.dtype) == (torch.bfloat16, torch.float16)
    assert model.condition(model.tokenize(["a dog"])).tensors["states"].dtype == torch.float16
