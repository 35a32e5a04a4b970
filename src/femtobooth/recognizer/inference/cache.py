"""The ONNX export of weights, made once and kept in the cache, so that they run without PyTorch from then on."""

from __future__ import annotations

import hashlib
from importlib import util
from pathlib import Path

import numpy as np

from ...core import cache
from ...core.errors import ModelError, SettingsError, needs
from ...core.events import note
from ...core.files import sha256_of
from ..model import artifact, hub_config, weights
from ..model.formats import FORMATS
from . import runtimes

FORMAT = 1  # counts up when the same weights should be exported anew
PROBES = 16  # pictures on which a cached export must agree with PyTorch


def cached(reference: str | Path) -> Path:
    """Say where the export of what `reference` names is kept, whether or not it is there yet. Raises ModelError."""
    found = weights.resolve(reference)
    names = (artifact.WEIGHTS, artifact.DESCRIPTION, artifact.REJECTION, artifact.OLDER[artifact.REJECTION])
    files = (
        [found.path / name for name in names]
        if found.is_artifact
        else [found.path, found.path.with_name(hub_config.NAME)]
    )
    facts = [str(FORMAT), str(found.architecture), *(sha256_of(file) for file in files if file.is_file())]
    return cache.cache_folder() / "onnx" / hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]


def is_made(reference: str | Path) -> bool:
    """Tell whether the cache holds the export of what `reference` names."""
    return (cached(reference) / FORMATS["onnx"].file).is_file()


def possible() -> bool:
    """Tell whether an export can be made and run here."""
    return all(util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def make(reference: str | Path) -> Path:
    """Export to the cache, if that is not done yet; the folder.

    Raises ModelError where the export does not agree with PyTorch.
    """

    def write(folder: Path) -> None:
        if not possible():
            raise SettingsError(
                f"{reference}: needs onnx, onnxscript and onnxruntime to be run without torch", needs("onnx")
            )
        from ..exporting import graph
        from ..model.backbone import Recognizer

        note(f"exporting {reference} to ONNX, once; the cache keeps it in {place}")
        recognizer = Recognizer.load(reference)
        description = recognizer.describe()
        graph.write_onnx(graph.to_onnx(graph.Graph(recognizer, inside=False)), folder, description)
        artifact.write(description, folder)
        pixels = _probes(description.preprocess.size)
        ours, theirs = (
            engine.run(pixels)["logits"] for engine in (runtimes.onnx(folder, 1), runtimes.of_recognizer(recognizer))
        )
        if not np.array_equal(ours.argmax(1), theirs.argmax(1)) or np.abs(ours - theirs).max() > 1e-3 * max(
            1.0, np.abs(theirs).max()
        ):
            raise ModelError(f"{reference}: its ONNX export does not say what PyTorch says", "use `engine=torch`")

    place = cached(reference)
    return cache.folder(place, write)


def _probes(size: tuple[int, int]) -> np.ndarray:
    """Make seeded pictures, uint8 (B, H, W, 3), from smooth to noisy."""
    random = np.random.default_rng(0)
    height, width = size
    pictures = []
    for index in range(PROBES):
        cells = 2 + index
        blocks = random.integers(0, 256, (cells, cells, 3), np.uint8)
        pictures.append(blocks[np.arange(height) * cells // height][:, np.arange(width) * cells // width])
    return np.stack(pictures)
