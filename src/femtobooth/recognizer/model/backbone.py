"""A recognizer in memory: a timm classifier with the preprocessing, labels and calibration that belong to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from ...core.errors import ModelError
from ...core.files import atomic_folder
from . import architectures, artifact, hub_config, loading, weights
from .artifact import Description
from .labels import Labels
from .preprocess import Preprocess

STRIDES = (4, 8, 16, 32)  # of stages 0 to 3


class Recognizer(nn.Module):
    """An image classifier that is also a feature extractor; loaded frozen and ready for inference."""

    def __init__(
        self,
        model: nn.Module,
        architecture: str,
        preprocess: Preprocess,
        labels: Labels,
        model_args: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        rejection: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """Put a recognizer together: the arguments are the fields of `artifact.Description`; `model` is timm's."""
        super().__init__()
        self.model: Any = model
        self.architecture = architecture
        self.preprocess = preprocess
        self.labels = labels
        self.model_args = dict(model_args or {})
        self.temperature = temperature
        self.rejection = rejection
        self.provenance = dict(provenance or {})

    @classmethod
    def create(
        cls, architecture: str, labels: Labels, preprocess: Preprocess | None = None, **model_args: Any
    ) -> Recognizer:
        """Make an untrained one, in training mode; preprocessing is timm's for the architecture unless given.

        Raises ModelError.
        """
        model = loading.build(architecture, len(labels), model_args)
        return cls(
            model,
            architecture,
            preprocess or Preprocess.from_timm(architectures.data_config(model=model)),
            labels,
            model_args,
        )

    @classmethod
    def load(cls, reference: str | Path, any_head: bool = False) -> Recognizer:
        """Load what `weights.resolve` finds, frozen; with `any_head`, its last layer may be missing or another one,
        and is then 0.

        Raises ModelError, or UnsafeFileError for a pickle that wants to run code.
        """
        return cls(**loading.load(weights.resolve(reference), any_head)).freeze()

    def save(self, folder: Path, overwrite: bool = False, dtype: torch.dtype = torch.float32) -> None:
        """Write an artifact folder, its weights as `dtype`.

        Raises ExistsError, or ModelError where they would not be finite.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        loading.refuse_not_finite(tensors, folder)
        with atomic_folder(folder, overwrite) as temporary:
            safetensors.torch.save_file(tensors, temporary / artifact.WEIGHTS)
            described = self.describe(tensors)
            artifact.write(described, temporary)
            hub_config.write(temporary, described, self.model.pretrained_cfg, self.model.num_features)

    def describe(self, tensors: Mapping[str, Tensor] | None = None) -> Description:
        """Describe it as recognizer.json does of it; the hash is that of `tensors` where they differ from its own."""
        return Description(
            architecture=self.architecture,
            preprocess=self.preprocess,
            labels=self.labels,
            model_args=self.model_args,
            temperature=self.temperature,
            rejection=self.rejection,
            provenance=self.provenance,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            hash=loading.hash_of(self.model.state_dict() if tensors is None else tensors),
        )

    @property
    def hash(self) -> str:
        """SHA-256 of the weights as they are now, hexadecimal."""
        return loading.hash_of(self.model.state_dict())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def freeze(self) -> Recognizer:
        """Freeze it for inference: no gradients to the weights, no dropout, fixed statistics. Returns self."""
        return self.requires_grad_(False).eval()

    def unfreeze(self) -> Recognizer:
        """Make it ready for training. Returns self."""
        return self.requires_grad_(True).train()

    def batch(self, images: Iterable[Image.Image]) -> Tensor:
        """Turn pictures of mode RGB to what `forward` reads: float32 (B, 3, H, W) on the model's device."""
        pixels = torch.from_numpy(np.stack([self.preprocess.pixels(image) for image in images]))  # (B, H, W, 3)
        return self.preprocess.normalize(pixels.to(self.device))

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, n) of preprocessed pictures (B, 3, H, W)."""
        return self.model(x)

    def embed(self, x: Tensor) -> Tensor:
        """Compute the pooled embedding (B, D), after the head's norm where there is one."""
        return self._pooled(self.model.forward_features(x))

    def prelogits(self, x: Tensor) -> Tensor:
        """Compute what the last linear layer reads (B, D'); the embedding itself unless the head has a hidden layer."""
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)

    def features(
        self, images: Tensor | Sequence[Image.Image], stages: Sequence[int] = (0, 1, 2, 3)
    ) -> dict[int | str, Tensor]:
        """Compute maps (B, C, H/s, W/s) of the stages 0 to 3, where s is 4, 8, 16, 32; from (B, 3, H, W), or from
        pictures of mode RGB.
        """
        outputs = self.outputs(images, stages)
        return {stage: outputs[stage] for stage in stages}

    def outputs(self, images: Tensor | Sequence[Image.Image], stages: Sequence[int] = ()) -> dict[int | str, Tensor]:
        """Compute all in one forward pass: `logits`, `embedding`, `prelogits`, and the map of each stage under its
        number.

        Raises ModelError for a stage that the network does not have.
        """
        x = images if isinstance(images, Tensor) else self.batch(images)
        if stages:
            final, maps = self.model.forward_intermediates(x, indices=self._indices(stages))
        else:
            final, maps = self.model.forward_features(x), []
        outputs: dict[int | str, Tensor] = {
            "logits": self.model.forward_head(final),
            "embedding": self._pooled(final),
            "prelogits": self.model.forward_head(final, pre_logits=True),
        }
        return outputs | dict(zip(sorted(set(stages)), maps, strict=True))

    def _indices(self, stages: Sequence[int]) -> list[int]:
        """Find timm's numbers for stages; networks that also halve once count from stride 2."""
        strides = [info["reduction"] for info in getattr(self.model, "feature_info", [])]
        known = {STRIDES.index(stride): index for index, stride in enumerate(strides) if stride in STRIDES}
        missing = sorted(set(stages) - set(known))
        if missing or not hasattr(self.model, "forward_intermediates") or len(strides) != len(set(strides)):
            raise ModelError(
                f"{self.architecture}: has no stages {', '.join(map(str, missing or stages))}",
                f"stages 0 to 3 are the maps at strides 4, 8, 16 and 32; it has strides {sorted(set(strides))}",
            )
        return [known[stage] for stage in sorted(set(stages))]

    def _pooled(self, final: Tensor) -> Tensor:
        if self.model.num_features == self.model.head_hidden_size:
            return self.model.forward_head(final, pre_logits=True)
        head: Any = getattr(self.model, "head", None)  # the hidden layer of the head comes after pooling (and its norm)
        pool = getattr(head, "global_pool", None) or self.model.global_pool
        pooled = pool(final)
        return (head.norm(pooled) if isinstance(getattr(head, "norm", None), nn.Module) else pooled).flatten(1)
