"""One file that holds a whole Stable Diffusion 1.x, 2.x or XL, in the layout of the original code: read and write.

What femtobooth writes also carries, in the safetensors header under `femtobooth`, everything that tensors cannot say
(configs, tokenizer, card, subject), so that nothing is lost on the way back; other programs skip it. Files of others
are taken for the published Stable Diffusion 1.x, 2.x or XL, whose sizes the tensors tell.
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
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ...core import tensors as stored
from ...core.errors import ModelError
from ...core.events import warn
from ...core.files import atomic_file, refuse_existing, sha256_of
from ...core.machine import Precision
from ...core.paths import existing, hub_id, refuse_missing_path
from ...core.tensors import DAMAGED
from ..cards import parse_card
from ..families import known
from ..families.family import Family
from ..families.stable_diffusion import StableDiffusion
from ..families.stable_diffusion_xl import StableDiffusionXL
from ..locate import METADATA, parse_description
from ..settings import RECOMMENDABLE
from . import ldm_configs, ldm_keys, mapped, noise_markers, parts
from .folder import checked_subject, load_tokenizer, save_tokenizer
from .schedule import load_scheduler

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
TOKENIZER_WAY_OUT = "give a CLIP tokenizer's folder (vocab.json and merges.txt)"


def load_single_file(
    path: Path, tokenizer: str | None = None, weights: bool = True, held: Precision = "fp32"
) -> Family:
    """Load a single-file Stable Diffusion: `.safetensors`, or `.ckpt` unpickled without running any code of it.

    `tokenizer` (a folder or hub id) goes before the file's own, which only femtobooth's files have; without both,
    CLIP's comes from the hub or its local cache. Averaged weights (`model_ema.*`) are left out. What a file of others
    predicts is told by `noise_markers`; a 2.x file that says nothing predicts v (768 pixels), unless its `global_step`
    is that of 2.0-base. Without `weights` its networks have shapes alone, on torch's meta device, and its hash is "".

    What can train is `held` in this number format, the VAE in 32 bits.

    Raises UnsafeFileError for a pickle of anything but tensors, ModelError saying what the file seems to be instead.
    """
    contents, metadata = stored.read(path, weights=False)
    described = parse_description(path, metadata)
    tensors = _renamed(stored.state_dict(path, contents))
    other = ldm_configs.other_kind(tensors)
    if other:
        raise ModelError(
            f"{path}: seems to be {other}",
            f"give a whole {known.IN_SINGLE_FILES}: UNet, VAE and text encoders in one file",
        )
    step = contents.get("global_step")
    configs = described or _infer(path, tensors, metadata, step if isinstance(step, int) else None)
    xl = ldm_configs.is_xl(tensors)
    family: type[Family] = StableDiffusionXL if xl else StableDiffusion
    if not set(family.NETWORKS) <= set(configs):
        raise ModelError(f"{path}: its `{METADATA}` description is not of a {family.NAME}", DAMAGED)
    loaded = {name: parts.build(kind, configs[name], path) for name, kind in family.NETWORKS.items()}
    family.refuse_misfits(loaded, path)
    extra = ldm_keys.unused(tensors, loaded.values())
    if extra:
        raise ModelError(
            f"{path}: of another architecture, {extra[0]} has no place in {family.NAME}",
            "give another base",
        )
    fingerprint = sha256_of(path) if weights else ""

    def read() -> None:
        for name in family.NETWORKS:
            places = ldm_keys.places(loaded[name], tensors, xl)
            parts.fill(loaded[name], tensors, places, path, held if name in family.can_train() else "fp32")

    if weights:
        mapped.fill({**loaded}, fingerprint, held, read)
    try:
        subject = checked_subject(described.get("subject", {}))
    except ValueError:
        raise ModelError(f"{path}: its `{METADATA}` description is damaged", DAMAGED) from None
    with tempfile.TemporaryDirectory() as place:
        for text_encoder, name in family.TEXT_ENCODERS.items():
            own = Path(place) / name
            own.mkdir()
            for file, text in described.get(name, {}).items():
                (own / Path(file).name).write_text(str(text), encoding="utf-8")
            loaded[name] = _tokenizer(
                path, tokenizer or (str(own) if described else None), loaded[text_encoder], name, foreign=not described
            )
        return family(
            scheduler=load_scheduler(configs["scheduler"], path),
            source=str(path),
            held=held if weights else "fp32",
            hash=fingerprint,
            card=parse_card(described.get("readme", ""), path, RECOMMENDABLE),
            readme=described.get("readme", ""),
            subject=subject,
            **family.of_index(described),
            **loaded,
        )


def save_single_file(model: Family, path: Path, dtype: torch.dtype = torch.float32, overwrite: bool = False) -> None:
    """Write a single `.safetensors` file: the key layout of 1.x, of 2.x where the text encoder is OpenCLIP's, or of XL.

    The keys are those that a published file's UNet, VAE and text encoders have. `position_ids` is one of them, though
    it is only 0, 1, 2...: some programs miss it otherwise, and as whole numbers it survives 16-bit files. The noise
    schedule's buffers (`betas`, ...) are not written, as in the published pruned files: every program makes its own.
    Nor is `logit_scale` of XL's second text encoder, by which no picture is drawn.

    Raises ExistsError where `path` exists, ModelError where the model does not fit the layout or `dtype`.
    """
    refuse_existing(path, overwrite)
    if model.FLOWS:
        raise ModelError(f"{model.source}: a {model.NAME} is not written as a single file", "convert it to a folder")
    tensors: dict[str, Tensor] = {}
    xl = isinstance(model, StableDiffusionXL)
    for part in [getattr(model, name) for name in model.NETWORKS]:
        try:
            tensors |= ldm_keys.to_ldm(part, xl)
        except KeyError as error:
            raise ModelError(
                f"{model.source}: the single-file layout has no place for {error.args[0]}", "convert it to a folder"
            ) from None
    tensors = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(
                f"{path}: {key} would hold NaN or infinite values as {dtype}", "write it with precision fp32"
            )
    root = ldm_keys.XL_CLIP if xl else ldm_keys.CLIP
    if any(key.startswith(root) for key in tensors):
        first = model.text_encoders["text_encoder"]
        tensors[root + ldm_keys.POSITION_IDS] = torch.arange(first.config.max_position_embeddings)[None]  # (1, L)
    with atomic_file(path, replace=overwrite) as temporary:
        safetensors.torch.save_file(
            tensors, temporary, metadata={METADATA: json.dumps(_describe(model), sort_keys=True)}
        )


def _describe(model: Family) -> dict[str, Any]:
    """Describe what tensors cannot say; no path of this machine is in it."""
    configs = {model.DENOISER: model.denoiser.config, "vae": model.vae.config, "scheduler": model.scheduler.config}
    described: dict[str, Any] = {
        part: {key: value for key, value in config.items() if key[0] != "_"} for part, config in configs.items()
    }
    for text_encoder, tokenizer in model.TEXT_ENCODERS.items():
        described[text_encoder] = getattr(model, text_encoder).config.to_diff_dict()
        with tempfile.TemporaryDirectory() as name:
            save_tokenizer(getattr(model, tokenizer), Path(name))
            files = sorted(Path(name).iterdir())
            described[tokenizer] = {file.name: file.read_text(encoding="utf-8") for file in files}
    return described | model.index() | {"readme": model.readme, "subject": model.subject}


# Reading


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors the names of published files: without wrappers inside them, and with the `text_model.` that some
    files of 2022 leave out.
    """
    old = re.compile(r"^cond_stage_model\.transformer\.(?=embeddings|encoder|final_layer_norm)")
    roots = (
        *(ldm_keys.UNET, ldm_keys.VAE, ldm_keys.OPEN_CLIP, "cond_stage_model.transformer.", "cond_stage_model."),
        *("conditioner.embedders.0.transformer.", ldm_keys.XL_OPEN_CLIP),
    )

    def plain(key: str) -> str:
        root = next((root for root in roots if key.startswith(root)), "")
        return old.sub(ldm_keys.CLIP, root + stored.unwrapped(key.removeprefix(root)))

    return {plain(key): tensor for key, tensor in tensors.items()}


def _infer(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], step: int | None) -> dict[str, Any]:
    """Infer the configs of a file of others."""
    try:
        xl = ldm_configs.is_xl(tensors)
        second, pixels = ldm_configs.is_second(tensors) and not xl, ldm_configs.XL_PIXELS if xl else None
        process = noise_markers.told(path, tensors, metadata, second, step, pixels)
        configs = ldm_configs.infer(tensors, process)
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"{path}: no Stable Diffusion that femtobooth knows ({error})", DAMAGED) from None
    widths = (*configs["unet"]["block_out_channels"], *configs["vae"]["block_out_channels"])
    if any(width % ldm_configs.GROUPS for width in widths):
        raise ModelError(
            f"{path}: says nothing of its layers' groups, and {ldm_configs.GROUPS} do not fit",
            "convert it where it was made",
        )
    if configs["unet"]["block_out_channels"] != [320, 640, 1280, *[1280] * (not xl)]:
        warn(f"{path}: not of Stable Diffusion's usual size; attention heads and norm groups are guessed")
    return configs


def _tokenizer(path: Path, reference: str | None, text_encoder: nn.Module, name: str, foreign: bool) -> CLIPTokenizer:
    """Load the tokenizer for a file's text encoder, from a folder or the hub. Raises ModelError."""
    reference = str(reference or CLIP_TOKENIZER)
    folder = existing(reference)
    if folder is None:
        refuse_missing_path(reference, f"{TOKENIZER_WAY_OUT} as `tokenizer`")
        folder = Path(_hub_tokenizer(path, hub_id(reference) or reference))
    held = next((one for one in (name, "tokenizer") if (folder / one).is_dir()), None)  # in a model's folder
    folder = folder / held if held else folder
    tokenizer = load_tokenizer(folder)
    parts.fit_tokenizer(tokenizer, text_encoder, path, "give the folder of this model's own tokenizer as `tokenizer`")
    config: Any = text_encoder.config
    if foreign:
        if ldm_keys.is_second(text_encoder) and tokenizer.convert_ids_to_tokens(0) == "!":
            tokenizer.pad_token = "!"  # noqa: S105  (OpenCLIP pads with zeros)
        for number in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, number, getattr(tokenizer, number))
        for module in text_encoder.modules():
            if hasattr(module, "eos_token_id"):  # where the end is, whose state is projected
                module.eos_token_id = config.eos_token_id
    return tokenizer


def _hub_tokenizer(path: Path, repo: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            repo, allow_patterns=["tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json"]
        )
    except Exception as error:  # network, cache and name errors of several libraries
        raise ModelError(
            f"{path}: has no tokenizer in it, and {repo} cannot be fetched ({type(error).__name__})",
            f"{TOKENIZER_WAY_OUT} as `tokenizer`",
        ) from None
