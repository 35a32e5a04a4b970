"""Open the encoders that score pictures, by name: dino, clip, and every recognizer that the other commands take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_data_config
from torch import nn

from ..core import hub
from ..core.errors import ModelError, needs
from ..pictures.crops import make_square
from ..recognizer.model import artifact, hub_config, weights
from ..recognizer.model.backbone import Recognizer
from ..recognizer.model.preprocess import Preprocess

DINO = "vit_small_patch16_224.dino"  # ViT-S/16, as in the paper
CLIP = "openai/clip-vit-base-patch32"
BATCH = 32  # pictures


@dataclass(frozen=True)
class Encoder:
    """Pictures, and texts where it reads them, to embeddings."""

    name: str
    """As it was asked for; stands beside every number it makes."""
    source: str
    """Which weights these are."""
    trained_on: frozenset[str]
    """SHA-256 of the files it was trained on, as far as its manifest says."""
    images: Callable[[Sequence[np.ndarray]], np.ndarray]
    """uint8 pictures (H, W, 3) to float32 (N, D); of what is no square the most detailed square is looked at, as what
    is compared with it is square."""
    texts: Callable[[Sequence[str]], np.ndarray] | None = None
    """Texts to float32 (N, D) in the space of the pictures."""
    network: nn.Module | None = None
    """What computes them; None where nothing has a device."""

    def to(self, device: torch.device) -> Encoder:
        """Move the network to a device, once for all pictures and texts to come; returns itself."""
        if self.network is not None:
            self.network.to(device)
        return self

    def refuse_trained_on(self, scored: Iterable[str], what: str = "of the pictures it would score") -> None:
        """Raise ModelError where it was trained on a picture that it is to score, or that is kin to these (SHA-256 of
        their files).
        """
        known = self.trained_on & set(scored)
        if known:
            raise ModelError(
                f"{self.name}: was trained on {len(known)} {what}; its scores would mean nothing",
                "score with an encoder that has never seen them, such as tf_efficientnet_lite0",
            )


def open_encoder(name: str) -> Encoder:
    """Open the encoder of this name, on the CPU: dino, clip, bundled, tf_efficientnet_lite0, a path or a timm name.

    Raises ModelError.
    """
    if name == "clip":
        return _clip()
    found = weights.resolve(DINO if name == "dino" else name)
    trained_on: frozenset[str] = frozenset()
    network: nn.Module
    embed: Callable[[torch.Tensor], torch.Tensor]
    if not found.is_artifact and _classes(found) == 0:
        network, preprocess = _headless(found)
        embed = network
    else:
        recognizer = Recognizer.load(name)
        network, embed, preprocess = recognizer, recognizer.embed, recognizer.preprocess
        trained_on = frozenset(recognizer.provenance.get("trained_on") or ())

    def images(pictures: Sequence[np.ndarray]) -> np.ndarray:
        parts, device = [], _device(network)
        with torch.inference_mode():
            for start in range(0, len(pictures), BATCH):
                pixels = np.stack([preprocess.pixels(_square(picture)) for picture in pictures[start : start + BATCH]])
                parts.append(embed(preprocess.normalize(torch.from_numpy(pixels).to(device))).float().cpu().numpy())
        return np.concatenate(parts)

    return Encoder(name, found.source, trained_on, images, network=network)


def _square(picture: np.ndarray) -> Image.Image:
    """Make a picture uint8 (H, W, 3) the largest square of it that has most detail."""
    return make_square(Image.fromarray(picture), min(picture.shape[:2]), "smart")[0]


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def usable(names: Iterable[str] = ("dino", "clip")) -> list[str]:
    """Name the encoders that work here and now: those of the paper where the hub's cache has them, else the ones that
    need no hub.
    """
    cached = {"dino": _cached_timm, "clip": _cached_clip}
    found = [name for name in names if cached[name]()]
    if found:
        return found
    packaged = [weights.PACKAGED.partition(".")[0]] if weights.packaged_file() else []
    bundled = [weights.BUNDLED] if (weights.bundled_folder() / artifact.DESCRIPTION).is_file() else []
    if not packaged + bundled:
        raise ModelError("no encoder works here without a network", f"{needs('imagenet')} brings one")
    return packaged + bundled


def _cached_timm() -> bool:
    return weights.cached_file(weights.hub_id(DINO)) is not None


def _cached_clip() -> bool:
    return weights.cached_file(CLIP) is not None


def _classes(found: weights.Found) -> int:
    """Count the classes of a timm model's weights: 0 for those trained without labels."""
    said = found.config.pretrained.get("num_classes")
    if said is not None or found.architecture is None:
        return 1000 if said is None else said
    import timm

    from ..recognizer.model import loading

    config = (
        timm.get_pretrained_cfg(loading.registered(found.architecture)) if timm.is_model(found.architecture) else None
    )
    return config.num_classes if config else 1000


def _headless(found: weights.Found) -> tuple[nn.Module, Preprocess]:
    """Load a network without classes, such as DINO's, and its preprocessing: what it makes is the embedding itself."""
    from ..recognizer.model import loading

    tensors, _ = loading.tensors_of(found.path)
    config = loading.settled(found, str(found.architecture))
    model = loading.build(str(found.architecture), 0, loading.arguments(found, config), found.path, tensors)
    loading.fill(model, tensors, found.path, str(found.architecture))
    return model.eval().requires_grad_(False), Preprocess.from_timm(
        resolve_data_config({}, pretrained_cfg=config), loading.own_size(model)
    )


def _clip() -> Encoder:
    """Open CLIP ViT-B/32, from the hub's cache or the hub. Raises ModelError where neither has it."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    try:
        if not _cached_clip():
            hub.ask(CLIP, hub_config.NAME)
        model: Any = CLIPModel.from_pretrained(CLIP, attn_implementation="sdpa").eval().requires_grad_(False)
        processor: Any = CLIPImageProcessor.from_pretrained(CLIP)
        tokenizer: Any = AutoTokenizer.from_pretrained(CLIP)
    except Exception as error:  # network, disk and cache errors of several libraries
        raise ModelError(
            f"clip: {CLIP} is not in the local hub cache and the hub cannot be reached ({type(error).__name__})",
            (
                f"where there is a network run `hf download {CLIP}` and copy the "
                "hub cache here, or choose another encoder"
            ),
        ) from None

    def projected(output: Any) -> np.ndarray:
        tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
        return np.asarray(tensor.float().cpu().numpy())

    def images(pictures: Sequence[np.ndarray]) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(pictures), BATCH):
                given = processor(
                    images=[_square(one) for one in pictures[start : start + BATCH]], return_tensors="pt"
                ).to(_device(model))
                parts.append(projected(model.get_image_features(**given)))
        return np.concatenate(parts)

    def texts(lines: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            read = tokenizer(list(lines), padding=True, truncation=True, return_tensors="pt")
            return projected(model.get_text_features(**read.to(_device(model))))

    return Encoder("clip", CLIP, frozenset(), images, texts, model)
