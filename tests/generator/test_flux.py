"""FLUX.1: what it draws with guidance that it is told, how it trains, which adapters it reads and writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_readers import adapted, assert_same_changes, changes, comfy_left_over, random_lora
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors.torch import load_file, save_file

from femtobooth.core.errors import ModelError, SettingsError
from femtobooth.generator import activations, adapters, cards, locate, sampling, tokens
from femtobooth.generator.adapters import layers
from femtobooth.generator.families.flux import Flux
from femtobooth.generator.formats import adapter_header, adapter_keys, transformer_keys
from femtobooth.generator.formats.adapter_header import About
from femtobooth.generator.formats.adapter_reading import read
from femtobooth.generator.formats.adapter_writing import DIFFUSERS_NAME, write_diffusers, write_kohya
from femtobooth.generator.formats.folder import save_folder
from femtobooth.generator.latents import encode
from femtobooth.generator.load import load
from femtobooth.generator.sampling import sample
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.generator.settings import RECOMMENDABLE
from femtobooth.workflows.personalizing.planning import Planner

from .conftest import Offline, settings

PROMPT = "a photo of a robot on the beach"
EULER = SamplingSettings(sampler="euler", steps=3, guidance=3.5)


@pytest.fixture(scope="module")
def model(tiny_flux: Path) -> Any:
    return load(str(tiny_flux))


def pipeline_of(folder: Path) -> Any:
    found = FluxPipeline.from_pretrained(folder, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def pipeline(tiny_flux: Path) -> Any:
    return pipeline_of(tiny_flux)


def latents(width: int = 64, height: int = 64) -> torch.Tensor:
    return torch.randn(1, 16, height // 8, width // 8, generator=torch.Generator().manual_seed(5))


def theirs(pipeline: Any, width: int = 64, height: int = 64, **how: Any) -> np.ndarray:
    """Draw with diffusers, which wants latents as its transformer reads them."""
    packed = pipeline._pack_latents(latents(width, height), 1, 16, height // 8, width // 8)
    how = {"width": width, "height": height, "num_inference_steps": 3, "latents": packed, "output_type": "np", **how}
    drawn: np.ndarray = pipeline(PROMPT, **how).images
    return drawn


def off(ours: np.ndarray, drawn: np.ndarray) -> float:
    return float(np.abs(ours / 255 - drawn).max())


def test_its_conditions_are_those_of_diffusers_to_the_bit(model: Flux, pipeline: Any) -> None:
    ids = model.tokenize([PROMPT, ""])
    assert ids.shape == (2, 77 + 512)
    with torch.no_grad():
        said = model.condition(ids).tensors
        states, pooled, _ = pipeline.encode_prompt([PROMPT, ""])
    assert torch.equal(said["encoder_hidden_states"], states)
    assert torch.equal(said["pooled_projections"], pooled)
    assert model.tokenizer_2.convert_ids_to_tokens(int(ids[0, 77 + model.last_place(PROMPT)])) == "▁beach"
    assert (model.size, model.step, model.latent_channels, model.reader.limit) == (64, 16, 16, 511)


@pytest.mark.parametrize("size", [(64, 64), (48, 96)], ids=["square", "tall"])
def test_it_draws_what_diffusers_own_pipeline_draws(size: tuple[int, int], model: Flux, pipeline: Any) -> None:
    drawn = {scale: theirs(pipeline, *size, guidance_scale=scale) for scale in (3.5, 0.0)}
    for scale, wanted in drawn.items():
        how = EULER.model_copy(update={"guidance": scale})
        assert off(sample(model, [PROMPT], [0], how, size, latents=latents(*size)), wanted) <= 1 / 255
    assert np.abs(drawn[3.5] - drawn[0.0]).mean() > 4 / 255


def test_guidance_that_is_told_takes_one_prediction_a_step(model: Flux, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []
    plain = model.transformer.forward

    def forward(*given: Any, **told: Any) -> Any:
        seen.extend((len(told["hidden_states"]), float(one)) for one in told["guidance"])
        return plain(*given, **told)

    monkeypatch.setattr(model.transformer, "forward", forward)
    sample(model, [PROMPT], [0], EULER)
    assert seen == [(1, 3.5)] * 3
    rows = Planner(model, 64, Path())._sampled
    assert rows(settings(), 1, guidance=3.5) == rows(settings(), 1, guidance=1.0)


@pytest.mark.parametrize(("name", "value"), [("negative", "a red cat"), ("guidance_rescale", 0.7)])
def test_what_a_second_prediction_brings_is_refused(name: str, value: object, model: Flux) -> None:
    asked = EULER.model_copy(update={name: value})
    with pytest.raises(SettingsError, match=f"`samples.sampling.{name}={value}`: this base is told its guid") as caught:
        sampling.check(model, asked, "samples.sampling")
    assert (str(caught.value).count("\n"), caught.value.way_out) == (1, "leave it out")
    with pytest.raises(SettingsError, match=f"`sampling.{name}"):
        sample(model, [PROMPT], [0], asked)
    sampling.check(model, EULER.model_copy(update={"negative": ""}))  # which is none


def test_without_guidance_among_its_inputs_it_is_guided_as_others_are(tiny_flux_schnell: Path) -> None:
    schnell, pipeline = load(str(tiny_flux_schnell)), pipeline_of(tiny_flux_schnell)
    plain, guided = theirs(pipeline), theirs(pipeline, true_cfg_scale=3.5, negative_prompt="a dog")
    for how, wanted in (({"guidance": 1.0}, plain), ({"negative": "a dog"}, guided)):
        ours = sample(schnell, [PROMPT], [0], EULER.model_copy(update=how), latents=latents())
        assert off(ours, wanted) <= 1 / 255
    assert np.abs(plain - guided).mean() > 4 / 255


def test_each_kind_recommends_how_it_is_drawn(tiny_flux: Path, tiny_flux_schnell: Path) -> None:
    for folder, steps, guidance in ((tiny_flux, 28, 3.5), (tiny_flux_schnell, 4, 1.0)):
        wanted = {"sampling": {"sampler": "euler", "steps": steps, "guidance": guidance}}
        assert locate.recommended(str(folder), "generate", RECOMMENDABLE) == wanted
        said = load(str(folder), weights=False).card["personalize"]
        assert (said["samples"], said["prior"], said["train"]) == (wanted, wanted, {"parts": ["lora"]})
        assert said["lora"] == {"text_encoder": False}  # so that T5 can leave, whose states are kept
    assert cards.kind_of(tiny_flux, "FluxPipeline") == "FluxPipeline"


def training(model: Any, *sets: str) -> Offline:
    module = Offline(model, settings("prior.weight=0", *sets), "sks", lambda _: None)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    module.instance, module.prior = encode(model, pictures, [["a sks robot"], ["a photo of a sks robot"]]), None
    return module


@pytest.mark.parametrize("base", ["tiny_flux", "tiny_flux_schnell"])
def test_the_prediction_is_that_of_the_pipelines_transformer_to_the_bit(
    base: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(base)
    model: Any = load(str(folder))
    pipeline, module = pipeline_of(folder), training(model, "train.parts=[lora]", "training.batch_size=2")
    batch = module.instance.micro_batch(model, "instance", 0, 3, 0, 1, 2)
    texts = [text for ids in batch.tokens for text in ("a sks robot", "a photo of a sks robot") if torch.equal(model.tokenize([text])[0], ids)]  # fmt: skip
    t = (batch.timesteps / 1000).view(-1, 1, 1, 1)
    noisy = t * batch.noise + (1 - t) * batch.latents
    with torch.no_grad():
        states, pooled, text_ids = pipeline.encode_prompt(texts)
        packed = pipeline._pack_latents(noisy, 2, 16, 8, 8)
        said = pipeline.transformer(
            hidden_states=packed,
            timestep=batch.timesteps / 1000,
            guidance=torch.ones(2) if base == "tiny_flux" else None,
            pooled_projections=pooled,
            encoder_hidden_states=states,
            txt_ids=text_ids,
            img_ids=pipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32),
        ).sample
        wanted = pipeline._unpack_latents(said, 64, 64, 8)
        assert torch.equal(model.denoise(noisy, batch.timesteps, model.condition_once(batch.tokens)), wanted)
        loss = module.losses(batch)
    assert torch.equal(loss, (batch.noise - batch.latents - wanted).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("parts", ["[unet,text_encoder]", "[token]", "[lora]"])
def test_all_that_trains_gets_a_gradient_and_t5_never_trains(parts: str, tiny_flux: Path) -> None:
    module = training(load(str(tiny_flux)), f"train.parts={parts}", "training.gradient_checkpointing=true")
    module.training_step(0).backward()
    trained = {name: one for name, one in module.named_parameters() if one.requires_grad}
    assert [name for name, one in trained.items() if one.grad is None] == []
    networks = {name.partition(".")[0] for name in trained}
    assert networks == ({"text_encoder"} if parts == "[token]" else {"transformer", "text_encoder"})


def test_the_end_of_a_prompt_is_read_where_it_is_beside_a_new_word(tiny_flux: Path) -> None:
    """As published configs have it, 2 is the token of the end, and the largest number is looked for."""
    model: Any = load(str(tiny_flux))
    model.text_encoder.eos_token_id = model.text_encoder.config.eos_token_id = 2
    ids = model.tokenize([PROMPT])
    with torch.no_grad():
        before = model.condition(ids).tensors["pooled_projections"]
    tokens.TokenEmbedding.teach(model, "femtobotx", [torch.full((32,), 9.0)])
    with torch.no_grad():
        assert torch.equal(model.condition(ids).tensors["pooled_projections"], before)
        with_word = model.tokenize([f"femtobotx {PROMPT}"])[:, :77]
        said = model.text_encoder(with_word)
    end = with_word[0].tolist().index(model.tokenizer.eos_token_id)
    assert torch.equal(said.pooler_output[0], said.last_hidden_state[0, end])


def test_words_are_chosen_and_told_apart(model: Flux) -> None:
    apart = tokens.distances(model, ["sks", "robot"], ["sks", "robot"])
    assert apart[0, 0] == pytest.approx(0, abs=1e-5)
    assert apart[0, 1] > 0.01
    assert tokens.check(model, "sks", "dog").response > 0


def test_what_is_saved_loads_anywhere(model: Flux, tmp_path: Path) -> None:
    save_folder(model, tmp_path / "copy", card="# copy\n")
    again: Any = load(str(tmp_path / "copy"))
    for name in model.NETWORKS:
        pairs = zip(getattr(model, name).state_dict().items(), getattr(again, name).state_dict().items(), strict=True)
        assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)
    assert torch.equal(again.tokenize([PROMPT]), model.tokenize([PROMPT]))
    half: Any = load(str(tmp_path / "copy"), held="fp16")
    assert (half.text_encoder_2.dtype, half.text_encoder.dtype) == (torch.bfloat16, torch.float16)
    assert {one.dtype for one in half.condition(half.tokenize(["a dog"])).tensors.values()} == {torch.float16}


def test_a_plan_goes_through_it_without_numbers(tiny_flux: Path) -> None:
    bare = load(str(tiny_flux), weights=False)
    assert activations.sampling_pass(bare, 128) > activations.sampling_pass(bare, 64) > 0


def test_parts_that_do_not_fit_are_refused(tiny_flux: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_flux, tmp_path / "flux")
    config = folder / "transformer" / "config.json"
    plain = json.loads(config.read_text())
    wrong: dict[str, dict[str, Any]] = {
        "a FLUX.1 that also reads a picture": {"in_channels": 96, "out_channels": 64},
        r"transformer \(8 channels\) and VAE": {"in_channels": 32},
        r"transformer \(96\) and text encoders \(24\)": {"joint_attention_dim": 96},
        r"transformer \(40\) and CLIP \(32\)": {"pooled_projection_dim": 40},
        "another size of patches": {"patch_size": 2},
    }
    for says, changed in wrong.items():
        config.write_text(json.dumps(plain | changed))
        with pytest.raises(ModelError, match=says):
            load(str(folder), weights=False)


# Adapters


def test_the_published_transformer_has_these_layers_and_all_have_names() -> None:
    """19 blocks of two streams and 38 of one."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
    named = {name for name, one in transformer.named_modules() if isinstance(one, torch.nn.Linear)}
    assert (len(named), sum(one.numel() for one in transformer.parameters())) == (504, 11_901_408_320)
    chosen = Flux.ADAPTED["transformer"]
    found = {targets: {name for name in named if re.fullmatch(chosen[targets], name)} for targets in chosen}
    counts = {"attention": 19 * 8 + 38 * 3, "attention+ff": 19 * 12 + 38 * 5, "all": 19 * 14 + 38 * 6}
    assert {targets: len(names) for targets, names in found.items()} == counts
    assert {one for _, ours in transformer_keys.names(transformer) for one in ours} == found["all"]


def test_adapters_of_all_layouts_are_read_and_diffusers_draws_ours(tiny_flux: Path, pipeline: Any, tmp_path: Path) -> None:  # fmt: skip
    model: Any = load(str(tiny_flux))
    adapter = random_lora(model, adapted(model), rank=4, alpha=1.0)
    metadata = adapter_header.header(adapter, model, About("rex"))
    assert metadata["modelspec.architecture"] == "flux-1-dev/lora"
    write_kohya(tmp_path / "kohya.safetensors", adapter, metadata, names=adapter_keys.kohya_names(model))
    write_diffusers(tmp_path / DIFFUSERS_NAME, adapter, {})
    known: dict[str, str] = {}  # ComfyUI's map, as of Stable Diffusion 3
    for name, _ in layers(model):
        network, _, path = name.partition(".")
        start = "lora_transformer_" if network == "transformer" else "lora_te1_text_model_"
        full = name if network == "transformer" else f"text_encoder.text_model.{path}"
        known |= dict.fromkeys((full, start + path.replace(".", "_")), "")
    for file in ("kohya.safetensors", DIFFUSERS_NAME):
        assert not comfy_left_over(load_file(tmp_path / file), known)
        assert_same_changes(changes(model, read(tmp_path / file, model)), changes(model, adapter))
    pipeline.load_lora_weights(tmp_path, weight_name=DIFFUSERS_NAME)
    drawn = theirs(pipeline)
    bare = sample(model, [PROMPT], [0], EULER, latents=latents()) / 255
    adapters.apply(model, read(tmp_path / DIFFUSERS_NAME, model))
    assert off(sample(model, [PROMPT], [0], EULER, latents=latents()), drawn) <= 1 / 255
    assert np.abs(bare - drawn).mean() > 2 / 255


def test_what_kohyas_trainer_taught_t5_is_counted(model: Flux, tmp_path: Path) -> None:
    key = "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight"
    save_file({key: torch.zeros(2, 2), "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(())}, tmp_path / "x.safetensors")  # fmt: skip
    with pytest.raises(ModelError, match="1 of its 2 tensors have no place"):
        read(tmp_path / "x.safetensors", model)


def test_kohyas_layers_are_cut_as_diffusers_cuts_them(model: Any, tmp_path: Path) -> None:
    """Queries, keys, values and, in blocks of one stream, what widens: which diffusers knows at full size alone."""
    random, held, wide = torch.Generator().manual_seed(4), {}, {}
    known = {name: layer.weight for name, layer in layers(model)}
    for theirs_, ours in transformer_keys.names(model.transformer):
        weights = [known[f"transformer.{one}"] for one in ours]
        rows, inputs = sum(map(len, weights)), weights[0].shape[1]
        down, up = torch.randn(2, inputs, generator=random), torch.randn(rows, 2, generator=random)
        name = f"lora_unet_{theirs_.replace('.', '_')}"
        held |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
        if len(ours) == 4:
            parts = (0.5 * up @ down).split([32, 32, 32, 128])
            wide |= {f"transformer.{one}": part for one, part in zip(ours, parts, strict=True)}
    save_file(held, tmp_path / "kohya.safetensors")
    found = changes(model, read(tmp_path / "kohya.safetensors", model))
    made = _convert_kohya_flux_lora_to_diffusers({name: one for name, one in held.items() if "linear1" not in name})
    wanted = wide | {
        name.removesuffix(".lora_A.weight"): made[name.replace("lora_A", "lora_B")] @ down
        for name, down in made.items()
        if "lora_A" in name
    }
    assert len(wanted) == 2 * 14 + 2 * 6
    assert_same_changes(found, wanted)
    comfy = {
        name.replace("lora_unet_single_blocks_0_linear1", "diffusion_model.single_blocks.0.linear1"): one
        for name, one in held.items()
        if "single_blocks_0_linear1" in name
    }
    save_file(comfy, tmp_path / "comfy.safetensors")
    cut = changes(model, read(tmp_path / "comfy.safetensors", model))
    assert_same_changes(cut, {name: one for name, one in wide.items() if ".0." in name})
