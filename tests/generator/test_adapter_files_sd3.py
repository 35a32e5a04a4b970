"""Adapters of Stable Diffusion 3: every key at full size, files that diffusers draws as we do, files of strangers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_readers import adapted, assert_same_changes, changes, comfy_left_over, random_lora
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

from femtobooth.core.errors import ModelError
from femtobooth.generator import adapted_folder, adapters
from femtobooth.generator.adapted_folder import Learned
from femtobooth.generator.adapters import Adapter, layers
from femtobooth.generator.families.stable_diffusion_3 import StableDiffusion3
from femtobooth.generator.formats import adapter_header, adapter_keys, transformer_keys
from femtobooth.generator.formats.adapter_header import About
from femtobooth.generator.formats.adapter_reading import read
from femtobooth.generator.formats.adapter_writing import DIFFUSERS_NAME, write_diffusers, write_kohya
from femtobooth.generator.load import load
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings

PROMPT = "a glossy dog on the beach"


@pytest.fixture(scope="module")
def model(tiny_sd3_without_t5: Path) -> Any:
    return load(str(tiny_sd3_without_t5))


def test_the_published_transformer_has_these_layers_and_all_have_names() -> None:
    """Stable Diffusion 3.5 medium: 24 blocks, the first 13 of which attend twice."""
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
        )  # fmt: skip
    named = [name for name, one in transformer.named_modules() if isinstance(one, (torch.nn.Linear, torch.nn.Conv2d))]
    assert (len(named), len(transformer.state_dict())) == (393, 909)
    found = {
        targets: len([name for name in named if re.fullmatch(layers_of, name)])
        for targets, layers_of in StableDiffusion3.ADAPTED["transformer"].items()
    }
    assert found == {"attention": 243, "attention+ff": 337, "all": 361}
    usual = ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v")  # diffusers'
    theirs = {name for name in named if name.endswith(tuple(f".attn.{one}" for one in usual))}
    attention = {name for name in named if re.fullmatch(StableDiffusion3.ADAPTED["transformer"]["attention"], name)}
    assert attention - theirs == {f"transformer_blocks.{b}.attn2.{one}" for b in range(13) for one in usual[4:]}
    assert theirs <= attention
    covered = {one for _, ours in transformer_keys.names(transformer) for one in ours}
    assert set(named) - covered == {"norm_out.linear", "transformer_blocks.23.norm1_context.linear"}


def fused_file(model: StableDiffusion3, start: str, path: Path) -> dict[str, torch.Tensor]:
    """Write a LoRA of the original code's layers, as kohya's trainer makes it; returns what diffusers' converter makes
    of its changes.
    """
    transformer, random = model.transformer, torch.Generator().manual_seed(4)
    known = {name: layer.weight for name, layer in transformer.named_modules() if hasattr(layer, "weight")}
    held, whole = {}, {}
    for theirs, ours in transformer_keys.names(transformer):
        rows, inputs = sum(len(known[one]) for one in ours), known[ours[0]].shape[1:]
        down, up = torch.randn(2, *inputs, generator=random), torch.randn(rows, 2, generator=random)
        whole[f"{theirs}.weight"] = 0.5 * (up @ down.flatten(1)).reshape(rows, *inputs)
        name = start + (theirs if "." in start else theirs.replace(".", "_"))
        held |= {f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(1.0)}
        held[f"{name}.lora_up.weight"] = up if len(inputs) == 1 else up[..., None, None]
    save_file(held, path)
    original = {name: torch.zeros_like(one) for name, one in original_code(transformer).items()}
    assert set(whole) <= set(original)
    return convert_sd3_transformer_checkpoint_to_diffusers(original | whole)


def original_code(transformer: Any) -> dict[str, torch.Tensor]:
    """Whatever the original code would hold: diffusers' converter wants all of it."""
    own = transformer.state_dict()
    norms = {"norm_q": "x_block.attn.ln_q", "norm_k": "x_block.attn.ln_k"}
    norms |= {"norm_added_q": "context_block.attn.ln_q", "norm_added_k": "context_block.attn.ln_k"}
    found = {"pos_embed": own["pos_embed.pos_embed"]}
    for theirs, ours in [
        *transformer_keys.names(transformer),
        ("final_layer.adaLN_modulation.1", ("norm_out.linear",)),
        ("joint_blocks.2.context_block.adaLN_modulation.1", ("transformer_blocks.2.norm1_context.linear",)),
    ]:
        for end in ("weight", "bias"):
            found[f"{theirs}.{end}"] = torch.cat([own[f"{one}.{end}"] for one in ours])
    for block in range(3):
        found |= {
            f"joint_blocks.{block}.{theirs}.weight": own[f"transformer_blocks.{block}.attn.{ours}.weight"]
            for ours, theirs in norms.items()
        }
        for one in ("q", "k") if block < 2 else ():
            key = f"joint_blocks.{block}.x_block.attn2.ln_{one}.weight"
            found[key] = own[f"transformer_blocks.{block}.attn2.norm_{one}.weight"]
    return found


@pytest.mark.parametrize("start", ["lora_unet_", "diffusion_model."], ids=["kohya", "ComfyUI"])
def test_layers_that_are_three_of_ours_are_cut_as_diffusers_cuts_weights(
    start: str, model: Any, tmp_path: Path
) -> None:
    wanted = fused_file(model, start, tmp_path / "theirs.safetensors")
    found = changes(model, read(tmp_path / "theirs.safetensors", model))
    assert len(found) == 2 * 14 + 10 + 2 * 4 + 7  # blocks, the last, second attentions, outside
    for name, change in found.items():
        torch.testing.assert_close(change, wanted[f"{name.removeprefix('transformer.')}.weight"])
    assert {name for name, one in wanted.items() if one.any()} == {f"{name[12:]}.weight" for name in found}


def test_what_cannot_be_cut_is_refused(model: Any, tmp_path: Path) -> None:
    key = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    save_file({f"{key}.lokr_w1": torch.ones(2, 2), f"{key}.lokr_w2": torch.ones(48, 16)}, tmp_path / "lokr.safetensors")
    with pytest.raises(ModelError, match=f"{key}.lokr_w1 is of 3 layers together") as caught:
        read(tmp_path / "lokr.safetensors", model)
    assert caught.value.way_out == "give a plain LoRA"


LAYOUTS: dict[str, Callable[[str, str], str]] = {  # by maker, what a tensor is called: our layer, kind
    "diffusers": lambda name, end: f"{name}.lora_{'A' if end == 'down' else 'B'}.weight",
    "SimpleTuner": lambda name, end: (
        f"{name.replace('transformer.', 'base_model.model.', 1) if name.startswith('transformer.') else name}"
        f".lora_{'A' if end == 'down' else 'B'}.weight"
    ),
    "OneTrainer": lambda name, end: f"{adapter_keys.kohya(name, StableDiffusion3)}.lora_{end}.weight",
}


@pytest.mark.parametrize("maker", LAYOUTS)
def test_strangers_layouts_are_read_to_the_last_tensor(maker: str, model: Any, tmp_path: Path) -> None:
    adapter = random_lora(model, adapted(model), alpha=None)
    held = {
        LAYOUTS[maker](name, kind[5:]): one for name, kinds in adapter.modules.items() for kind, one in kinds.items()
    }
    assert len(held) == 2 * len(adapter.modules)
    save_file(held, tmp_path / "theirs.safetensors")
    assert_same_changes(changes(model, read(tmp_path / "theirs.safetensors", model)), changes(model, adapter))


def test_what_is_written_has_names_that_comfyui_knows(model: Any, tmp_path: Path) -> None:
    """Its map: `lora_transformer_` and `transformer.` before diffusers' own names, `lora_te1_` and `lora_te2_`."""
    adapter = random_lora(model, adapted(model))
    metadata = adapter_header.header(adapter, model, About("rex"))
    assert metadata["modelspec.architecture"] == "stable-diffusion-3/lora"
    assert "modelspec.prediction_type" not in metadata
    assert not {"ss_v2", "ss_base_model_version"} & set(metadata)
    write_kohya(tmp_path / "kohya.safetensors", adapter, metadata, names=adapter_keys.kohya_names(model))
    write_diffusers(tmp_path / "diffusers.safetensors", adapter, {})
    known: dict[str, str] = {}
    for name, _ in layers(model):
        network, _, path = name.partition(".")
        plain = path.replace(".", "_")
        if network == "transformer":
            known |= dict.fromkeys((name, f"lora_transformer_{plain}"), "")
        else:
            number = {"text_encoder": 1, "text_encoder_2": 2}[network]
            known |= dict.fromkeys((name, f"lora_te{number}_{plain}"), "")
    for file in ("kohya", "diffusers"):
        keys = set(load_file(tmp_path / f"{file}.safetensors"))
        assert len(keys) == len(adapter.modules) * (3 if file == "kohya" else 2)
        assert not comfy_left_over(keys, known)
        assert_same_changes(changes(model, read(tmp_path / f"{file}.safetensors", model)), changes(model, adapter))


def test_diffusers_draws_our_files_as_we_do(tiny_sd3: Path, tmp_path: Path) -> None:
    model: Any = load(str(tiny_sd3))
    adapter = random_lora(model, adapted(model), rank=4, alpha=1.0)
    write_diffusers(tmp_path / DIFFUSERS_NAME, adapter, {})
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny_sd3, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(tmp_path)
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(5))
    how = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np"}
    wanted = pipeline(PROMPT, latents=latents, **how).images[0]

    def drawn() -> np.ndarray:
        how = SamplingSettings(sampler="euler", steps=2, guidance=4.0)
        return sample(model, [PROMPT], [0], how, latents=latents)[0] / 255

    bare = drawn()
    adapters.apply(model, read(tmp_path / DIFFUSERS_NAME, model))
    assert np.abs(drawn() - wanted).max() <= 1 / 255
    assert np.abs(bare - wanted).mean() > 4 / 255


def test_one_of_another_family_is_refused(model: Any, tiny_xl: Path, tmp_path: Path) -> None:
    xl = load(str(tiny_xl))
    ours = random_lora(model, adapted(model))
    write_kohya(tmp_path / "sd3.safetensors", ours, {}, names=adapter_keys.kohya_names(model))
    with pytest.raises(ModelError, match="an adapter for Stable Diffusion 3 or a transformer like it, not for"):
        read(tmp_path / "sd3.safetensors", xl)
    theirs = random_lora(xl, [name for name, _ in layers(xl) if name.startswith("unet.")][:5])
    write_kohya(tmp_path / "xl.safetensors", theirs, {}, names=adapter_keys.kohya_names(xl))
    with pytest.raises(ModelError, match="an adapter for Stable Diffusion XL, not for"):
        read(tmp_path / "xl.safetensors", model)


def test_a_run_writes_what_loads_as_it_was(tiny_sd3: Path, tmp_path: Path) -> None:
    model: Any = load(str(tiny_sd3))
    adapter = Adapter(random_lora(model, adapted(model)).modules)
    words = {"femtobot": (torch.ones(32), torch.full((48,), 2.0))}
    base_hash = model.hash
    learned = Learned(adapter, words)
    trained = learned.put_into(model)
    described = {"kind": "lora", "rank": 2, "alpha": 1.0, "targets": "all", "base": "sd3", "weights": "rex.safetensors"}
    trained.subject = {"token": "femtobot", "class_noun": "robot", "base_hash": base_hash}
    trained.subject["adapter"] = described | {"embedding": "embeddings/femtobot.safetensors"}
    folder = tmp_path / "rex" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "rex" / "run.json").write_text(json.dumps({"base": str(tiny_sd3), "settings": {}}))
    adapted_folder.save(folder, learned, trained, About("rex"), "", torch.float32, tmp_path / "none.png")
    again: Any = load(str(tmp_path / "rex"))
    for name in ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3"):
        pairs = zip(getattr(again, name).parameters(), getattr(trained, name).parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    rows = load_file(folder / "embeddings" / "femtobot.safetensors")
    assert {name: tuple(row.shape) for name, row in rows.items()} == {"clip_l": (1, 32), "clip_g": (1, 48)}
