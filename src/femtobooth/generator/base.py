"""A Stable Diffusion in memory, and where it comes from: the bundled base, a folder, a single file, the hub.

Nothing trains here. Every part is loaded as 32-bit floats; who computes with it chooses the format.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ..core.errors import InputError, ModelError
from ..core.runs import atomic_folder, content_hash
from . import cards
from .locate import PARTS, SUBJECT_FILE, locate

diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@dataclass
class StableDiffusion:
    """The five parts of a Stable Diffusion 1.x/2.x text-to-image model, and what is known about it."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    """The noise schedule (betas, prediction type, timestep spacing) that the model was trained with."""
    source: str
    """Where it was loaded from, for people."""
    hash: str
    """SHA-256 over all files it was loaded from."""
    card: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The settings that its model card recommends, by command."""
    readme: str = ""
    """The whole model card."""
    subject: dict[str, Any] = field(default_factory=dict)
    """For a personalized model: token and class_noun, with provenance."""

    @property
    def vae_factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size(self) -> int:
        """Native picture width and height in pixels."""
        return int(self.unet.config.sample_size) * self.vae_factor

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: epsilon, v_prediction or sample."""
        return str(self.scheduler.config.prediction_type)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StableDiffusion:
        """Move text encoder, VAE and UNet; returns self."""
        for part in (self.text_encoder, self.vae, self.unet):
            part.to(device=device, dtype=dtype)
        return self

    def token_ids(self, prompts: list[str]) -> torch.Tensor:
        """(B, L) token ids, cut and padded to the tokenizer's length."""
        return self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.tokenizer.model_max_length, return_tensors="pt"
        ).input_ids

    def text_states(self, prompts: list[str]) -> torch.Tensor:
        """(B, L, D) last hidden states of the text encoder, the UNet's cross-attention input."""
        ids = self.token_ids(prompts).to(self.text_encoder.device)
        return self.text_encoder(ids).last_hidden_state


def load(reference: str, tokenizer: str | None = None) -> StableDiffusion:
    """Load what `reference` names, tried in this order:

    `bundled`; a path (a model folder, a run folder, a single `.safetensors`/`.ckpt` file); a hub id such as
    `owner/name` (the local hub cache first). `tokenizer` (a folder or hub id) serves single files without one.
    Raises ModelError saying what to do where none fits.
    """
    path = locate(reference)
    if path.is_dir():
        return load_folder(path, source=reference)
    from .single_file import load_single_file

    return load_single_file(path, tokenizer)


def load_folder(folder: Path, source: str | None = None) -> StableDiffusion:
    """Load a folder in diffusers' Stable Diffusion layout (safetensors only).

    Raises ModelError naming the part that is missing, damaged or of another kind.
    """
    for part in PARTS:
        if not (folder / part).is_dir():
            raise ModelError(
                f"{folder}: not a Stable Diffusion model, its {part}/ folder is missing",
                f"a model folder holds {', '.join(f'{name}/' for name in PARTS)} and model_index.json",
            )
    kinds = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL, "unet": UNet2DConditionModel}
    loaded: dict[str, Any] = {}
    for part, kind in kinds.items():
        try:
            loaded[part] = kind.from_pretrained(folder / part, use_safetensors=True, local_files_only=True, dtype=torch.float32)
        except Exception as error:  # the libraries raise many kinds for one fact: this part cannot be read
            raise ModelError(
                f"{folder / part}: cannot be loaded ({_first_line(error)})", "copy the model again, as .safetensors"
            ) from error
        for tensor in (*loaded[part].parameters(), *loaded[part].buffers()):
            # Mapped from the file it starts at any byte, where kernels round otherwise: results must depend on values alone.
            tensor.data = tensor.data.clone()
    if loaded["unet"].config.in_channels != loaded["vae"].config.latent_channels:
        raise ModelError(
            f"{folder}: its UNet reads {loaded['unet'].config.in_channels} channels, its VAE makes {loaded['vae'].config.latent_channels}",
            "inpainting and depth checkpoints are no text-to-image bases; take the plain model (generate has --mask)",
        )
    readme = cards.read_readme(folder)
    return StableDiffusion(
        tokenizer=load_tokenizer(folder / "tokenizer"),
        scheduler=_load_scheduler(folder / "scheduler"),
        source=source or str(folder),
        hash=content_hash((path for part in PARTS for path in (folder / part).iterdir() if _shapes_pictures(path)), folder),
        card=cards.parse_card(readme, folder / cards.README),
        readme=readme,
        subject=_read_subject(folder),
        **{part: module.eval().requires_grad_(False) for part, module in loaded.items()},
    )


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The CLIP tokenizer in a folder. Raises ModelError."""
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"{folder}: no CLIP tokenizer there ({_first_line(error)})", "a tokenizer folder holds vocab.json and merges.txt"
        ) from error


def _load_scheduler(folder: Path) -> SchedulerMixin:
    """The scheduler as DDIM, which every Stable Diffusion schedule can be read as."""
    try:
        # Stable Diffusion's latents leave [-1, 1]: DDIM's default of clipping them must never slip in.
        scheduler = DDIMScheduler.from_pretrained(folder, local_files_only=True, clip_sample=False)
    except Exception as error:
        raise ModelError(f"{folder}: cannot be loaded ({_first_line(error)})") from error
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ModelError(
            f"{folder}: prediction type {scheduler.config.prediction_type} is not supported",
            "use a base with epsilon, v_prediction or sample",
        )
    return scheduler


def save_folder(model: StableDiffusion, folder: Path, card: str, dtype: torch.dtype = torch.float32, overwrite: bool = False) -> None:
    """Write diffusers' Stable Diffusion layout, which `StableDiffusionPipeline.from_pretrained` loads.

    `card` is the README.md; the parts in memory take on `dtype`. Raises ExistsError where `folder` exists.
    """
    from diffusers import StableDiffusionPipeline

    parts = {"tokenizer": model.tokenizer, "text_encoder": model.text_encoder, "vae": model.vae, "unet": model.unet}
    pipeline = StableDiffusionPipeline(
        **parts, scheduler=model.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    with atomic_folder(folder, overwrite) as temporary:
        if dtype != model.unet.dtype:
            pipeline = pipeline.to(dtype=dtype)
        pipeline.save_pretrained(temporary, safe_serialization=True)
        save_tokenizer(model.tokenizer, temporary / "tokenizer")
        for path in temporary.rglob("*.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("_name_or_path", None) is not None:  # a path of this machine
                path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if model.subject:
            (temporary / SUBJECT_FILE).write_text(json.dumps(model.subject, indent=2) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write tokenizer.json, and the vocab.json and merges.txt that older programs read."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # each call sets both anew; the last call's values are no part of the model
    backend.no_truncation()
    tokenizer.save_pretrained(folder)
    backend.model.save(str(folder))


def _read_subject(folder: Path) -> dict[str, Any]:
    path = folder / SUBJECT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _shapes_pictures(path: Path) -> bool:
    """Whether a file of a model folder decides what it draws; cards and samples do not."""
    return path.is_file() and path.suffix in (".safetensors", ".json", ".txt")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def device(name: str) -> torch.device:
    """The device of this name; `auto` takes the fastest kind there is. Raises InputError where it is not on this machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: no such kind of device", "use auto, cpu, cuda, cuda:1 or mps") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise InputError(f"--device {name}: not on this machine, which has {count} of that kind", "use --device auto or cpu")
    return device
