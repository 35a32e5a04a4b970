"""What programs call: the commands as functions with typed results, and what a run or a recognizer is good for.

Settings are keyword arguments under their own names, groups of them as mappings:

    personalize(photos="my-dog", class_noun="dog", training={"steps": 400})

They are checked as the command line checks them. What cannot be done raises a kind of FemtoboothError, whose text names
the setting. Nothing is printed but inside `showing_progress`, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import config
from .core.config import Model
from .core.errors import ModelError, SettingsError
from .given import PathLike, many, of_photos, opened, plain
from .results import Classification, Embeddings, Export, Guess

if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline
    from PIL import Image

    from .generator.families.family import Family
    from .generator.run import PersonalizedRun, Subject
    from .recognizer.finetuning.run import FinetunedRun
    from .recognizer.inference.outputs import Row
    from .recognizer.model.backbone import Recognizer as Network
    from .recognizer.model.engine import Engine


# --- the generator


class Generator:
    """A Stable Diffusion that generates pictures: a personalized one, of which `run` tells, or any base."""

    def __init__(self, reference: str, run: PersonalizedRun | None = None) -> None:
        self.reference = reference
        """Where the model lies, or what it is called."""
        self._run = run
        self._loaded: tuple[tuple[str | None, ...], Family] | None = None

    @classmethod
    def load(cls, model: PathLike) -> Generator:
        """Find a run of personalize, a model folder, a single file, a hub id, or `bundled`. Raises ModelError."""
        from .core.run import is_run
        from .generator import locate

        reference = os.fspath(model)
        locate.locate(reference)
        return open_run(reference) if is_run(Path(reference)) else cls(reference)

    @property
    def run(self) -> PersonalizedRun:
        """The run that personalized it, as its run.json says: status, settings, subjects, verdict, ...

        Raises ModelError for a base.
        """
        if self._run is None:
            raise ModelError(f"{self.reference}: a base, which has learned no subject", "personalize it")
        return self._run

    @property
    def folder(self) -> Path:
        """Where the model lies: in diffusers' layout, or a LoRA's files. Raises ModelError for a single file."""
        from .generator import locate

        path = locate.locate(self.reference)
        if path.is_file():
            raise ModelError(f"{self.reference}: a single file", "femtobooth convert makes a folder of it")
        return path

    @property
    def subjects(self) -> dict[str, Subject]:
        """What it was taught, by name: V where there is one subject without any. Raises ModelError for a base."""
        return self.run.subjects

    @property
    def token(self) -> str:
        """The word that stands for the subject, such as sks. Raises ModelError for a base, and for several subjects."""
        return self.run.subject.token

    @property
    def class_noun(self) -> str:
        """What the subject is: dog, toy, backpack. Raises ModelError for a base, and for several subjects."""
        return self.run.subject.class_noun

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> list[Image.Image]:
        """Generate pictures; `[V]` in a prompt stands for the subject, `[V:name]` for one of several.

        Settings are those of `femtobooth generate`: count, seed, batch_size, size, loras, init_image, strength,
        mask, precision, device, sampling={"sampler", "steps", "guidance", "guidance_rescale", "negative", "tiles"}.
        Returns `count` pictures for each prompt, of mode RGB, in order of prompts, then seeds. The model stays loaded
        for the next call. With `out` they are also written into that folder, each with the record of how it was made.
        """
        from PIL import Image

        from .generator.settings import GenerateSettings
        from .workflows import generate as workflow

        found = _settings(GenerateSettings, {"run": self.reference, "prompts": many(prompts), **settings})
        if found.out:
            made = workflow.run(found)
            return [Image.open(Path(made["folder"]) / one["file"]).convert("RGB") for one in made["images"]]
        key = (found.tokenizer, found.precision, found.device, *found.loras)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = (key, workflow.load(found)[0])
        return [Image.fromarray(picture) for picture in workflow.pictures(found, self._loaded[1])]

    def pipeline(self, **options: Any) -> DiffusionPipeline:
        """Load the model as a pipeline of diffusers, in which the subject is called by its `token`; a LoRA is merged
        into its base.

        `options` go to `DiffusionPipeline.from_pretrained`, such as `torch_dtype=torch.float16`; without that one
        the weights are fp32, in whatever format they lie there.
        """
        import torch
        from diffusers import DiffusionPipeline

        from .core.files import read_object
        from .generator import locate
        from .generator.load import load

        options = {"torch_dtype": torch.float32, "local_files_only": True} | options
        if locate.adapter_in(self.folder) is not None:
            return load(self.reference).pipeline().to(options["torch_dtype"])
        left_out = [name for name, of in read_object(self.folder / locate.INDEX).items() if of == [None, None]]
        return DiffusionPipeline.from_pretrained(self.folder, **dict.fromkeys(left_out), **options)


def personalize(
    photos: PathLike | Sequence[PathLike] | Mapping[str, Any] | None = None,
    class_noun: str | None = None,
    **settings: Any,
) -> Generator:
    """Teach a Stable Diffusion one subject from 3 to 5 photos (DreamBooth), or several at once.

    `photos` are files and folders, or the whole group (`{"paths": [...], "crop": "subject"}`). Several stand in
    `subjects` instead, by name: `subjects={"rex": "photos/rex:dog", "mug": {"paths": [...], "class_noun": "mug"}}`.
    Further settings are those of `femtobooth personalize`: base, name, runs, training={"steps": ...}, prior={...}, ...
    Of several processes that a launcher started each returns the same, of a run on the disk of the first.
    Raises PhotoError, SettingsError, ModelError and further InputError kinds before anything is written.
    """
    from .generator.settings import PersonalizeSettings
    from .workflows import personalize as workflow

    found = _settings(PersonalizeSettings, {**of_photos(photos, class_noun), **settings})
    if found.plan:
        raise SettingsError("`plan`: trains nothing, and this returns what was trained", "use `femtobooth.plan`")
    run = workflow.run(found)
    return Generator(str(run.folder), run)


def plan(
    photos: PathLike | Sequence[PathLike] | Mapping[str, Any] | None = None,
    class_noun: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Say what `personalize` would need of memory with the same arguments; nothing is trained, no weights are loaded.

    Returns the bytes of every part (`parts`) and phase (`phases`), the most of them (`peak`), and, with a `memory` to
    fit into such as "8GiB", whether it `fits` or the cheapest `savings` with which it does. Raises SettingsError where
    nothing does.
    """
    from .generator.settings import PersonalizeSettings
    from .workflows import plan as workflow

    return workflow.run(_settings(PersonalizeSettings, {**of_photos(photos, class_noun), **settings, "plan": True}))


def open_run(folder: PathLike) -> Generator:
    """Open a finished run of personalize. Raises ModelError where there is none."""
    from .generator.run import PersonalizedRun

    place = os.fspath(folder)
    run = PersonalizedRun.open_finished(place, instead="Recognizer.load opens a run of finetune")
    return Generator(place, run)


# --- the recognizer


class Recognizer:
    """An image classifier, whatever runs it: weights in PyTorch, or an export in its own runtime."""

    def __init__(self, engine: Engine, reference: str) -> None:
        self._engine = engine
        self.reference = reference
        """What it was loaded from."""

    @classmethod
    def load(
        cls, model: PathLike, *, engine: str = "auto", device: str = "auto", threads: int = 1, trust: bool = False
    ) -> Recognizer:
        """Load a recognizer: bundled, a run of finetune, an export, weights, or timm's name of a model.

        `engine` and `device` as of `femtobooth classify`; `threads` are those of one forward pass; `trust` runs a
        TorchScript export, which is a program. Raises ModelError, and UnsafeFileError for a pickle that wants to run
        code.
        """
        from .recognizer.inference.engines import open_engine

        reference = os.fspath(model)
        return cls(open_engine(reference, engine, threads, device, trust=trust), reference)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its classes, in the order of the logits."""
        return tuple(self._engine.labels.names)

    @property
    def runtime(self) -> str:
        """What runs it."""
        return self._engine.name

    @property
    def hash(self) -> str:
        """SHA-256 of its weights, hexadecimal."""
        return self._engine.hash

    def classify(
        self, pictures: PathLike | Image.Image | Sequence[PathLike | Image.Image], top_k: int = 5
    ) -> list[Classification]:
        """Say what pictures show, files or Pillow images; a result for each, in order.

        Raises PhotoError for a file that is no picture. For folders, and for more than fits into memory: `classify`.
        """
        from .recognizer.inference.predict import Batch
        from .recognizer.inference.units import rows_of

        pixels, names = self._pixels(pictures)
        if not len(pixels):
            return []
        errors = (None,) * len(names)
        batch = Batch(tuple(name or "" for name in names), errors, self._engine.run(pixels), others=0)
        rows = rows_of(self._engine, batch, top_k)
        return [_classification(row, name) for row, name in zip(rows, names, strict=True)]

    def embed(self, pictures: PathLike | Image.Image | Sequence[PathLike | Image.Image]) -> np.ndarray:
        """Embed pictures, files or Pillow images: float32 (n, D). Raises PhotoError for a file that is no picture."""
        pixels, _ = self._pixels(pictures)
        outputs = self._engine.run(pixels)
        if "embedding" not in outputs:
            raise ModelError(f"{self.reference}: this export gives no embeddings", "load the weights it was made from")
        return outputs["embedding"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that it reads, in pixels."""
        height, width = self._engine.preprocess.size
        return height, width

    def pixels(self, pictures: PathLike | Image.Image | Sequence[PathLike | Image.Image]) -> np.ndarray:
        """Resize and crop pictures to what it reads: uint8 (n, H, W, 3). Raises PhotoError for what is no picture."""
        return self._pixels(pictures)[0]

    def outputs(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Run it on what `pixels` gave: float32 `logits` (n, C) and, where it gives one, `embedding` (n, D); calibrated
        `probabilities` (n, C), which sum to 1 in each group of labels; `label` (n), the likeliest of the first group.
        """
        found = self._engine.run(pixels)
        probabilities = self._engine.labels.probabilities(found["logits"], self._engine.temperature)
        return {"label": self._engine.labels.top(probabilities, 1)[0][:, 0], "probabilities": probabilities, **found}

    def network(self) -> Network:
        """Load its weights as a `torch.nn.Module` (frozen), of which timm's model is `.model`.

        It has `features(images)`: the maps of the stages at strides 4, 8, 16 and 32. Raises ModelError for an export.
        """
        from .recognizer.model.backbone import Recognizer as Loaded

        return Loaded.load(self.reference)

    def _pixels(
        self, pictures: PathLike | Image.Image | Sequence[PathLike | Image.Image]
    ) -> tuple[np.ndarray, list[str | None]]:
        """Give what the engine reads, uint8 (n, H, W, 3), and the files' names."""
        import numpy as np
        from PIL import Image

        preprocess = self._engine.preprocess
        several = [pictures] if isinstance(pictures, str | os.PathLike | Image.Image) else list(pictures)
        pixels = [preprocess.pixels(opened(one)) for one in several]
        names = [None if isinstance(one, Image.Image) else os.fspath(one) for one in several]
        return np.stack(pixels) if pixels else np.empty((0, *preprocess.size, 3), np.uint8), names


def classify(paths: PathLike | Sequence[PathLike], **settings: Any) -> Iterator[Classification]:
    """Say what pictures show: files, folders with all below them, and globs; yields a result for each, in order.

    Settings are those of `femtobooth classify`: model, engine, device, batch_size, workers, shard, top_k, decode.
    Reads as it is asked for results, in constant memory. Raises InputError kinds at once, before the first result.
    """
    from .recognizer.settings import ClassifySettings
    from .workflows import classify as workflow

    _refuse(settings, "classify", ("out", "overwrite", "format", "csv_safe", "executor"))
    rows = workflow.rows(_settings(ClassifySettings, {"paths": many(paths), **settings}))
    return (_classification(row, row["path"]) for row in rows)


def embed(paths: PathLike | Sequence[PathLike], **settings: Any) -> Embeddings:
    """Embed pictures: files, folders with all below them, and globs.

    Settings are those of `femtobooth embed`: model, engine, device, batch_size, workers, shard, decode.
    Raises InputError kinds before anything is read, PhotoError if nothing could be read.
    """
    import numpy as np

    from .recognizer.inference.engines import open_engine
    from .recognizer.inference.reading import Reading
    from .recognizer.settings import EmbedSettings

    _refuse(settings, "embed", ("out", "overwrite", "format", "prelogits", "stages", "executor"))
    found = _settings(EmbedSettings, {"paths": many(paths), **settings})
    reading = Reading(found)
    engine = open_engine(found.model, found.engine, device=found.device, many=reading.many, trust=found.trust)
    good: list[str] = []
    vectors: list[np.ndarray] = []
    errors: dict[str, str] = {}
    for batch in reading.batches(engine):
        if batch.outputs:
            vectors.append(batch.outputs["embedding"])
        for path, error in zip(batch.paths, batch.errors, strict=True):
            if error:
                errors[path] = error
            else:
                good.append(path)
    reading.summary({})
    return Embeddings(tuple(good), np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32), errors)


def finetune(data: PathLike, **settings: Any) -> FinetunedRun:
    """Teach a classifier your classes, from one folder a class or a CSV file.

    Returns the run as its run.json says; `Recognizer.load(run.folder)` loads what it learned. Of several processes that
    a launcher started each returns the same, of a run on the disk of the first.
    Settings are those of `femtobooth finetune`: model, name, runs, probe_only, training={"steps", ...}, augment={...}.
    Raises InputError kinds before anything is written.
    """
    from .recognizer.settings import FinetuneSettings
    from .workflows import finetune as workflow

    return workflow.run(_settings(FinetuneSettings, {"data": data, **settings}))


def export(model: PathLike, **settings: Any) -> Export:
    """Export a recognizer for another runtime, and compare it with the original on real photos.

    Settings are those of `femtobooth export`: format, precision, data, calibration, out, max_drop, parity, ...
    Raises InputError kinds before anything is written, and ParityError where the export strays too far.
    """
    from .recognizer.settings import ExportSettings
    from .workflows import export as workflow

    report = workflow.run(_settings(ExportSettings, {"model": model, **settings}))
    return Export(Path(report["out"]), report["format"], report["precision"], report["status"], report)


# --- what they share


@contextmanager
def showing_progress() -> Iterator[None]:
    """Show on stderr, inside, what the command line shows: notes, tables, progress and warnings.

    Elsewhere notes and warnings go to Python's logging, by the name of femtobooth.
    """
    from .core.console import Terminal
    from .core.events import listening

    with listening(Terminal()):
        yield


def _settings(model: type[Model], given: Mapping[str, Any]) -> Model:
    return config.settle(model, plain(given))


def _refuse(given: Mapping[str, Any], command: str, names: Sequence[str]) -> None:
    """Raise SettingsError for settings of a command's file, which the function does not write."""
    for name in names:
        if name in given:
            raise SettingsError(f"{name}: of what is written, and this returns it", f"use `femtobooth {command}`")


def _classification(row: Row, path: str | None) -> Classification:
    top = tuple(Guess(one["label"], one["confidence"], one["synset"]) for one in row["top"] or ())
    return Classification(path, top, bool(row["rejected"]), row["error"])
