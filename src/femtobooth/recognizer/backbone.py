"""A recognizer in memory: a timm classifier with the preprocessing, labels and calibration that belong to it."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn

from ..core import tensors as stored
from ..core.console import warn
from ..core.errors import ModelError
from ..core.runs import atomic_folder
from . import artifact, weights
from .artifact import Description
from .labels import Labels, imagenet
from .preprocess import Preprocess

STRIDES = (4, 8, 16, 32)  # of stages 0 to 3
_COUNTER = ".num_batches_tracked"  # BatchNorm's count of training steps: in some files, never used for inference


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
        unknown: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        """The arguments are the fields of `artifact.Description`; `model` is timm's."""
        super().__init__()
        self.model: Any = model
        self.architecture = architecture
        self.preprocess = preprocess
        self.labels = labels
        self.model_args = dict(model_args or {})
        self.temperature = temperature
        self.unknown = unknown
        self.provenance = dict(provenance or {})

    @classmethod
    def create(cls, architecture: str, labels: Labels, preprocess: Preprocess | None = None, **model_args: Any) -> Recognizer:
        """An untrained one, in training mode; preprocessing is timm's for the architecture unless given. Raises ModelError."""
        model = _build(architecture, len(labels), model_args)
        return cls(model, architecture, preprocess or Preprocess.from_timm(resolve_data_config({}, model=model)), labels, model_args)

    @classmethod
    def load(cls, reference: str | Path) -> Recognizer:
        """Load what `weights.resolve` finds, frozen. Raises ModelError, or UnsafeFileError for a pickle that wants to run code."""
        found = weights.resolve(reference)
        return (_load_artifact(found.path) if found.is_artifact else _load_file(found)).freeze()

    def save(self, folder: Path, overwrite: bool = False, dtype: torch.dtype = torch.float32) -> None:
        """Write an artifact folder, its weights as `dtype`. Raises ExistsError, or ModelError where they would not be finite."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        _refuse_not_finite(tensors, folder)
        with atomic_folder(folder, overwrite) as temporary:
            safetensors.torch.save_file(tensors, temporary / artifact.WEIGHTS)
            artifact.write(self.describe(tensors), temporary)

    def describe(self, tensors: Mapping[str, Tensor] | None = None) -> Description:
        """What recognizer.json says of it; the hash is that of `tensors` where they differ from its own."""
        return Description(
            architecture=self.architecture,
            preprocess=self.preprocess,
            labels=self.labels,
            model_args=self.model_args,
            temperature=self.temperature,
            unknown=self.unknown,
            provenance=self.provenance,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            hash=hash_of(self.model.state_dict() if tensors is None else tensors),
        )

    @property
    def hash(self) -> str:
        """SHA-256 of the weights as they are now, hexadecimal."""
        return hash_of(self.model.state_dict())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def freeze(self) -> Recognizer:
        """Inference: no gradients to the weights, no dropout, fixed statistics. Returns self."""
        return self.requires_grad_(False).eval()

    def unfreeze(self) -> Recognizer:
        """Training. Returns self."""
        return self.requires_grad_(True).train()

    def batch(self, images: Iterable[Image.Image]) -> Tensor:
        """Pictures of mode RGB to what `forward` reads: float32 (B, 3, H, W) on the model's device."""
        pixels = torch.from_numpy(np.stack([self.preprocess.pixels(image) for image in images]))  # (B, H, W, 3)
        return self.preprocess.normalize(pixels.to(self.device))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n) of preprocessed pictures (B, 3, H, W)."""
        return self.model(x)

    def embed(self, x: Tensor) -> Tensor:
        """Pooled embedding (B, D), after the head's norm where there is one."""
        return self._pooled(self.model.forward_features(x))

    def prelogits(self, x: Tensor) -> Tensor:
        """What the last linear layer reads (B, D'); the embedding itself unless the head has a hidden layer."""
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)

    def features(self, images: Tensor | Sequence[Image.Image], stages: Sequence[int] = (0, 1, 2, 3)) -> dict[int | str, Tensor]:
        """Maps (B, C, H/s, W/s) of the stages 0 to 3, where s is 4, 8, 16, 32; from (B, 3, H, W), or from pictures of mode RGB."""
        outputs = self.outputs(images, stages)
        return {stage: outputs[stage] for stage in stages}

    def outputs(self, images: Tensor | Sequence[Image.Image], stages: Sequence[int] = ()) -> dict[int | str, Tensor]:
        """All in one forward pass: `logits`, `embedding`, `prelogits`, and the map of each stage under its number.

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
        """timm's numbers for stages; networks that also halve once count from stride 2."""
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


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values (floats as 32-bit) of tensors, in sorted order, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if not name.endswith(_COUNTER):
            values = tensor.detach().cpu().float().contiguous()
            digest.update(f"{name}\0{tuple(values.shape)}\0".encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


# Loading


def _load_artifact(folder: Path) -> Recognizer:
    described = artifact.read(folder)
    path = folder / artifact.WEIGHTS
    if not path.is_file():
        exported = sorted(file.name for file in folder.glob("model.*"))
        if exported:
            raise ModelError(f"{folder}: an exported model ({', '.join(exported)}) without weights for torch", "choose its --engine")
        raise ModelError(f"{path}: is missing", artifact.DAMAGED)
    model = _build(described.architecture, described.num_classes, described.model_args, folder / artifact.DESCRIPTION)
    _fill(model, _tensors(path), path, described.architecture)
    if hash_of(model.state_dict()) != described.hash:
        raise ModelError(f"{path}: is not the file that {artifact.DESCRIPTION} beside it describes (`hash`)", artifact.DAMAGED)
    return Recognizer(
        model=model,
        architecture=described.architecture,
        preprocess=described.preprocess,
        labels=described.labels,
        model_args=described.model_args,
        temperature=described.temperature,
        unknown=described.unknown,
        provenance=described.provenance,
    )


def _load_file(found: weights.Found) -> Recognizer:
    tensors = _tensors(found.path)
    architecture = found.architecture or weights.DEFAULT
    if found.architecture == weights.PACKAGED and found.path == weights.packaged_file():
        tensors = _in_order(_build(architecture, 1000, {}), tensors, found.path)
    count = _classes(architecture, tensors, found)
    model_args = found.config.get("model_args") or {}
    model = _build(architecture, count, model_args, found.path)
    _fill(model, tensors, found.path, architecture, guessed=found.architecture is None)
    config = dict(model.pretrained_cfg) | dict(found.config.get("pretrained_cfg") or {})
    return Recognizer(
        model=model,
        architecture=architecture,
        preprocess=Preprocess.from_timm(resolve_data_config({}, pretrained_cfg=config)),
        labels=_labels(config | found.config, count, found),
        model_args=model_args,
        provenance={"source": found.source, "licence": config.get("license") or ""},
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    contents, _ = stored.read(path)
    return stored.state_dict(path, contents)


def _in_order(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors under the model's names; the other implementation names them differently but in the same order."""
    own, theirs = ([name for name in names if not name.endswith(_COUNTER)] for names in (model.state_dict(), tensors))
    if len(own) != len(theirs):
        raise ModelError(f"{path}: {len(theirs)} tensors instead of {len(own)}", stored.DAMAGED)
    return {name: tensors[other] for name, other in zip(own, theirs, strict=True)}


def _classes(architecture: str, tensors: Mapping[str, Tensor], found: weights.Found) -> int:
    """Number of classes: what config.json says, else the rows of the file's last layer, else those of timm's weights."""
    said = found.config.get("num_classes") or (found.config.get("pretrained_cfg") or {}).get("num_classes")
    config = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    last = tensors.get(f"{config.classifier}.weight") if config and isinstance(config.classifier, str) else None
    count = said or (len(last) if last is not None and last.ndim else config.num_classes if config else 1000)
    if not isinstance(count, int) or not 0 < count <= 10**6:
        raise ModelError(f"{found.path}: {count!r} is no number of classes", "give a whole classifier, not a feature extractor")
    return count


def _labels(config: Mapping[str, Any], count: int, found: weights.Found) -> Labels:
    names = config.get("label_names")
    subset = infer_imagenet_subset({"num_classes": count})
    if isinstance(names, (list, tuple)) and len(names) == count:
        described = config.get("label_descriptions") or {}
        return Labels(tuple(str(described.get(name, name)) if isinstance(described, dict) else str(name) for name in names))
    if subset:
        return imagenet(subset)
    warn(f"{found.path}: says nothing of its {count} classes; they are numbered")
    return Labels(tuple(f"class {index}" for index in range(count)))


def _build(architecture: str, num_classes: int, model_args: Mapping[str, Any], path: Path | None = None) -> Any:
    """An untrained timm model. Raises ModelError; nothing is fetched, whatever a file's description asks for."""
    where = f"{path}: " if path else ""
    if not timm.is_model(architecture):
        raise ModelError(f"{where}{architecture!r:.80} is no timm model", "`femtobooth models` lists what can be used")
    forbidden = sorted(set(model_args) & {*inspect.signature(timm.create_model).parameters, "num_classes"})
    if forbidden:
        raise ModelError(f"{where}model_args must not hold {', '.join(forbidden)}", artifact.DAMAGED)
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=num_classes, **model_args)
    except Exception as error:  # whatever timm makes of arguments it cannot use
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ModelError(f"{where}{architecture} cannot be built with {dict(model_args)} ({first})", artifact.DAMAGED) from None


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, architecture: str, guessed: bool = False) -> None:
    """Load all tensors strictly. Raises ModelError naming the first ones that do not fit."""
    own = model.state_dict()
    wrong = _mismatches(own, tensors)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if wrong and convert:  # timm's own reading of older and foreign layouts
        with suppress(Exception):
            converted = convert(dict(tensors), model)
            if not _mismatches(own, converted):
                tensors, wrong = converted, []
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        way_out = "give the weights of this architecture"
        if guessed:
            way_out = "put the hub's config.json beside it, or name the file after its architecture, such as convnext_femto.safetensors"
        raise ModelError(f"{path}: not the weights of {architecture}: {'; '.join(wrong[:3])}{more}", way_out)
    _refuse_not_finite(tensors, path)
    model.load_state_dict({name: tensors.get(name, own[name]) for name in own})


def _mismatches(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    found = []
    for name, tensor in own.items():
        if name.endswith(_COUNTER):
            continue
        if name not in given:
            found.append(f"{name} is missing")
        elif given[name].shape != tensor.shape:
            found.append(f"{name} is {tuple(given[name].shape)} instead of {tuple(tensor.shape)}")
        elif given[name].is_floating_point() != tensor.is_floating_point():
            found.append(f"{name} holds {given[name].dtype} instead of {tensor.dtype}")
    return found + [f"{name} has no place" for name in given if name not in own and not name.endswith(_COUNTER)]


def _refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{path}: {name} holds NaN or infinite values", "take an earlier or another copy of the weights")
