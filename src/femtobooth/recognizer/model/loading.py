"""A recognizer from its files: a network is built as they describe it, and takes their tensors if every one of them
fits.

Nothing is fetched, and nothing of a file is run. A network is built on the `meta` device first, which costs no memory,
and given up as soon as it is larger than the file could fill.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from ...core import tensors as stored
from ...core.errors import ModelError, first_line
from ...core.events import note, warn
from . import architectures, artifact, weights
from .labels import Labels, imagenet
from .preprocess import Preprocess

CHECKPOINT = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
)  # where timm looks for the tensors of a checkpoint, in its order
AVERAGES = ("ema_model.", "model_ema.", "ema.")
WRAPPERS = (*AVERAGES, "module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")
"""What trainers put before the names of a network, averages of the weights first."""
COUNTER = ".num_batches_tracked"  # BatchNorm's count of training steps: in some files, never used for inference
NO_CLASS = "no class"  # the label of a network without a last layer, which gets one of zeros
LARGEST = (
    2**18
)  # sum of all whole numbers that may shape a network: timm makes lists of such lengths before it makes layers
ROOM = 2.0  # values of a network for each value in the file: layouts of others are unpacked before they fit


def load(found: weights.Found, any_head: bool = False) -> dict[str, Any]:
    """Read the arguments of `Recognizer` for what `weights.resolve` found; `any_head` takes a file whose last layer is
    missing or another one, and a network that has none (num_classes 0). Raises ModelError, or UnsafeFileError.
    """
    return _of_artifact(found.path) if found.is_artifact else _of_file(found, any_head)


def _of_artifact(folder: Path) -> dict[str, Any]:
    described = artifact.read(folder)
    path = folder / artifact.WEIGHTS
    if not path.is_file():
        exported = sorted(file.name for file in folder.glob("model.*"))
        if "model.pt" in exported:
            way_out = "classify, embed and compare run it with `trust=true`, if you know where it is from"
            raise ModelError(
                f"{folder}: a TorchScript artifact, which is a program of whoever made it, and was not run", way_out
            )
        if exported:
            raise ModelError(
                f"{folder}: an exported model ({', '.join(exported)}) without weights for torch",
                "give the model that it was exported from",
            )
        raise ModelError(f"{path}: is missing", artifact.DAMAGED)
    tensors, _ = tensors_of(path)
    model = build(
        described.architecture, described.num_classes, described.model_args, folder / artifact.DESCRIPTION, tensors
    )
    fill(model, tensors, path, described.architecture)
    if hash_of(model.state_dict()) != described.hash:
        raise ModelError(
            f"{path}: is not the file that {artifact.DESCRIPTION} beside it describes (`hash`)", artifact.DAMAGED
        )
    return {
        "model": model,
        "architecture": described.architecture,
        "preprocess": described.preprocess,
        "labels": described.labels,
        "model_args": described.model_args,
        "temperature": described.temperature,
        "rejection": described.rejection,
        "provenance": described.provenance,
    }


def _of_file(found: weights.Found, any_head: bool) -> dict[str, Any]:
    tensors, trained = tensors_of(found.path)
    architecture = found.architecture or trained or weights.DEFAULT
    if found.architecture == weights.PACKAGED and found.path == weights.packaged_file():
        tensors = _in_order(build(architecture, 1000, {}), tensors, found.path)
    config = settled(found, architecture)
    tensors = _without_background(tensors, config)
    model_args = arguments(found, config)
    count = _classes(tensors, config, found, any_head)
    model = build(architecture, count or 1, model_args, found.path, tensors if found.config.architecture else None)
    if any_head:
        tensors = _with_head(model, tensors, found.path)
    fill(model, tensors, found.path, architecture, guessed=not (found.architecture or trained))
    return {
        "model": model,
        "architecture": architecture,
        "preprocess": Preprocess.from_timm(architectures.data_config(config), own_size(model)),
        "labels": _labels(config, count, found) if count else Labels((NO_CLASS,)),
        "model_args": model_args,
        "provenance": {"source": found.source, "licence": config.get("license") or ""},
    }


# What files say


def tensors_of(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read the tensors of a file of weights or of a checkpoint as timm takes them, and the architecture that its
    training named.
    """
    contents, _ = stored.read(path)
    part = next((name for name in CHECKPOINT if isinstance(contents.get(name), dict)), None)
    if part and part.endswith("_ema"):
        note(f"{path}: takes the averaged weights ({part}) of this checkpoint, as timm does")
    trained = contents.get("arch")
    known = trained if isinstance(trained, str) and architectures.is_known(trained) else None
    tensors = stored.state_dict(path, {"state_dict": contents[part]} if part else contents)
    # without what DDP, torch.compile and trainers put before names
    return _unwrapped(architectures.clean_state_dict(tensors), path), known


def _unwrapped(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Take off what trainers put before all names of a network: Lightning's `model.`, averages first, as timm takes
    them; what stands beside the network (losses, metrics, a discriminator) is left out.
    """
    while True:
        prefix = next((one for one in WRAPPERS if _is_most(tensors, one)), None)
        if prefix is None:
            return tensors
        if prefix in AVERAGES:
            note(f"{path}: takes the averaged weights ({prefix}*) of this checkpoint, as timm does")
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _is_most(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    """Tell whether nearly all tensors begin so; of averages, which stand beside what they are of, nearly half."""
    share = 0.4 if prefix in AVERAGES else 0.8
    return sum(name.startswith(prefix) for name in tensors) > share * len(tensors)


def _with_head(model: Any, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Put a last layer of zeros where the file has none that fits, if all else is there as it should be."""
    own, layer = model.state_dict(), model.pretrained_cfg.get("classifier")
    head = tuple(f"{name}." for name in ([layer] if isinstance(layer, str) else layer or ()))
    rest = [name for name in own if not name.startswith(head) and not name.endswith(COUNTER)]
    fits = all(name in tensors and tensors[name].shape == own[name].shape for name in rest)
    if not head or not fits or not _mismatches(own, tensors):
        return dict(tensors)
    left = sorted(name for name in tensors if name not in rest and not name.endswith(COUNTER))
    said = f"; left out: {', '.join(left[:4])}{' ...' if len(left) > 4 else ''}" if left else ""
    note(f"{path}: its last layer is not this network's{said}")
    kept = {name: tensor for name, tensor in tensors.items() if name in own and name not in left}
    return kept | {name: torch.zeros_like(value) for name, value in own.items() if name.startswith(head)}


def settled(found: weights.Found, architecture: str) -> dict[str, Any]:
    """Return timm's description of the weights: of config.json, where there is one, else of what timm knows by this
    name.
    """
    try:
        if found.config.architecture:
            return found.config.settled()
        return dict(architectures.pretrained_config(registered(architecture)).to_dict())
    except (TypeError, ValueError, AttributeError):
        return {}


def arguments(found: weights.Found, config: Mapping[str, Any]) -> dict[str, Any]:
    """Say what shapes the network as config.json says, without the number of classes; of networks of one input size,
    that size too.
    """
    given = {name: value for name, value in found.config.model_args.items() if name != "num_classes"}
    if found.config.architecture and config.get("fixed_input_size"):
        given.setdefault("img_size", list(config["input_size"][-2:]))
    return given


def registered(architecture: str) -> str:
    """Return the name without a tag that timm does not know (of weights that others trained)."""
    try:
        architectures.pretrained_config(architecture)
    except RuntimeError:
        return architecture.partition(".")[0]
    return architecture


def _head(config: Mapping[str, Any], tensors: Mapping[str, Tensor], architecture: str | None) -> str | None:
    """Name of the last layer, as far as it is known and in the file."""
    named = [config.get("classifier")]
    if architecture and architectures.is_known(architecture):
        known = architectures.pretrained_config(registered(architecture))
        named.append(known.classifier if known else None)
    return next((name for name in named if isinstance(name, str) and f"{name}.weight" in tensors), None)


def _classes(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], found: weights.Found, any_head: bool = False
) -> int:
    """Tell the number of classes: what config.json says, else the rows of the file's last layer, else those of timm's
    weights; 0 only with `any_head`.
    """
    described = found.config
    said = described.model_args.get("num_classes", described.pretrained.get("num_classes"))
    head = _head(config, tensors, found.architecture or weights.DEFAULT)
    last = tensors[f"{head}.weight"] if head else None
    rows = len(last) if last is not None and last.ndim else None
    count = rows or config.get("num_classes", 1000) if said is None else said
    if not isinstance(count, int) or not (0 if any_head else 1) <= count <= 10**6:
        raise ModelError(
            f"{found.path}: {count!r} is no number of classes",
            "give a whole classifier; a feature extractor can be fine-tuned, or teach",
        )
    if rows and count != rows:
        raise ModelError(
            f"{found.path}: not the weights of {count} classes, as described: {head}.weight has {rows} rows",
            stored.DAMAGED,
        )
    return count


def _without_background(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Drop the class of no object that comes first in some weights (timm's `label_offset`)."""
    offset, head = config.get("label_offset"), config.get("classifier")
    if not isinstance(offset, int) or offset <= 0 or not isinstance(head, str):
        return tensors
    return tensors | {name: tensors[name][offset:] for name in (f"{head}.weight", f"{head}.bias") if name in tensors}


def _labels(config: Mapping[str, Any], count: int, found: weights.Found) -> Labels:
    names = config.get("label_names")
    subset = architectures.imagenet_subset(count)
    if isinstance(names, (list, tuple)) and len(names) == count:
        described = config.get("label_descriptions") or {}
        return Labels(
            tuple(str(described.get(name, name)) if isinstance(described, dict) else str(name) for name in names)
        )
    if subset:
        return imagenet(subset)
    warn(f"{found.path}: says nothing of its {count} classes; they are numbered")
    return Labels(tuple(f"class {index}" for index in range(count)))


def own_size(model: Any) -> tuple[int, int] | None:
    """Tell the height and width of a network that reads no other; None for those that read any."""
    traits = getattr(model, "_traits", {})
    size = traits.get("img_size") if traits.get("fixed_input_size") else None
    return (int(size[0]), int(size[1])) if size else None


def _in_order(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Put tensors under the model's names; the other implementation names them differently but in the same order."""
    own, theirs = ([name for name in names if not name.endswith(COUNTER)] for names in (model.state_dict(), tensors))
    if len(own) != len(theirs):
        raise ModelError(f"{path}: {len(theirs)} tensors instead of {len(own)}", stored.DAMAGED)
    return {name: tensors[other] for name, other in zip(own, theirs, strict=True)}


# Building and filling


def build(
    architecture: str,
    num_classes: int,
    model_args: Mapping[str, Any],
    path: Path | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Any:
    """Build an untrained timm model, for `tensors` that it should not be far larger than where a file describes it.

    Raises ModelError.
    """
    where = f"{path}: " if path else ""
    if not architectures.is_known(architecture):
        raise ModelError(f"{where}{architecture!r:.80} is no timm model", "`femtobooth models` lists what can be used")
    forbidden = sorted(set(model_args) & {*architectures.own_arguments(), "num_classes"})
    if forbidden:
        raise ModelError(f"{where}model_args must not hold {', '.join(forbidden)}", artifact.DAMAGED)
    name = registered(architecture)
    try:
        if tensors is not None:
            if _sum(model_args) > LARGEST:
                raise _TooLarge
            with torch.device("meta"), stored.Unfilled(), _bounded(tensors):
                architectures.create(name, num_classes=num_classes, **model_args)
        return architectures.create(name, num_classes=num_classes, **model_args)
    except _TooLarge:
        what = f"{architecture} with {dict(model_args)!s:.80} and {num_classes} classes"
        raise ModelError(f"{where}{what} would be far larger than the weights beside it", artifact.DAMAGED) from None
    except Exception as error:  # whatever timm makes of arguments it cannot use
        first = first_line(error)
        raise ModelError(
            f"{where}{architecture} cannot be built with {dict(model_args)!s:.200} ({first})", artifact.DAMAGED
        ) from None


class _TooLarge(Exception):
    pass


def _sum(value: Any) -> int:
    """Add up the whole numbers in a JSON value, without their signs."""
    if isinstance(value, (dict, list, tuple)):
        return sum(map(_sum, value.values() if isinstance(value, dict) else value))
    return abs(value) if isinstance(value, int) else 0


@contextmanager
def _bounded(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Raise _TooLarge once what is built has more layers or values than the tensors could fill."""
    layers, values = 50 * len(tensors) + 1000, ROOM * sum(tensor.numel() for tensor in tensors.values()) + 1e6

    def count_layer(*_: Any) -> None:
        nonlocal layers
        layers -= 1
        if layers < 0:
            raise _TooLarge

    def count_values(_: nn.Module, __: str, value: Tensor | None) -> None:
        nonlocal values
        values -= math.prod(value.shape) if value is not None else 0
        if values < 0:
            raise _TooLarge

    hooks = [
        registration.register_module_module_registration_hook(count_layer),
        registration.register_module_parameter_registration_hook(count_values),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, architecture: str, guessed: bool = False) -> None:
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
            way_out = (
                "put the hub's config.json beside it, or name the file after its "
                "architecture, such as convnext_femto.safetensors"
            )
        raise ModelError(f"{path}: not the weights of {architecture}: {'; '.join(wrong[:3])}{more}", way_out)
    refuse_not_finite(tensors, path)
    model.load_state_dict({name: tensors.get(name, own[name]) for name in own})


def _mismatches(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    found = []
    for name, tensor in own.items():
        if name.endswith(COUNTER):
            continue
        if name not in given:
            found.append(f"{name} is missing")
        elif given[name].shape != tensor.shape:
            found.append(f"{name} is {tuple(given[name].shape)} instead of {tuple(tensor.shape)}")
        elif given[name].is_floating_point() != tensor.is_floating_point():
            found.append(f"{name} holds {given[name].dtype} instead of {tensor.dtype}")
    return found + [f"{name} has no place" for name in given if name not in own and not name.endswith(COUNTER)]


def refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ModelError where a tensor holds NaN or infinite values."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{path}: {name} holds NaN or infinite values", "take an earlier or another copy of the weights"
            )


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash by SHA-256 the names, shapes and values (floats as 32-bit) of tensors, in sorted order, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if not name.endswith(COUNTER):
            values = tensor.detach().cpu().float().contiguous()
            digest.update(f"{name}\0{tuple(values.shape)}\0".encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()
