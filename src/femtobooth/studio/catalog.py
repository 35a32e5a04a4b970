"""The models that are here: what can be a base, what can generate, what recognizes; each with what stands for it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from ..core.names import shown
from ..core.run import Run
from ..generator import available, locate
from ..generator.families import known
from ..generator.formats.weight_files import header
from ..recognizer.model import weights
from .library import Library, Stamp, id_of, stamp_of
from .uploads import Uploads

KEEP = 30.0  # seconds after which caches are looked at again
LITE = "EfficientNet-Lite0"
OF_ADAPTERS = re.compile(r"(^|[._])(lora|hada|lokr|oft)[._]")
"""In the names of an adapter's tensors, in whatever layout, and of no model's."""


class Model(BaseModel):
    """A model that is here."""

    reference: str
    """What stands for it in settings."""
    title: str
    kind: Literal["base", "generator", "adapter", "recognizer"]
    """generator: a run of personalize whose model is whole; adapter: one whose model is a LoRA."""
    source: str
    """Where it comes from: built in, run, models/, upload, hub cache."""
    run_id: str | None = None
    class_noun: str | None = None
    """What the subject of a generator is."""


class Catalog:
    """Lists what is here; hub caches are read again after `KEEP` seconds."""

    def __init__(self, library: Library, uploads: Uploads) -> None:
        self.library, self.uploads = library, uploads
        self.folder = library.folder
        self._lock, self._read, self._cached = threading.Lock(), 0.0, list[Model]()

    def models(self) -> list[Model]:
        """List everything: what is built in or came with a package, runs (the newest first), FOLDER/models/, uploads,
        then what hub caches hold.
        """
        return [*BUILT_IN, *_packaged(), *self._runs(), *self._placed(), *self._sent(), *self._hub()]

    def known(self, reference: str) -> bool:
        """Tell whether a name stands for a model of the hub's cache."""
        return any(one.reference == reference for one in self._hub())

    def _runs(self) -> Iterator[Model]:
        for run in self.library.runs():
            if found := self._of_run(run):
                yield found

    def _of_run(self, run: Run) -> Model | None:
        model = run.folder / "model"
        title, run_id = self.library.title(run), id_of(run.folder.name)
        if run.kind == "finetune" and any(model.glob("*.safetensors")):
            return Model(reference=f"run:{run_id}", title=title, kind="recognizer", source="run", run_id=run_id)
        if run.kind != "personalize" or not locate.is_model(model):
            return None
        photos = run.settings.get("photos")
        noun = photos.get("class_noun") if isinstance(photos, dict) else None
        kind: Literal["adapter", "generator"] = "adapter" if locate.adapter_in(model) else "generator"
        return Model(reference=f"run:{run_id}", title=title, kind=kind, source="run", run_id=run_id, class_noun=noun)

    def placed(self, model_id: str) -> Path | None:
        """Find what somebody put into FOLDER/models/, by its id."""
        return next((path for path in available.placed(self.folder) if id_of(path.name) == model_id), None)

    def _placed(self) -> Iterator[Model]:
        for path in available.placed(self.folder):
            reference = f"model:{id_of(path.name)}"
            yield Model(reference=reference, title=shown(path.name), kind=_kind(path), source="models/")

    def _sent(self) -> Iterator[Model]:
        for one in self.uploads.listed():
            if one.kind == "model":
                kind = _kind(self.uploads.path(one))
                yield Model(reference=one.in_settings(), title=one.name, kind=kind, source="upload")

    def _hub(self) -> list[Model]:
        with self._lock:
            if time.monotonic() - self._read > KEEP or not self._read:
                self._cached, self._read = list(in_hub_cache()), time.monotonic()
            return self._cached


BUILT_IN = (
    Model(reference=locate.BUNDLED, title="bundled", kind="base", source="built in"),
    Model(reference=locate.BUNDLED, title="bundled", kind="recognizer", source="built in"),
)


@cache
def _packaged() -> list[Model]:
    """Find the recognizer of photographs that another package brought along."""
    name = weights.PACKAGED.partition(".")[0]
    return [Model(reference=name, title=LITE, kind="recognizer", source="built in")] if weights.packaged_file() else []


def _kind(path: Path) -> Literal["base", "adapter"]:
    """Tell what somebody brought: a whole model, or a file that is an adapter."""
    stamp = stamp_of(path) if path.is_file() else None
    return "adapter" if stamp and _holds_adapter(path, stamp) else "base"


@lru_cache(maxsize=512)
def _holds_adapter(path: Path, stamp: Stamp) -> bool:
    """Tell by the names of its tensors whether a .safetensors file is an adapter; it is read again once it changed."""
    return any(OF_ADAPTERS.search(name) for name in header(path))


def in_hub_cache() -> Iterator[Model]:
    """Find the whole bases and timm's recognizers in the local hub cache."""
    from huggingface_hub import constants

    for name, folder in available.in_hub_cache():
        if any(any((folder / part).glob("*.safetensors")) for part in known.DENOISERS):
            yield Model(reference=name, title=name, kind="base", source="hub cache")
    for place in sorted(Path(constants.HF_HUB_CACHE).glob("models--timm--*")):
        if any(place.glob("snapshots/*/model.safetensors")):
            name = place.name.removeprefix("models--timm--")
            yield Model(reference=name, title=name, kind="recognizer", source="hub cache")
