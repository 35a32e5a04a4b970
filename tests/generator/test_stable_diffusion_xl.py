"""Stable Diffusion XL: what it draws, how it is asked, how it lies on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_readers import published_xl
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from femtobooth.core import config
from femtobooth.core.errors import ModelError
from femtobooth.generator.families import family, known
from femtobooth.generator.families.stable_diffusion_xl import StableDiffusionXL
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.load import load
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import GenerateSettings, of_card
from femtobooth.pictures.crops import shapes_of
from femtobooth.workflows import generate

PROMPT = "a glossy dog on the beach"


@pytest.fixture(scope="module")
def model(tiny_xl: Path) -> Any:
    return load(str(tiny_xl))


@pytest.fixture(scope="module")
def pipeline(tiny_xl: Path) -> Any:
    found = StableDiffusionXLPipeline.from_pretrained(tiny_xl, add_watermarker=False, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    found.scheduler = DDIMScheduler.from_config(found.scheduler.config, clip_sample=False)
    return found


def test_its_conditions_are_those_of_diffusers_to_the_bit(model: StableDiffusionXL, pipeline: Any) -> None:
    with torch.no_grad():
        said = model.condition(model.tokenize([PROMPT]))
        nothing = model.condition(model.no_prompt())
        states, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPT)
        empty = pipeline.encode_prompt(PROMPT, negative_prompt="")[1]
        own_empty = model.condition(model.tokenize([""]))
    assert states.shape == (1, 77, 32 + 48)
    assert pooled.shape == (1, 40)
    for ours, theirs in zip((said, nothing), ((states, pooled), (negative, negative_pooled)), strict=True):
        assert torch.equal(ours.tensors["encoder_hidden_states"], theirs[0])
        assert torch.equal(ours.tensors["text_embeds"], theirs[1])
    assert not nothing.tensors["encoder_hidden_states"].any()
    assert torch.equal(own_empty.tensors["encoder_hidden_states"], empty)
    assert empty.any()


def test_no_prompt_among_others_leaves_them_alone(model: StableDiffusionXL) -> None:
    mixed = model.condition_once(torch.cat([model.tokenize([PROMPT]), model.no_prompt(), model.tokenize([PROMPT])]))
    kept = [bool(row.any()) for row in mixed.tensors["text_embeds"]]
    assert kept == [True, False, True]
    torch.testing.assert_close(mixed.tensors["text_embeds"][0], mixed.tensors["text_embeds"][2], rtol=0, atol=0)


@pytest.mark.parametrize("negative", [None, "", "a flat cat"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)], ids=["square", "tall"])
def test_it_draws_what_diffusers_own_pipeline_draws(
    model: StableDiffusionXL, pipeline: Any, negative: str | None, size: tuple[int, int]
) -> None:
    width, height = size
    latents = torch.randn((1, 4, height // 8, width // 8), generator=torch.Generator().manual_seed(5))
    drawn = pipeline(
        PROMPT, negative_prompt=negative, width=width, height=height, num_inference_steps=3, guidance_scale=4.0,
        latents=latents, output_type="np",
    ).images  # fmt: skip
    how = SamplingSettings(steps=3, guidance=4.0, negative=negative)
    ours = sample(model, [PROMPT], [0], how, size, latents=latents)
    assert drawn.std() > 0.01
    assert np.abs(ours / 255 - drawn).max() <= 1 / 255


def test_large_pictures_are_decoded_in_tiles_as_diffusers_does_and_small_ones_whole(
    model: Any, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(5))
    whole = SamplingSettings(sampler="ddim", steps=1, guidance=1.0)
    how = whole.model_copy(update={"tiles": True})
    size = (24 * 8, 16 * 8)
    plain = sample(model, ["a dog"], [0], whole, size, latents=latents)
    assert np.array_equal(sample(model, ["a dog"], [0], how, size, latents=latents), plain)  # not above 512 pixels
    monkeypatch.setattr(family, "TILE", 64)
    tiled = sample(model, ["a dog"], [0], how, size, latents=latents)
    assert np.array_equal(sample(model, ["a dog"], [0], whole, size, latents=latents), plain)
    monkeypatch.setattr(pipeline.vae, "use_tiling", True)
    assert pipeline.vae.tile_sample_min_size == 64
    drawn = pipeline(
        "a dog", width=size[0], height=size[1], num_inference_steps=1, guidance_scale=1.0, latents=latents,
        output_type="np",
    ).images  # fmt: skip
    assert np.abs(tiled / 255 - drawn).max() <= 1 / 255
    assert np.abs(plain / 255 - drawn).max() > 1 / 255
    assert "tiles" not in whole.model_dump() and how.model_dump()["tiles"] is True


def test_the_empty_negative_prompt_is_not_none(model: StableDiffusionXL, tiny_sd1: Path) -> None:
    def draw(one: Any, negative: str | None) -> np.ndarray:
        return sample(one, [PROMPT], [0], SamplingSettings(steps=2, negative=negative))

    assert not np.array_equal(draw(model, None), draw(model, ""))
    first = load(str(tiny_sd1))
    assert np.array_equal(draw(first, None), draw(first, ""))
    assert (first.empty_is_none, model.empty_is_none) == (True, False)
    keys = [SamplingSettings(negative=negative).keyed(True) for negative in (None, "")]
    assert keys[0] == keys[1] == {**SamplingSettings().model_dump(), "negative": ""}
    assert SamplingSettings().keyed(False)["negative"] is None


def test_which_negative_prompt_it_was_is_said(
    model: StableDiffusionXL, terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(one: Any, negative: str | None) -> str:
        given = {"run": "x", "sampling": {"negative": negative}}
        generate.as_read(["a dog"], config.resolve(GenerateSettings, given), one)
        return capsys.readouterr().err

    assert "negative prompt: the empty one, which this model does not take for none" in told(model, "")
    assert "negative" not in told(model, None)
    assert "negative" not in told(load("bundled", weights=False), "")


def test_its_buckets_are_around_its_own_area() -> None:
    """Of the published base: no shape has more pixels than 1024x1024, and sides fit the UNet's coarsest level."""
    base = published_xl()
    shapes = shapes_of(base.size, base.step, 3.0)
    assert (base.size, base.step) == (1024, 32)
    assert {(1024, 1024), (832, 1248), (1248, 832)} <= {*shapes}
    assert all(width % 32 == height % 32 == 0 for width, height in shapes)
    assert all(1024 * 1024 * 0.9 < width * height <= 1024 * 1024 for width, height in shapes)


def test_whether_no_prompt_is_zeros_stands_in_the_index(tiny_xl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "xl"
    shutil.copytree(tiny_xl, folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    other: Any = load(str(folder))
    assert other.empty_is_none
    assert other.hash != load(str(tiny_xl)).hash
    save_folder(other, tmp_path / "again", card="")
    assert json.loads((tmp_path / "again/model_index.json").read_text())["force_zeros_for_empty_prompt"] is False


def test_what_is_saved_loads_anywhere(model: StableDiffusionXL, tmp_path: Path) -> None:
    save_folder(model, tmp_path / "copy", card="# copy\n")
    again: Any = load(str(tmp_path / "copy"))
    for name in StableDiffusionXL.NETWORKS:
        pairs = zip(getattr(model, name).state_dict().items(), getattr(again, name).state_dict().items(), strict=True)
        assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)
    assert [again.tokenizer.pad_token_id, again.tokenizer_2.pad_token_id] == [
        model.tokenizer.pad_token_id,
        0,
    ]
    theirs, told = StableDiffusionXLPipeline.from_pretrained(tmp_path / "copy").text_encoder_2.from_pretrained(
        tmp_path / "copy", subfolder="text_encoder_2", output_loading_info=True
    )
    assert (set(told["missing_keys"]), set(told["unexpected_keys"])) == (set(), set())
    ids = model.tokenize([PROMPT])[:, 1]
    with torch.no_grad():
        assert torch.equal(theirs(ids).text_embeds, model.text_encoder_2(ids).text_embeds)


def test_its_folders_recommend_how_it_is_drawn_where_their_cards_do_not(tiny_xl: Path, tmp_path: Path) -> None:
    usual = {"sampler": "euler", "steps": 30, "guidance": 5.0}
    model: Any = load(str(tiny_xl), weights=False)
    assert model.card["generate"] == {"sampling": usual} == of_card(str(tiny_xl), "generate")
    assert model.card["personalize"] == {"samples": {"sampling": usual}, "prior": {"sampling": usual}}
    folder = tmp_path / "xl"
    shutil.copytree(tiny_xl, folder)
    (folder / "README.md").write_text("---\nfemtobooth: {generate: {sampling: {guidance: 3}}}\n---\n")
    assert of_card(str(folder), "generate") == {"sampling": usual | {"guidance": 3}}


def test_its_vae_stays_in_32_bits(tiny_xl: Path) -> None:
    moved: Any = load(str(tiny_xl)).to("cpu", torch.bfloat16)
    assert {name: getattr(moved, name).dtype for name in moved.NETWORKS} == {
        "unet": torch.bfloat16,
        "vae": torch.float32,
        "text_encoder": torch.bfloat16,
        "text_encoder_2": torch.bfloat16,
    }


def test_framing_reaches_the_unet_unrounded(model: StableDiffusionXL) -> None:
    """In bfloat16, as pipelines have them, 1023 is 1024."""
    seen = []
    hook = model.unet.add_time_proj.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    condition = model.condition(model.tokenize([PROMPT]))
    model.denoise(torch.zeros(2, 4, 8, 6), torch.tensor(5), condition.expand(2))
    hook.remove()
    assert seen[0].dtype == torch.float32
    assert seen[0].tolist() == [64, 48, 0, 0, 64, 48] * 2


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("StableDiffusionXLImg2ImgPipeline", "a Stable Diffusion XL refiner"),
        ("StableDiffusionXLInpaintPipeline", "a Stable Diffusion XL inpainting model"),
    ],
)
def test_others_of_its_kind_are_refused_by_their_index(kind: str, says: str, tiny_xl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "xl"
    shutil.copytree(tiny_xl, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
    with pytest.raises(ModelError, match=says) as caught:
        load(str(folder))
    assert caught.value.way_out == known.WAY_OUT


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("unet", {"in_channels": 9}, "an inpainting model: its UNet reads 9 channels, its VAE makes 4"),
        ("unet", {"projection_class_embeddings_input_dim": 40 + 5 * 8}, "a Stable Diffusion XL refiner"),
        ("unet", {"projection_class_embeddings_input_dim": 40 + 7 * 8}, r"UNet \(96\) and text_encoder_2 \(40"),
        ("unet", {"addition_embed_type": None}, "without Stable Diffusion XL's conditions"),
        ("unet", {"cross_attention_dim": 48}, r"UNet \(48\) and text encoder \(80\) do not fit"),
        ("unet", {"time_cond_proj_dim": 256}, r"a latent consistency \(LCM\)"),
        ("text_encoder_2", {"max_position_embeddings": 64}, "read 77 and 64 tokens"),
        ("vae", {"latents_mean": [0.0] * 4}, "scales each channel"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    file: str, changes: dict[str, Any], says: str, tiny_xl: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "xl"
    shutil.copytree(tiny_xl, folder)
    config = folder / file / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ModelError, match=says):
        load(str(folder))
