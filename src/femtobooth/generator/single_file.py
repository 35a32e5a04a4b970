"""One file that holds a whole Stable Diffusion, in the layout of the original code: read and write.

What femtobooth writes also carries, in the safetensors header under `femtobooth`, everything that tensors cannot say
(configs, tokenizer, card, subject), so that nothing is lost on the way back; other programs skip it. Files of others
are taken for the published Stable Diffusion 1.x or 2.x, whose sizes the tensors tell.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..core import tensors as stored
from ..core.console import note, warn
from ..core.errors import ModelError
from ..core.runs import atomic_file, refuse_existing, sha256_of
from ..core.tensors import DAMAGED
from . import ldm_configs, ldm_keys
from .base import StableDiffusion, load_tokenizer, save_tokenizer
from .cards import parse_card
from .locate import METADATA, parse_description

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
SD2_BASE_STEP = 875000  # `global_step` in the published 512-base-ema.ckpt, the one 2.x model that predicts epsilon


def load_single_file(path: Path, tokenizer: str | None = None) -> StableDiffusion:
    """Load a single-file Stable Diffusion 1.x/2.x: `.safetensors`, or `.ckpt` unpickled without running any code of it.

    `tokenizer` (a folder or hub id) goes before the file's own, which only femtobooth's files have; without both, CLIP's
    comes from the hub or its local cache. Averaged weights (`model_ema.*`) are left out. In a 2.x file of others the
    prediction type is v (768 pixels), unless its `global_step` is that of 2.0-base, or a YAML file beside it with the
    same name, as the original code has it, says `parameterization: eps` (or `v`).

    Raises UnsafeFileError for a pickle of anything but tensors, ModelError saying what the file seems to be instead.
    """
    tensors, described, step = _read(path)
    other = ldm_configs.other_kind(tensors)
    if other:
        raise ModelError(f"{path}: seems to be {other}", "give a whole Stable Diffusion 1.x or 2.x: UNet, VAE and text encoder in one file")
    configs = described or _infer(path, tensors, step)
    parts = {part: _build(path, kind, configs[part], tensors) for part, kind in _KINDS.items()}
    _refuse_other_architectures(path, tensors, parts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "README.md").write_text(described.get("readme", ""), encoding="utf-8")
        for file, text in described.get("tokenizer", {}).items():
            (folder / Path(file).name).write_text(text, encoding="utf-8")
        return StableDiffusion(
            tokenizer=_tokenizer(path, tokenizer or (name if described else None), parts["text_encoder"], foreign=not described),
            scheduler=DDIMScheduler.from_config(configs["scheduler"], clip_sample=False),
            source=str(path),
            hash=sha256_of(path),
            card=parse_card(described.get("readme", ""), path),
            readme=described.get("readme", ""),
            subject=described.get("subject", {}),
            **parts,
        )


def save_single_file(model: StableDiffusion, path: Path, dtype: torch.dtype = torch.float32, overwrite: bool = False) -> None:
    """Write a single `.safetensors` file: the 1.x key layout, or that of 2.x where the text encoder is OpenCLIP's.

    The keys are those that a published file's UNet, VAE and text encoder have. `position_ids` is one of them, though it
    is only 0, 1, 2...: some programs miss it otherwise, and as whole numbers it survives 16-bit files. The noise
    schedule's buffers (`betas`, ...) are not written, as in the published pruned files: every program makes its own.

    Raises ExistsError where `path` exists, ModelError where the model does not fit the layout or `dtype`.
    """
    refuse_existing(path, overwrite)
    tensors: dict[str, Tensor] = {}
    for part in (model.unet, model.vae, model.text_encoder):
        try:
            tensors |= ldm_keys.to_ldm(part)
        except KeyError as error:
            raise ModelError(f"{model.source}: the single-file layout has no place for {error.args[0]}", "convert it to a folder") from None
    tensors = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{path}: {key} would hold NaN or infinite values as {dtype}", "write it with --precision 32")
    if not ldm_keys.is_second(model.text_encoder):
        tensors[ldm_keys.POSITION_IDS] = torch.arange(model.text_encoder.config.max_position_embeddings)[None]  # (1, L)
    with atomic_file(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={METADATA: json.dumps(_describe(model), sort_keys=True)})


def _describe(model: StableDiffusion) -> dict[str, Any]:
    """What tensors cannot say; no path of this machine is in it."""
    configs = {"unet": model.unet.config, "vae": model.vae.config, "scheduler": model.scheduler.config}
    described: dict[str, Any] = {part: {key: value for key, value in config.items() if key[0] != "_"} for part, config in configs.items()}
    described["text_encoder"] = model.text_encoder.config.to_diff_dict()
    with tempfile.TemporaryDirectory() as name:
        save_tokenizer(model.tokenizer, Path(name))
        described["tokenizer"] = {file.name: file.read_text(encoding="utf-8") for file in sorted(Path(name).iterdir())}
    return described | {"readme": model.readme, "subject": model.subject}


# Reading


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], int | None]:
    """Tensors by key, femtobooth's description ({} in a file of others) and the training step, if the file has one."""
    contents, metadata = stored.read(path)
    described = parse_description(path, metadata)
    tensors = stored.state_dict(path, contents)
    step = contents.get("global_step")
    return _renamed_old(tensors), described, step if isinstance(step, int) else None


def _renamed_old(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Some files of 2022 leave `text_model.` out of the text encoder's keys."""
    old = re.compile(r"^cond_stage_model\.transformer\.(?=embeddings|encoder|final_layer_norm)")
    return {old.sub(ldm_keys.CLIP, key): tensor for key, tensor in tensors.items()}


def _infer(path: Path, tensors: Mapping[str, Tensor], step: int | None) -> dict[str, Any]:
    """Configs of a file of others."""
    second = not any(key.startswith(ldm_keys.CLIP) for key in tensors)
    prediction = "v_prediction" if second and step != SD2_BASE_STEP else "epsilon"
    sidecar = path.with_suffix(".yaml")
    if sidecar.is_file():
        try:
            given = yaml.safe_load(sidecar.read_text(encoding="utf-8"))["model"]["params"].get("parameterization", "eps")
            prediction = {"eps": "epsilon", "v": "v_prediction"}[given]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{sidecar}: no `model: params: parameterization: eps` (or `v`) in it", "correct it or take it away") from None
    elif second:
        note(
            f"{path}: taken for Stable Diffusion 2.x with {prediction}; {sidecar.name} beside it (`parameterization: eps` or `v`) overrules"
        )
    try:
        configs = ldm_configs.infer(tensors, prediction)
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"{path}: no Stable Diffusion 1.x or 2.x that femtobooth knows ({error})", DAMAGED) from None
    widths = (*configs["unet"]["block_out_channels"], *configs["vae"]["block_out_channels"])
    if any(width % ldm_configs.GROUPS for width in widths):
        raise ModelError(f"{path}: says nothing of its layers' groups, and {ldm_configs.GROUPS} do not fit", "convert it where it was made")
    if configs["unet"]["block_out_channels"] != [320, 640, 1280, 1280]:
        warn(f"{path}: not of Stable Diffusion's usual size; attention heads and norm groups are guessed")
    return configs


_KINDS: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


def _build(path: Path, kind: Any, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """A part with the file's tensors in it, ready for inference."""
    try:
        with torch.device("meta"):
            part = kind(CLIPTextConfig(**config)) if kind is CLIPTextModel else kind.from_config(config)
    except Exception as error:  # whatever a library makes of values it cannot use
        raise ModelError(f"{path}: its {kind.__name__} cannot be built ({error})", DAMAGED) from error
    try:
        part.load_state_dict(ldm_keys.from_ldm(part, tensors), assign=True)
    except KeyError as error:
        raise ModelError(f"{path}: {error.args[0]} is missing", DAMAGED) from None
    except ValueError as error:
        raise ModelError(f"{path}: {error}", DAMAGED) from None
    if kind is CLIPTextModel:  # a buffer that is in no state dict
        part.embeddings.position_ids = torch.arange(part.config.max_position_embeddings)[None]  # (1, L)
    return part.eval().requires_grad_(False)


def _refuse_other_architectures(path: Path, tensors: Mapping[str, Tensor], parts: Mapping[str, Any]) -> None:
    unet, vae, text = parts["unet"].config, parts["vae"].config, parts["text_encoder"].config
    extra = ldm_keys.unused(tensors, parts.values())
    if unet.in_channels > vae.latent_channels:
        what = {9: "inpainting", 5: "depth-to-image", 8: "editing (instruct-pix2pix)", 7: "upscaling"}.get(
            unet.in_channels, "another kind of"
        )
        raise ModelError(f"{path}: {what} model, its UNet takes {unet.in_channels} channels", "give a text-to-image model")
    if unet.cross_attention_dim != text.hidden_size:
        raise ModelError(f"{path}: UNet ({unet.cross_attention_dim}) and text encoder ({text.hidden_size}) do not fit together", DAMAGED)
    if extra:
        raise ModelError(f"{path}: of another architecture, {extra[0]} has no place in Stable Diffusion 1.x or 2.x", "give another base")


def _tokenizer(path: Path, reference: str | None, text_encoder: nn.Module, foreign: bool) -> CLIPTokenizer:
    """The tokenizer for a file's text encoder, from a folder or the hub. Raises ModelError."""
    folder = Path(reference or CLIP_TOKENIZER)
    tokenizer = load_tokenizer(folder if folder.is_dir() else Path(_hub_tokenizer(path, str(reference or CLIP_TOKENIZER))))
    config: Any = text_encoder.config
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the text encoder knows {config.vocab_size}",
            "give the folder of this model's own tokenizer with --tokenizer",
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    if foreign:
        if ldm_keys.is_second(text_encoder) and tokenizer.convert_ids_to_tokens(0) == "!":
            tokenizer.pad_token = "!"  # noqa: S105  (OpenCLIP pads with zeros)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
    return tokenizer


def _hub_tokenizer(path: Path, repo: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(repo, allow_patterns=["tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json"])
    except Exception as error:  # network, cache and name errors of several libraries
        raise ModelError(
            f"{path}: has no tokenizer in it, and {repo} cannot be fetched ({type(error).__name__})",
            "give a CLIP tokenizer's folder (vocab.json and merges.txt) with --tokenizer",
        ) from None
