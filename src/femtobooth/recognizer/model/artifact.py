"""A recognizer's folder: its weights, and recognizer.json, which says all that tensors cannot.

    model.safetensors    timm's state dict (an exported artifact has model.onnx or another format instead)
    recognizer.json      what `Description` holds
    rejection.safetensors  arrays of the rejection of out-of-distribution pictures, where there is one

Importing it needs neither torch nor timm, so that exported models can run without them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import ModelError
from .labels import Labels
from .preprocess import Preprocess

FORMAT, MULTI_LABEL = 1, 2
"""Versions of recognizer.json: one label a picture, or several, which earlier versions would take for one."""
DESCRIPTION = "recognizer.json"
WEIGHTS = "model.safetensors"
REJECTION = "rejection.safetensors"
OLDER = {"rejection": "unknown", REJECTION: "unknown.safetensors"}
"""What older versions called a key and a file; both are read."""
DAMAGED = "copy or make it again"


@dataclass(frozen=True)
class Description:
    """What recognizer.json says."""

    architecture: str
    """timm's name, with or without a tag: convnext_femto.d1_in1k."""
    preprocess: Preprocess
    labels: Labels
    model_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `timm.create_model` that shape the network."""
    temperature: float = 1.0
    """Logits are divided by it before the softmax."""
    rejection: dict[str, Any] | None = None
    """How out-of-distribution pictures are told: numbers, texts and numpy arrays (float32); None if they are not."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """licence, source, trained_on (SHA-256 of each training picture's file); of an export also `export`: format,
    precision, normalizes, \
source_hash and, in 8 bits, activation_ranges (photos and sha256: how many photos set them, and the SHA-256 of their
files).
    """
    parameters: int = 0
    """Number of trained values."""
    hash: str = ""
    """SHA-256 of the weights as 32-bit floats, hexadecimal."""

    @property
    def num_classes(self) -> int:
        return len(self.labels)


def write(description: Description, folder: Path) -> None:
    """Write recognizer.json (and rejection.safetensors) into a folder under construction."""
    rejection = description.rejection
    arrays = {
        name: np.ascontiguousarray(value, np.float32)
        for name, value in (rejection or {}).items()
        if isinstance(value, np.ndarray)
    }
    if arrays:
        import safetensors.numpy

        safetensors.numpy.save_file(arrays, folder / REJECTION)
    value = {
        "format": MULTI_LABEL if description.labels.free else FORMAT,
        "architecture": description.architecture,
        "num_classes": description.num_classes,
        "parameters": description.parameters,
        "model_args": description.model_args,
        "preprocess": description.preprocess.to_dict(),
        "labels": description.labels.to_dict(),
        "temperature": description.temperature,
        "rejection": None if rejection is None else {k: part for k, part in rejection.items() if k not in arrays},
        "provenance": description.provenance,
        "hash": description.hash,
    }
    (folder / DESCRIPTION).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> Description:
    """Read and check recognizer.json. Raises ModelError naming the file and what is wrong in it."""
    path = folder / DESCRIPTION
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror})", "give a folder that femtobooth's finetune or export made"
        ) from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without end
        raise ModelError(f"{path}: damaged ({error})", DAMAGED) from None
    if not isinstance(value, dict) or value.get("format") not in (FORMAT, MULTI_LABEL):
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise ModelError(
            f"{path}: format {found!r} is not one that this femtobooth reads ({FORMAT}, {MULTI_LABEL})",
            "update femtobooth, or make it again",
        )
    if "rejection" not in value and OLDER["rejection"] in value:
        value["rejection"] = value.pop(OLDER["rejection"])
    kinds: dict[str, Any] = {
        **dict.fromkeys(("preprocess", "labels", "model_args", "provenance"), dict),
        **dict.fromkeys(("architecture", "hash"), str),
        **dict.fromkeys(("num_classes", "parameters"), int),
        "temperature": (int, float),
        "rejection": (dict, type(None)),
    }
    for name, kind in kinds.items():
        if name not in value or not isinstance(value[name], kind):
            what = "is missing" if name not in value else f"cannot be {value[name]!r:.60}"
            raise ModelError(f"{path}: `{name}` {what}", DAMAGED)
    try:
        preprocess, labels = Preprocess.from_dict(value["preprocess"]), Labels.from_dict(value["labels"])
    except ModelError as error:
        raise ModelError(f"{path}: {error.problem}", DAMAGED) from None
    if len(labels) != value["num_classes"]:
        raise ModelError(f"{path}: {value['num_classes']} classes, but {len(labels)} labels", DAMAGED)
    temperature = float(value["temperature"])
    if not math.isfinite(temperature) or temperature <= 0:
        raise ModelError(f"{path}: `temperature` must be above 0, not {temperature}", DAMAGED)
    return Description(
        architecture=value["architecture"],
        preprocess=preprocess,
        labels=labels,
        model_args=value["model_args"],
        temperature=temperature,
        rejection=None if value["rejection"] is None else value["rejection"] | _arrays(folder),
        provenance=value["provenance"],
        parameters=value["parameters"],
        hash=value["hash"],
    )


def ranges_from(provenance: Mapping[str, Any]) -> frozenset[str]:
    """List the SHA-256 of the photos that set an export's 8-bit ranges, as far as it says."""
    export = provenance.get("export") or {}
    set_by = export.get("activation_ranges") or export.get("calibration") or {}  # as older versions called them
    return frozenset(set_by.get("sha256") or ())


def _arrays(folder: Path) -> dict[str, Any]:
    """Return the arrays of the rejection, {} where there are none."""
    path = next((path for name in (REJECTION, OLDER[REJECTION]) if (path := folder / name).is_file()), None)
    if path is None:
        return {}
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # the library's own error type, and struct or UTF-8 errors
        raise ModelError(f"{path}: damaged or cut off ({error})", DAMAGED) from None
