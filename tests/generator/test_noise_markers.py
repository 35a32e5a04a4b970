"""What a single file of others says of its noise process, and the names its text encoder can have."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from femtobooth.core.errors import ModelError
from femtobooth.generator import locate
from femtobooth.generator.formats import ldm_keys
from femtobooth.generator.formats.noise_markers import told
from femtobooth.generator.formats.single_file import load_single_file

pytestmark = pytest.mark.usefixtures("terminal")

V, EPS = "v_prediction", "epsilon"


@pytest.mark.parametrize(
    ("keys", "metadata", "sidecar", "second", "prediction", "zero", "pixels"),
    [
        ([], {}, None, False, EPS, False, 512),
        ([], {}, None, True, V, False, 768),
        (["v_pred"], {}, None, False, V, False, 512),
        (["v_pred", "ztsnr"], {}, None, False, V, True, 512),
        (["ztsnr"], {}, None, False, EPS, True, 512),
        ([], {"modelspec.prediction_type": "v"}, None, False, V, False, 512),
        ([], {"modelspec.prediction_type": "epsilon"}, None, True, EPS, False, 512),
        ([], {"modelspec.prediction_type": "v", "modelspec.resolution": "768x768"}, None, False, V, False, 768),
        ([], {"modelspec.resolution": "640x832"}, None, False, EPS, False, 640),
        ([], {"modelspec.resolution": "nonsense"}, None, False, EPS, False, 512),
        ([], {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, None, False, V, True, 512),
        ([], {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "None"}, None, False, EPS, False, 512),
        ([], {}, "model: {params: {parameterization: v}}", False, V, False, 512),
        ([], {}, "model: {params: {parameterization: v, rescale_betas_zero_snr: true}}", False, V, True, 512),
        ([], {}, "zsnr: true\nmodel: {params: {parameterization: v}}", False, V, True, 512),
        ([], {}, "model: {params: {network: {params: {ztsnr: true}}}}", False, EPS, True, 512),
        (["ztsnr"], {}, "model: {params: {zero_terminal_snr: false}}", False, EPS, False, 512),
        (["v_pred"], {}, "model: {params: {linear_start: 0.00085}}", False, V, False, 512),
        (["v_pred"], {}, "model: {params: {parameterization: eps}}", False, EPS, False, 512),
        ([], {}, "model: {params: {linear_start: 0.00085}}", True, EPS, False, 512),
        (
            [],
            {},
            "model: {params: {denoiser_config: {params: {scaling_config: {target: a.VScaling}}}}}",
            False,
            V,
            False,
            512,
        ),
    ],
)
def test_every_marker(
    keys: list[str],
    metadata: dict[str, str],
    sidecar: str | None,
    second: bool,
    prediction: str,
    zero: bool,
    pixels: int,
    tmp_path: Path,
) -> None:
    if sidecar:
        (tmp_path / "model.yaml").write_text(sidecar)
    found = told(tmp_path / "model.safetensors", keys, metadata, second, None)
    assert (found["prediction_type"], found.get("rescale_betas_zero_snr", False), found["pixels"]) == (
        prediction,
        zero,
        pixels,
    )
    assert found.get("timestep_spacing", "leading") == ("trailing" if zero else "leading")


@pytest.mark.parametrize(
    ("keys", "metadata", "says"),
    [
        ([], {"modelspec.prediction_type": "flow"}, "prediction type flow is not supported"),
        (["edm_vpred.sigma_max"], {}, "an EDM model"),
    ],
)
def test_other_processes_are_refused_by_name(
    keys: list[str], metadata: dict[str, str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=says):
        told(tmp_path / "model.safetensors", keys, metadata, False, None)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "model: 3", "model: {params: {parameterization: w}}", "a: &a [*a", "x" * (2 << 20), "a: " + "[" * 5000],
)
def test_a_sidecar_that_cannot_be_read_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(content)
    began = time.process_time()
    with pytest.raises(ModelError, match=r"model\.yaml: no `model: params: parameterization"):
        told(tmp_path / "model.ckpt", [], {}, False, None)
    assert time.process_time() - began < 5


# Whole files


def _ldm(second: bool, layers: int = 2, **names: bool) -> dict[str, Tensor]:
    """A tiny file of others; `transformers_names` calls a 2.x text encoder's tensors as transformers does."""
    torch.manual_seed(3)
    unet: Any = UNet2DConditionModel(
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=64, attention_head_dim=[1, 1] if second else 8,
        use_linear_projection=second,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(32, 32),
        layers_per_block=1,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=1598, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=1,
            hidden_act="gelu" if second else "quick_gelu",
        )
    )  # fmt: skip
    if names.get("transformers_names"):
        named = {ldm_keys.CLIP + key: tensor for key, tensor in text.state_dict().items()}
    else:
        named = ldm_keys.to_ldm(text)
    return ldm_keys.to_ldm(unet) | ldm_keys.to_ldm(vae) | named


TOKENIZER = str(locate.bundled_folder() / "tokenizer")


def test_a_2x_file_with_the_names_of_transformers(tmp_path: Path) -> None:
    save_file(_ldm(second=True, layers=24), tmp_path / "open_clip.safetensors")
    save_file(_ldm(second=True, layers=24, transformers_names=True), tmp_path / "transformers.safetensors")
    first, second = (
        load_single_file(tmp_path / f"{name}.safetensors", TOKENIZER) for name in ("open_clip", "transformers")
    )
    assert second.text_encoder.config.hidden_act == "gelu"
    assert second.text_encoder.config.num_hidden_layers == 23
    assert (second.process.prediction_type, second.size) == (V, 768)
    assert torch.equal(
        first.condition(first.tokenize(["a dog"])).tensors["encoder_hidden_states"],
        second.condition(second.tokenize(["a dog"])).tensors["encoder_hidden_states"],
    )


def test_markers_reach_the_scheduler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = _ldm(second=False)
    save_file({**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "model.safetensors")
    model = load_single_file(tmp_path / "model.safetensors", TOKENIZER)
    assert model.process.prediction_type == V
    assert model.scheduler.config.timestep_spacing == "trailing"
    assert float(model.scheduler.alphas_cumprod[-1]) == 0
    assert "v_prediction with zero terminal SNR, as its tensor v_pred says" in capsys.readouterr().err
    (tmp_path / "model.yaml").write_text(
        "model: {params: {parameterization: eps, linear_start: 0.001, linear_end: 0.02, ztsnr: false}}"
    )
    model = load_single_file(tmp_path / "model.safetensors", TOKENIZER)
    assert (model.process.prediction_type, model.scheduler.config.beta_end) == (EPS, 0.02)
    assert float(model.scheduler.alphas_cumprod[-1]) > 0


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("inside", [False, True])
def test_wrappers_around_a_file_and_around_its_parts(prefix: str, inside: bool, tmp_path: Path) -> None:
    tensors = _ldm(second=False)
    roots = (ldm_keys.UNET, ldm_keys.VAE, "cond_stage_model.")
    named = {
        next(root + prefix + key.removeprefix(root) for root in roots if key.startswith(root))
        if inside
        else prefix + key: tensor
        for key, tensor in tensors.items()
    }
    torch.save({"state_dict": named}, tmp_path / "model.ckpt")
    model = load_single_file(tmp_path / "model.ckpt", TOKENIZER)
    assert torch.equal(model.unet.conv_in.weight, tensors[f"{ldm_keys.UNET}input_blocks.0.0.weight"])


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("conditioner.embedders.0.transformer.a", "a Stable Diffusion XL without its first text encoder"),
        ("noise_augmentor.data_mean", "an unCLIP model"),
        ("embedder.model.visual.proj", "an unCLIP model"),
        ("control_model.a", "with a ControlNet"),
    ],
)
def test_whole_models_of_other_families_are_named(key: str, says: str, tmp_path: Path) -> None:
    save_file({**_ldm(second=False), key: torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=says):
        load_single_file(tmp_path / "model.safetensors", TOKENIZER)
