"""Adapters of Stable Diffusion XL: every key at full size, files that diffusers draws as we do, words with two vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_readers import (
    assert_same_changes,
    changes,
    comfy_left_over,
    kohya_names_of_xl,
    published_xl,
    random_lora,
)
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from femtobooth.core.errors import ModelError
from femtobooth.generator import adapted_folder, adapters, lora_reference
from femtobooth.generator.adapted_folder import Learned
from femtobooth.generator.adapters import layers
from femtobooth.generator.families.stable_diffusion_xl import StableDiffusionXL
from femtobooth.generator.formats import adapter_header, adapter_keys, adapter_reading, ldm_configs
from femtobooth.generator.formats.adapter_header import About
from femtobooth.generator.formats.adapter_reading import read
from femtobooth.generator.formats.adapter_writing import DIFFUSERS_NAME, write_diffusers, write_kohya
from femtobooth.generator.load import load
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.tokens import TokenEmbedding

PROMPT = "a glossy dog on the beach"
GOLDEN = "231dc80db7c1b20b"  # the start of a hash of all names


@pytest.fixture(scope="module")
def model(tiny_xl: Path) -> Any:
    return load(str(tiny_xl))


def everything(model: StableDiffusionXL) -> list[str]:
    known, ours = set(kohya_names_of_xl(model, conv=True).values()), adapter_keys.kohya_names(model)
    return [name for name, layer in layers(model) if name in ours and layer in known]


def test_every_reader_finds_a_layer_for_every_key_at_full_size(tmp_path: Path) -> None:
    model = published_xl()
    assert (ldm_configs.version(model), ldm_configs.is_published(model)) == ("XL", True)
    default, conv = kohya_names_of_xl(model), kohya_names_of_xl(model, conv=True)
    parts = {
        root: len([name for name in default if name.startswith(root)])
        for root in ("lora_unet_", "lora_te1_", "lora_te2_")
    }
    assert parts == {"lora_unet_": 722, "lora_te1_": 72, "lora_te2_": 192}
    assert len(conv) - len(default) == 66
    assert hashlib.sha256("\n".join(sorted(conv)).encode()).hexdigest()[:16] == GOLDEN
    named, by_name = adapter_keys.kohya_names(model), dict(layers(model))
    ours = {named[name]: layer for name, layer in by_name.items()}
    assert set(conv) <= set(ours)
    assert all(ours[name] is layer for name, layer in conv.items())
    assert {"lora_unet_label_emb_0_0", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"} <= set(ours)

    adapter = random_lora(model, everything(model), rank=1)
    metadata = adapter_header.header(adapter, model, About("rex"))
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    write_kohya(tmp_path / "kohya.safetensors", adapter, metadata, torch.float16, names=named)
    keys = set(load_file(tmp_path / "kohya.safetensors"))
    assert keys == {f"{name}.{end}" for name in conv for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    comfy = dict.fromkeys((*conv, *(name for name in conv)), "")
    assert not comfy_left_over(keys, comfy)
    write_diffusers(tmp_path / "diffusers.safetensors", adapter, {}, torch.float16)
    for file in ("kohya", "diffusers"):
        assert set(read(tmp_path / f"{file}.safetensors", model).modules) == set(adapter.modules)


LAYOUTS: dict[str, Callable[[str, str], str]] = {  # by maker, what a tensor is called: our layer, kind
    "diffusers": lambda name, end: f"{adapter_keys.in_files(name)}.lora_{'A' if end == 'down' else 'B'}.weight",
    "diffusers under transformers 5": lambda name, end: f"{name}.lora_{'A' if end == 'down' else 'B'}.weight",
    "diffusers' example scripts": lambda name, end: (
        f"{adapter_keys.in_files(name)}.{'lora' if name.startswith('unet') else 'lora_linear_layer'}.{end}.weight"
    ),
    "kohya in diffusers' names": lambda name, end: f"{adapter_keys.kohya(name, StableDiffusionXL)}.lora_{end}.weight",
    "ComfyUI": lambda name, end: (
        f"{adapter_keys.in_files(name)}.lora_{end}.weight".replace("text_encoder_2.", "text_encoders.clip_g.transformer.")
        .replace("text_encoder.", "text_encoders.clip_l.transformer.")
    ),
}  # fmt: skip


@pytest.mark.parametrize("maker", LAYOUTS)
def test_strangers_layouts_are_read_to_the_last_tensor(maker: str, model: Any, tmp_path: Path) -> None:
    adapter = random_lora(model, everything(model), alpha=None)
    held = {
        LAYOUTS[maker](name, kind[5:]): one for name, kinds in adapter.modules.items() for kind, one in kinds.items()
    }
    assert len(held) == 2 * len(adapter.modules)
    save_file(held, tmp_path / "theirs.safetensors")
    assert_same_changes(changes(model, read(tmp_path / "theirs.safetensors", model)), changes(model, adapter))


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_diffusers_draws_our_files_as_we_do(layout: str, tiny_xl: Path, tmp_path: Path) -> None:
    model: Any = load(str(tiny_xl))
    adapter = random_lora(model, everything(model), rank=4, alpha=1.0)
    if layout == "kohya":
        write_kohya(tmp_path / "a.safetensors", adapter, {}, names=adapter_keys.kohya_names(model))
    else:
        write_diffusers(tmp_path / "a.safetensors", adapter, {})
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_xl, add_watermarker=False, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    how = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np"}
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    wanted = pipeline(PROMPT, latents=latents, **how).images[0]

    def drawn() -> np.ndarray:
        return sample(model, [PROMPT], [0], SamplingSettings(steps=2, guidance=4.0), latents=latents)[0] / 255

    bare = drawn()
    adapters.apply(model, read(tmp_path / "a.safetensors", model))
    assert np.abs(drawn() - wanted).max() <= 1 / 255
    assert np.abs(bare - wanted).mean() > 4 / 255


def test_one_of_another_family_is_refused(model: Any, tiny_sd1: Path, tmp_path: Path) -> None:
    first: Any = load(str(tiny_sd1))
    write_kohya(tmp_path / "sd1.safetensors", random_lora(first, [name for name, _ in layers(first)]), {})
    with pytest.raises(ModelError, match=r"an adapter for a model whose text is 32 wide, not for .*tiny-xl"):
        read(tmp_path / "sd1.safetensors", model)
    xl = random_lora(model, everything(model))
    write_kohya(tmp_path / "xl.safetensors", xl, {}, names=adapter_keys.kohya_names(model))
    with pytest.raises(ModelError, match=r"an adapter for Stable Diffusion XL, not for .*tiny-sd1"):
        read(tmp_path / "xl.safetensors", first)
    held = load_file(tmp_path / "xl.safetensors")
    save_file(held | {"lora_te2_nothing.lora_up.weight": torch.ones(1, 1)}, tmp_path / "more.safetensors")
    with pytest.raises(ModelError, match=rf"1 of its {len(held) + 1} tensors have no place"):
        read(tmp_path / "more.safetensors", model)


def test_a_run_writes_what_loads_as_it_was(adapting: Any, tiny_xl: Path, tmp_path: Path) -> None:
    """With a word that tokenizers split, which is added to both."""
    token = "femtobot"
    module = adapting.training(tiny_xl, "train.parts=lora,token")
    adapted = [name for name, _ in module.named_parameters() if "lora_A" in name]
    assert len([name for name in adapted if name.startswith("text_encoder.")]) == 2 * 4
    frozen = [name for name, one in module.named_parameters() if "lora_" in name and not one.requires_grad]
    assert frozen and all(name.startswith("text_encoder.encoder.layers.1.") for name in frozen)  # never read
    TokenEmbedding.remove(module.model)
    TokenEmbedding.install(module.model, token, "robot")
    adapting.learn(module)
    settings = module.settings.model_copy(update={"base": str(tiny_xl)})
    learned = Learned.take(module.model, settings, [token], torch.float32)
    subject = {"token": token, "class_noun": "robot", "base_hash": module.model.hash}
    trained = learned.put_into(module.model)
    trained.subject = {**subject, "adapter": adapted_folder.describe(settings, "rex", learned)}
    (tmp_path / "rex").mkdir()
    (tmp_path / "rex" / "run.json").write_text(json.dumps({"base": str(tiny_xl), "settings": {}}))
    adapted_folder.save(
        tmp_path / "rex" / "model", learned, trained, About("rex"), "", torch.float32, tmp_path / "none.png"
    )
    text = f"a {token} robot"
    wanted, base = adapting.out(trained, text), load(str(tiny_xl))
    assert torch.equal(adapting.out(load(str(tmp_path / "rex")), text), wanted)
    assert not torch.equal(adapting.out(base, text), wanted)
    adapter_reading.add(base, lora_reference.find(str(tmp_path / "rex")))
    assert torch.equal(adapting.out(base, text), wanted)
    keys = set(load_file(tmp_path / "rex" / "model" / "rex.safetensors"))
    assert {key.split("_")[1] for key in keys} == {"unet", "te1", "te2"}
    assert not [key for key in keys if "down_blocks" in key]
    assert (tmp_path / "rex" / "model" / DIFFUSERS_NAME).is_file()

    word = tmp_path / "rex" / "model" / "embeddings" / f"{token}.safetensors"
    rows = load_file(word)
    assert {name: tuple(row.shape) for name, row in rows.items()} == {"clip_l": (1, 32), "clip_g": (1, 48)}
    theirs = load(str(tiny_xl)).pipeline()
    for name, tokenizer, encoder in (
        ("clip_l", theirs.tokenizer, theirs.text_encoder),
        ("clip_g", theirs.tokenizer_2, theirs.text_encoder_2),
    ):
        theirs.load_textual_inversion(rows[name], token="<rex>", tokenizer=tokenizer, text_encoder=encoder)
        number = tokenizer.convert_tokens_to_ids("<rex>")
        assert torch.equal(encoder.get_input_embeddings().weight[number], rows[name][0])
    with pytest.raises(ModelError, match=f"{token}: has 1 vectors, .* has 2 text encoders"):
        save_file({token: torch.ones(1, 32)}, word)
        load(str(tmp_path / "rex"))
