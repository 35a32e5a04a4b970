"""Stable Diffusion 3: what it draws, how it is asked, how it lies on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline

from femtobooth.core.errors import InputError, ModelError, SettingsError
from femtobooth.generator.captions import fitted
from femtobooth.generator.families.stable_diffusion_3 import StableDiffusion3, StableDiffusion3WithoutT5
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.formats.single_file import save_single_file
from femtobooth.generator.load import load
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import of_card

PROMPT = "a glossy dog on the beach"
EULER = SamplingSettings(sampler="euler", steps=3, guidance=4.0)


def theirs_of(folder: Path) -> Any:
    """Load diffusers' own pipeline, which has to be told of what was left out."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name in ("text_encoder_3", "tokenizer_3") if index[name] == [None, None]}
    return StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **absent)


@pytest.fixture(scope="module", params=["with T5", "without T5"])
def folder(request: Any, tiny_sd3: Path, tiny_sd3_without_t5: Path) -> Path:
    return {"with T5": tiny_sd3, "without T5": tiny_sd3_without_t5}[request.param]


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load(str(folder))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    found = theirs_of(folder)
    found.set_progress_bar_config(disable=True)
    return found


def test_its_class_says_whether_t5_is_there(model: Any, folder: Path) -> None:
    whole = not folder.name.endswith("without-t5")
    assert type(model) is (StableDiffusion3 if whole else StableDiffusion3WithoutT5)
    assert model.can_train() == ("transformer", "text_encoder", "text_encoder_2")
    assert len(model.folders()) == (9 if whole else 7)
    assert (model.size, model.step, model.largest) == (64, 16, 12 * 16)


def test_its_conditions_are_those_of_diffusers_to_the_bit(model: Any, pipeline: Any) -> None:
    with torch.no_grad():
        said, nothing = (model.condition(ids) for ids in (model.tokenize([PROMPT]), model.no_prompt()))
        states, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPT, None, None)
    assert states.shape == (1, 77 + 256, 96)
    for ours, theirs in ((said, (states, pooled)), (nothing, (negative, negative_pooled))):
        assert torch.equal(ours.tensors["encoder_hidden_states"], theirs[0])
        assert torch.equal(ours.tensors["pooled_projections"], theirs[1])
    assert states[:, 77:].any() == (model.text_encoder_3 is not None)
    assert model.empty_is_none


def test_t5_reads_what_comes_after_the_end_of_clip_as_in_diffusers(
    model: Any, pipeline: Any, terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    short = " ".join(["a photo of a dog on the beach,"] * 10)  # 80 word pieces of CLIP's, which reads 75
    longer = f"{short} glossy"
    with torch.no_grad():
        said, other = (
            model.condition(model.tokenize([text])).tensors["encoder_hidden_states"] for text in (longer, short)
        )
        wanted, *_ = pipeline.encode_prompt(longer, None, None)
    assert torch.equal(said, wanted)
    assert torch.equal(said[:, :77], other[:, :77])
    whole = model.text_encoder_3 is not None
    assert torch.equal(said, other) != whole
    assert model.reader.limit == (255 if whole else 75)
    template = longer.replace("a dog", "a {token} {class}")
    after = " ".join(["a photo on the beach,"] * 20) + " with a {token} {class} on it"
    (found,) = fitted([(Path("a.jpg"), (template, after))], model.reader, "sks", "dog")
    assert (found == (template, after)) == whole
    assert ("captions are longer than the 75 words" in capsys.readouterr().err) != whole


@pytest.mark.parametrize("size", [(64, 64), (48, 96)], ids=["square", "tall"])
def test_it_draws_what_diffusers_own_pipeline_draws(model: Any, pipeline: Any, size: tuple[int, int]) -> None:
    width, height = size
    latents = torch.randn((1, 16, height // 8, width // 8), generator=torch.Generator().manual_seed(5))
    drawn = pipeline(
        PROMPT, negative_prompt="a flat cat", width=width, height=height, num_inference_steps=3, guidance_scale=4.0,
        latents=latents, output_type="np",
    ).images  # fmt: skip
    ours = sample(model, [PROMPT], [0], EULER.model_copy(update={"negative": "a flat cat"}), size, latents=latents)
    assert drawn.std() > 0.01
    assert np.abs(ours / 255 - drawn).max() <= 1 / 255


def test_it_starts_from_a_picture_as_diffusers_does(tiny_sd3_without_t5: Path) -> None:
    model: Any = load(str(tiny_sd3_without_t5))
    process = model.process
    solver, timesteps = process.solver(EULER.model_copy(update={"steps": 8}), 0.5)
    theirs = StableDiffusion3Img2ImgPipeline(**model.pipeline().components)
    theirs.scheduler.set_timesteps(8)
    wanted, _ = theirs.get_timesteps(8, 0.5, "cpu")
    assert torch.equal(timesteps, wanted)
    clean, noise = torch.randn(2, 1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = theirs.scheduler.scale_noise(clean, wanted[:1], noise)
    torch.testing.assert_close(solver.add_noise(clean, noise, timesteps[:1]), expected)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m"])
def test_samplers_of_noise_schedules_are_refused(sampler: Any, model: Any) -> None:
    with pytest.raises(SettingsError, match=f"`sampling.sampler={sampler}`: cannot sample this base") as caught:
        sample(model, [PROMPT], [0], SamplingSettings(sampler=sampler, steps=2))
    assert caught.value.way_out == "euler can"


def test_sizes_that_it_knows_no_positions_for_are_refused(model: Any) -> None:
    with pytest.raises(InputError, match="not multiples of 16"):
        sample(model, [PROMPT], [0], EULER, (72, 64))
    with pytest.raises(InputError, match="no positions beyond 192 pixels"):
        sample(model, [PROMPT], [0], EULER, (208, 64))


def test_what_is_saved_loads_anywhere(model: Any, tmp_path: Path) -> None:
    save_folder(model, tmp_path / "copy", card="# copy\n")
    again: Any = load(str(tmp_path / "copy"))
    assert type(again) is type(model)
    for name in type(model).NETWORKS:
        pairs = zip(getattr(model, name).state_dict().items(), getattr(again, name).state_dict().items(), strict=True)
        assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)
    assert torch.equal(again.tokenize([PROMPT]), model.tokenize([PROMPT]))
    with torch.no_grad():
        states = theirs_of(tmp_path / "copy").encode_prompt(PROMPT, None, None)[0]
        assert torch.equal(states, model.condition(model.tokenize([PROMPT])).tensors["encoder_hidden_states"])


def test_no_more_is_written_than_a_folder(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not written as a single file"):
        save_single_file(model, tmp_path / "a.safetensors")


def test_its_folders_recommend_how_it_is_drawn(tiny_sd3: Path) -> None:
    usual = {"sampler": "euler", "steps": 28, "guidance": 4.5}
    assert of_card(str(tiny_sd3), "generate") == {"sampling": usual}
    assert load(str(tiny_sd3), weights=False).card["personalize"] == {
        "samples": {"sampling": usual},
        "prior": {"sampling": usual},
        "validation": {"sampler": "euler"},
    }


@pytest.mark.parametrize("held", ["bf16", "fp16"])
def test_its_text_encoders_are_held_as_its_transformer_is(held: Any, tiny_sd3: Path) -> None:
    model = load(str(tiny_sd3), held=held)
    dtypes = {name: str(getattr(model, name).dtype) for name in model.NETWORKS}
    wanted = {"bf16": "torch.bfloat16", "fp16": "torch.float16"}[held]
    assert dtypes.pop("vae") == "torch.float32"
    assert dtypes.pop("text_encoder_3") == "torch.bfloat16"  # fp16 overflows in T5
    assert set(dtypes.values()) == {wanted}


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("transformer/config.json", {"joint_attention_dim": 64}, r"transformer \(64\) and text encoders \(96\)"),
        (
            "transformer/config.json",
            {"pooled_projection_dim": 64},
            r"transformer \(96 and 64\) and CLIPs \(80 and 72\)",
        ),
        ("transformer/config.json", {"in_channels": 4}, r"transformer \(4 channels\) and VAE \(16\)"),
        ("transformer/config.json", {"_class_name": "FluxTransformer2DModel"}, "a FluxTransformer2DModel, not a SD3"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "DDIMScheduler is no rectified flow"),
        ("scheduler/scheduler_config.json", {"invert_sigmas": True}, "a flow with invert_sigmas"),
        ("scheduler/scheduler_config.json", {"shift": 0}, "shifted by 0"),
        (
            "scheduler/scheduler_config.json",
            {"use_dynamic_shifting": True, "max_image_seq_len": 256},
            "a dynamic shift of 0.5 at 256 and 1.15 at 256 patches",
        ),
        (
            "model_index.json",
            {"_class_name": "StableDiffusion3InpaintPipeline"},
            "a Stable Diffusion 3 of another kind",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    file: str, changes: dict[str, Any], says: str, tiny_sd3: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_sd3, tmp_path / "sd3")
    config = folder / file
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ModelError, match=says):
        load(str(folder), weights=False)


def test_a_folder_that_lost_t5_is_refused_by_its_index(tiny_sd3: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd3, tmp_path / "sd3")
    shutil.rmtree(folder / "text_encoder_3")
    with pytest.raises(ModelError, match="its text_encoder_3/ folder is missing"):
        load(str(folder))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder_3": [None, None]}))
    assert type(load(str(folder), weights=False)) is StableDiffusion3WithoutT5


def test_a_flow_is_no_noise_schedule(tiny_sd1: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_sd1, tmp_path / "sd1")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    with pytest.raises(ModelError, match="is flow matching, which no Stable Diffusion with a UNet does"):
        load(str(folder))
