"""`generate --lora`: a stranger's LoRA draws what its maker draws, merged or again, and nothing at strength 0."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapter_readers import comfy_map, everything, kohya_names, random_lora
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from femtobooth.core import config
from femtobooth.core.errors import InputError, ModelError, SettingsError
from femtobooth.generator.adapters import Adapter, delta, layers
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.formats import ldm_keys
from femtobooth.generator.formats.adapter_reading import add
from femtobooth.generator.formats.adapter_writing import write_diffusers, write_kohya
from femtobooth.generator.load import load
from femtobooth.generator.locate import SUBJECT_FILE
from femtobooth.generator.lora_reference import find
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import AgainSettings, GenerateSettings
from femtobooth.workflows import generate, regenerate

FAST: dict[str, Any] = {"steps": 2, "guidance": 4.0}
PROMPT = "a flat cat in the snow"
LEVEL = 1 / 255
STRENGTH = 0.6
MOVED = 3 * LEVEL  # what a LoRA here changes at least


@cache
def loaded(folder: Path) -> StableDiffusion:
    model = load(str(folder))
    assert isinstance(model, StableDiffusion)
    return model


def model_of(folder: Path) -> StableDiffusion:
    """A copy of the model, to be changed."""
    model = loaded(folder)
    return replace(model, unet=deepcopy(model.unet), text_encoder=deepcopy(model.text_encoder), subject={})


@cache
def lora_for(folder: Path) -> Adapter:
    """A LoRA that changes pictures much, of every other layer that LoRAs are made of."""
    return random_lora(loaded(folder), everything(loaded(folder))[::2], rank=4, alpha=2.0)


def latents(model: StableDiffusion) -> Tensor:
    return torch.randn(1, 4, model.cells, model.cells, generator=torch.Generator().manual_seed(5))


def ours(folder: Path, *loras: str) -> np.ndarray:
    """What femtobooth draws, (H, W, 3) in [0, 1]."""
    model = model_of(folder)
    for text in loras:
        add(model, find(text))
    how = SamplingSettings.model_validate(FAST)
    return sample(model, [PROMPT], [0], how, latents=latents(model))[0] / 255


@cache
def bare(folder: Path) -> np.ndarray:
    """What the base draws."""
    return ours(folder)


def pipeline_of(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = loaded(folder).scheduler  # the tiny Stable Diffusion 1 names PNDM
    return pipeline


def theirs(pipeline: StableDiffusionPipeline, folder: Path) -> np.ndarray:
    """What a pipeline of diffusers draws, (H, W, 3) in [0, 1]."""
    how = {"num_inference_steps": FAST["steps"], "guidance_scale": FAST["guidance"], "output_type": "np"}
    return pipeline(PROMPT, negative_prompt="", latents=latents(loaded(folder)), **how).images[0]


def far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


@pytest.fixture(params=["tiny_sd1", "tiny_sd2"])
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


# Ours in other programs


def test_diffusers_draws_our_files_as_we_do(base: Path, tmp_path: Path) -> None:
    pipeline = pipeline_of(base)
    for write in (write_kohya, write_diffusers):
        name = f"{write.__name__}.safetensors"
        write(tmp_path / name, lora_for(base), {"ss_a": "b"})
        pipeline.load_lora_weights(tmp_path, weight_name=name, adapter_name="ours")
        pipeline.set_adapters("ours", STRENGTH)
        wanted = theirs(pipeline, base)
        pipeline.unload_lora_weights()
        assert far(wanted, bare(base)) > MOVED
        assert far(ours(base, f"{tmp_path / name}:{STRENGTH}"), wanted) <= LEVEL


# Strangers' here, by each maker's own rules


def test_a_lora_of_diffusers_own_saving(base: Path, tmp_path: Path) -> None:
    pipeline = pipeline_of(base)
    torch.manual_seed(3)
    parts: dict[str, Any] = {}
    for part, targets in (("unet", ["to_q", "to_k", "to_v", "to_out.0", "conv1"]), ("text_encoder", ["q_proj", "fc1"])):
        network = getattr(pipeline, part)
        network.add_adapter(peft.LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, target_modules=targets))
        held = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(network))
        parts[f"{part}_lora_layers"] = held
        parts[f"{part}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(tmp_path, **parts)
    wanted = theirs(pipeline, base)
    assert far(wanted, bare(base)) > MOVED
    assert far(ours(base, str(tmp_path)), wanted) <= LEVEL


def kohya_forward(layer: nn.Module, held: dict[str, Tensor], multiplier: float) -> None:
    """What kohya's module adds to a layer: its own two or three layers behind each other."""
    down, up = held["lora_down.weight"], held["lora_up.weight"]
    scale = held["alpha"].item() / down.shape[0]

    def add_to(module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if down.ndim == 2:
            hidden = functional.linear(functional.linear(inputs[0], down), up)
        else:
            stride, padding = module.stride, module.padding
            if "lora_mid.weight" in held:
                hidden = functional.conv2d(
                    functional.conv2d(inputs[0], down), held["lora_mid.weight"], None, stride, padding
                )
            else:
                hidden = functional.conv2d(inputs[0], down, None, stride, padding)
            hidden = functional.conv2d(hidden, up)
        return output + hidden * multiplier * scale

    layer.register_forward_hook(add_to)  # type: ignore[arg-type]


@pytest.mark.parametrize("tucker", [False, True], ids=["LoRA", "LoCon with a core"])
def test_a_lora_of_kohyas(tucker: bool, tiny_sd1: Path, tmp_path: Path) -> None:
    model = model_of(tiny_sd1)
    named = kohya_names(model, conv=True)
    random = torch.Generator().manual_seed(9)
    held: dict[str, Tensor] = {}
    for name, layer in named.items():
        out, into, *kernel = layer.weight.shape
        tall = tucker and kernel == [3, 3]
        held[f"{name}.lora_down.weight"] = torch.randn(2, into, *([1, 1] if tall else kernel), generator=random) * 0.2
        held[f"{name}.lora_up.weight"] = torch.randn(out, 2, *[1] * len(kernel), generator=random) * 0.2
        held[f"{name}.alpha"] = torch.tensor(1.0)
        if tall:
            held[f"{name}.lora_mid.weight"] = torch.randn(2, 2, 3, 3, generator=random) * 0.5
    save_file(held, tmp_path / "theirs.safetensors")
    for name, layer in named.items():
        parts = {key.partition(".")[2]: tensor for key, tensor in held.items() if key.partition(".")[0] == name}
        kohya_forward(layer, parts, STRENGTH)
    wanted = sample(model, [PROMPT], [0], SamplingSettings.model_validate(FAST), latents=latents(model))[0] / 255
    assert far(wanted, bare(tiny_sd1)) > MOVED
    assert far(ours(tiny_sd1, f"{tmp_path / 'theirs.safetensors'}:{STRENGTH}"), wanted) <= LEVEL


def test_a_lora_as_comfyui_patches_it(base: Path, tmp_path: Path) -> None:
    """Its generic layout: the original code's names, and its arithmetic on the weight of that name."""
    model = model_of(base)
    clip = "clip_h" if ldm_keys.is_second(model.text_encoder) else "clip_l"
    keys = {
        name: key for name, key in comfy_map(model, clip).items() if name.startswith(("diffusion", "text_encoders"))
    }
    ldm = {place.key.removeprefix("model."): ("unet", name) for name, place in ldm_keys.places(model.unet).items()}
    weights = dict(layers(model))
    random = torch.Generator().manual_seed(9)
    held: dict[str, Tensor] = {}
    for name, key in keys.items():
        text = "text_encoder." + key.partition(".text_model.")[2]
        ours_of_it = (".".join(ldm[key]) if key in ldm else text).removesuffix(".weight")
        if ours_of_it not in weights or "attn" not in ours_of_it:
            continue
        weight = weights[ours_of_it].weight
        out, into = weight.shape
        up, down = torch.randn(out, 3, generator=random) * 0.4, torch.randn(3, into, generator=random) * 0.4
        held |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(1.5)}
        with torch.no_grad():
            weight += (STRENGTH * (1.5 / 3)) * torch.mm(up, down).reshape(weight.shape)
    save_file(held, tmp_path / "theirs.safetensors")
    wanted = sample(model, [PROMPT], [0], SamplingSettings.model_validate(FAST), latents=latents(model))[0] / 255
    assert far(wanted, bare(base)) > MOVED
    assert far(ours(base, f"{tmp_path / 'theirs.safetensors'}:{STRENGTH}"), wanted) <= LEVEL


# On a base


def test_nothing_at_0_and_linear_in_between(tiny_sd1: Path, tmp_path: Path) -> None:
    file = tmp_path / "rex.safetensors"
    write_kohya(file, lora_for(tiny_sd1), {})
    assert np.array_equal(ours(tiny_sd1, f"{file}:0"), bare(tiny_sd1))
    both, before = model_of(tiny_sd1), {name: layer.weight.clone() for name, layer in layers(loaded(tiny_sd1))}
    for text in (f"{file}:0.25", f"{file}:0.5"):
        add(both, find(text))
    for name, layer in layers(both):
        change = delta(lora_for(tiny_sd1).modules[name], layer.weight) if name in lora_for(tiny_sd1).modules else 0
        assert torch.allclose(layer.weight, before[name] + 0.75 * change, atol=1e-6)


def draw(folder: Path, out: Path, *loras: str, **other: Any) -> dict[str, Any]:
    given = {"run": str(folder), "prompts": [PROMPT], "sampling": FAST, "loras": [*loras], "out": str(out), **other}
    return generate.run(config.settle(GenerateSettings, given))


def test_the_record_names_it_and_the_picture_comes_again(tiny_sd1: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "my, rex.safetensors", tmp_path / "other.safetensors"
    write_kohya(one, lora_for(tiny_sd1), {})
    write_diffusers(other, lora_for(tiny_sd1), {})
    manifest = draw(tiny_sd1, tmp_path / "a", f"{one}:0.8", str(other), count=2)
    assert [(lora["name"], lora["strength"]) for lora in manifest["loras"]] == [("my- rex", 0.8), ("other", 1.0)]
    picture = tmp_path / "a" / manifest["images"][1]["file"]
    text = Image.open(picture).text  # type: ignore[attr-defined]
    assert json.loads(text["femtobooth"])["loras"] == manifest["loras"]
    lines = text["parameters"].splitlines()
    assert lines[0] == f"{PROMPT} <lora:my- rex:0.8> <lora:other:1>"
    with_hash = [f"{lora['name']}: {lora['tensors_sha256'][:12]}" for lora in manifest["loras"]]
    assert f'Lora hashes: "{", ".join(with_hash)}"' in lines[-1]

    def again(**how: str) -> dict[str, Any]:
        return regenerate.run(AgainSettings(image=str(picture), **how))

    assert again(out=str(tmp_path / "b"))["identical"]
    plain = draw(tiny_sd1, tmp_path / "plain", count=2)
    bare = np.asarray(Image.open(tmp_path / "plain" / plain["images"][1]["file"]))
    assert far(bare / 255, np.asarray(Image.open(picture)) / 255) > MOVED and "loras" not in plain
    write_kohya(other, lora_for(tiny_sd1), {}, overwrite=True)
    with pytest.raises(InputError, match=r"`loras=.*changed since"):
        again(out=str(tmp_path / "c"))
    other.unlink()
    with pytest.raises(InputError, match=r"`loras=.*gone, but"):
        again(out=str(tmp_path / "c"))


def test_what_cannot_be_used_is_said_before_anything_is_written(tiny_sd1: Path, tiny_sd2: Path, tmp_path: Path) -> None:
    file = tmp_path / "rex.safetensors"
    write_kohya(file, lora_for(tiny_sd2), {})
    for text, kind, said in (
        (str(file), ModelError, "rex.safetensors"),
        (str(tmp_path / "rox.safetensors:0.5"), ModelError, "did you mean .*rex.safetensors"),
        (f"{file}:nan", SettingsError, "nan is no strength"),
    ):
        with pytest.raises(kind, match=said):
            draw(tiny_sd1, tmp_path / "o", text)
    assert not (tmp_path / "o").exists()


def test_a_runs_adapter_brings_its_word_and_its_subject(tiny_sd1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rex" / "model"
    (folder / "embeddings").mkdir(parents=True)
    write_kohya(folder / "rex.safetensors", lora_for(tiny_sd1), {})
    row = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    save_file({"sks": row}, folder / "embeddings" / "sks.safetensors")
    described = {"kind": "lora", "weights": "rex.safetensors", "embedding": "embeddings/sks.safetensors", "base": "x"}
    subject = {"token": "sks", "class_noun": "dog", "adapter": described}
    (folder / SUBJECT_FILE).write_text(json.dumps(subject))
    model = model_of(tiny_sd1)
    identifier = model.tokenizer.convert_tokens_to_ids(model.tokenizer.tokenize("sks"))[0]
    table = model.text_encoder.embeddings.token_embedding.weight
    before = table[identifier].clone()
    found = find(f"{tmp_path / 'rex'}:0.5")
    assert found.name == "rex"
    add(model, replace(found, strength=0.0))
    assert torch.equal(model.text_encoder.embeddings.token_embedding.weight[identifier], before)
    add(model, found)
    assert torch.equal(model.text_encoder.embeddings.token_embedding.weight[identifier], row[0])
    assert model.subject == {"token": "sks", "class_noun": "dog"}
    old = found.record()["sha256"]
    save_file({"sks": row + 1}, folder / "embeddings" / "sks.safetensors")
    assert find(str(tmp_path / "rex")).hash != old  # the word is of it
    manifest = draw(tiny_sd1, tmp_path / "o", str(tmp_path / "rex"), prompts=["a [V] dog"], count=1)
    assert manifest["images"][0]["prompt"] == "a sks dog" and manifest["model"]["subject"]["token"] == "sks"
