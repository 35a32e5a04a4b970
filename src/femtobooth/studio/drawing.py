"""Answer with models that stay loaded: what `generate`, `classify`, `embed` and `search` do, within a request."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..core import machine
from ..core.errors import SettingsError
from ..core.files import timestamp
from ..core.names import shown
from ..core.run import is_run
from ..generator import lora_reference
from ..generator.settings import GenerateSettings
from . import forms
from .desk import Desk
from .library import id_of
from .references import resolve
from .refusals import Missing, Refusal
from .uploads import Upload
from .warm import GUESS, Pool, Turns, fingerprint

if TYPE_CHECKING:
    from PIL import Image

    from ..api import Recognizer
    from ..generator.families.family import Family

MOST_PICTURES = 64
"""Pictures of one request."""
MOST_AREA = 2048 * 2048
MOST_BATCH = 2**22
"""Pixels of one batch."""
MOST_STEPS = 250
MOST_CLASSIFIED = 64
_DATA = re.compile(r"(?:data:image/[\w.+-]+;base64,)?", re.ASCII)


class Drawn(BaseModel):
    """A picture that was made."""

    url: str
    """Where its PNG is, which carries the record of how it was made."""
    file: str
    prompt: str
    seed: int
    sha256: str
    """Of the PNG."""


class Drawing(BaseModel):
    """What a request to generate came to."""

    images: list[Drawn]
    model_hash: str
    width: int
    height: int
    seconds: float
    notes: list[str] = []


class Drawer:
    """Draws and looks."""

    def __init__(self, desk: Desk, private: Path, budget: int) -> None:
        self.desk, self.folder, self.pool, self.turns = desk, private / "drawn", Pool(budget), Turns()
        self.chosen = "bundled"
        """The model that clients of A1111's API draw with, which knows one at a time."""

    # --- generate

    def draw(self, given: Mapping[str, Any]) -> tuple[Drawing, list[Path]]:
        """Generate pictures as the command line does, and write them where it would; returns where they lie too.

        Raises SettingsError and other InputError kinds, Busy where many wait.
        """
        resolved = resolve(GenerateSettings, given, self.desk.path_of)
        run = resolved.get("run")
        of_run = isinstance(run, str) and is_run(Path(run))
        if not of_run:
            resolved["out"] = str(self.folder / f"{timestamp()}-{secrets.token_hex(3)}")
        checked, notes = forms.check("generate", resolved)
        assert isinstance(checked, GenerateSettings)  # noqa: S101
        refuse_much(checked)
        began = time.monotonic()
        with self.turns.mine(notes), self._generator(checked) as model:
            from ..workflows.generate import write

            made = write(checked, model)
        folder = Path(made["folder"])
        images = []
        for one in made["images"]:
            where = id_of(folder.joinpath(one["file"]).relative_to(str(run) if of_run else self.folder).as_posix())
            url = f"/api/v1/runs/{id_of(Path(str(run)).name)}/artifacts/{where}" if of_run else f"/api/v1/drawn/{where}"
            images.append(Drawn(url=url, **{name: one[name] for name in ("file", "prompt", "seed", "sha256")}))
        width, height = map(int, str(made["settings"]["size"]).split("x"))
        drawing = Drawing(
            images=images,
            model_hash=made["model"]["hash"],
            width=width,
            height=height,
            seconds=round(time.monotonic() - began, 3),
            notes=[shown(note) for note in notes],
        )
        return drawing, [folder / one["file"] for one in made["images"]]

    @contextmanager
    def _generator(self, settings: GenerateSettings) -> Iterator[Family]:
        from ..workflows.generate import load

        loras = [lora_reference.parse(one)[0] for one in settings.loras]
        files = fingerprint(settings.run, settings.tokenizer, *loras)
        device = str(machine.device(settings.device))
        key = ("generator", settings.run, settings.tokenizer, settings.precision, device, *settings.loras, files)
        with self.pool.using(key, lambda: load(settings)[0], _bytes_of) as model:
            yield model

    # --- recognize

    def classify(self, pictures: Sequence[str], model: str = "bundled", top_k: int = 5) -> list[dict[str, Any]]:
        """Say what pictures show. Raises InputError kinds, Busy where many wait."""
        opened = self.opened(pictures)
        with self.recognizer(model) as recognizer:
            found = recognizer.classify(opened, top_k)
        return [
            {
                "top": [{"label": one.label, "confidence": one.confidence, "synset": one.synset} for one in each.top],
                "rejected": each.rejected,
            }
            for each in found
        ]

    def embed(self, pictures: Sequence[str], model: str = "bundled") -> list[list[float]]:
        """Embed pictures. Raises InputError kinds, Busy where many wait."""
        opened = self.opened(pictures)
        with self.recognizer(model) as recognizer:
            found: list[list[float]] = recognizer.embed(opened).tolist()
        return found

    @contextmanager
    def recognizer(self, reference: str) -> Iterator[Recognizer]:
        """Yield a recognizer by its reference, when its turn has come."""
        from ..api import Recognizer
        from ..recognizer.settings import ClassifySettings

        path = resolve(ClassifySettings, {"model": reference}, self.desk.path_of)["model"]
        place = Path(path)
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) if place.is_dir() else GUESS
        key = ("recognizer", path, fingerprint(path))
        with self.pool.using(key, lambda: Recognizer.load(path), lambda _: size) as recognizer:
            yield recognizer

    def opened(self, pictures: Sequence[str]) -> list[Image.Image]:
        """Open pictures: upload:ID, or the bytes of a file in base64. Raises Refusal."""
        from PIL import Image

        if not 0 < len(pictures) <= MOST_CLASSIFIED:
            raise Refusal(f"{len(pictures)} pictures", f"give 1 to {MOST_CLASSIFIED}", 422)
        found = []
        for picture in pictures:
            upload = self.upload(picture)
            path = self.desk.uploads.path(upload)
            try:
                with Image.open(path, formats=["PNG"]) as image:
                    found.append(image.convert("RGB"))
            finally:
                if not picture.startswith("upload:"):
                    self.desk.uploads.remove(upload, for_good=True)
        return found

    def upload(self, picture: str) -> Upload:
        """Find a picture that was sent, or take one that comes in base64 now. Raises Refusal."""
        if picture.startswith("upload:"):
            upload = self.desk.uploads.get(picture.removeprefix("upload:"))
            if upload is None or upload.kind != "picture":
                raise Missing("picture")
            return upload
        start = _DATA.match(picture)
        try:
            body = base64.b64decode(picture[start.end() if start else 0 :], validate=True)
        except (binascii.Error, ValueError):
            raise Refusal("a picture is neither upload:ID nor base64", "send its file's bytes in base64", 422) from None
        with NamedTemporaryFile(dir=self.desk.uploads.folder, prefix=".tmp-", delete=False) as file:
            path = Path(file.name)
            try:
                file.write(body)
                file.flush()
                return self.desk.uploads.add_picture(path, "picture.png")
            finally:
                path.unlink(missing_ok=True)

    def search(self, pictures: Sequence[str], index: str, top_k: int = 10) -> list[dict[str, Any]]:
        """Find the pictures of an index that are nearest to others. Raises InputError kinds, Busy where many wait."""
        from ..recognizer.settings import SearchSettings
        from ..workflows.search import run

        if not 0 < len(pictures) <= MOST_CLASSIFIED or not all(one.startswith("upload:") for one in pictures):
            raise Refusal("pictures to search for are named by upload:ID", f"give 1 to {MOST_CLASSIFIED}", 422)
        given = {"query": list(pictures), "index": index, "top_k": top_k}
        resolved = resolve(SearchSettings, given, self.desk.path_of)
        settings = SearchSettings.model_validate(resolved)
        notes: list[str] = []
        with self.turns.mine(notes):
            found = run(settings)["results"]
        names = {str(self.desk.uploads.path(one)): one for one in self.desk.uploads.listed()}

        def told(path: str) -> dict[str, Any]:
            sent = names.get(path)
            return {"name": sent.name if sent else shown(Path(path).name), "upload": sent.id if sent else None}

        return [
            {**told(each["query"]), "nearest": [{**told(one["path"]), **_similarity(one)} for one in each["nearest"]]}
            for each in found
        ]


def _similarity(hit: Mapping[str, Any]) -> dict[str, Any]:
    return {"similarity": hit["similarity"]}


def _bytes_of(model: Family) -> int:
    parts = {id(part): part for part in (*model.trainable.values(), model.vae)}.values()
    return sum(one.numel() * one.element_size() for part in parts for one in part.parameters())


def refuse_much(settings: GenerateSettings) -> None:
    """Raise SettingsError for more than one request may ask for."""
    count = settings.count * len(settings.prompts)
    if count > MOST_PICTURES:
        raise SettingsError(f"`count={settings.count}`: {count} pictures in one request", f"{MOST_PICTURES} at most")
    if settings.sampling.steps > MOST_STEPS:
        steps = f"`sampling.steps={settings.sampling.steps}`"
        raise SettingsError(f"{steps}: too many in one request", f"{MOST_STEPS} at most")
    width, height = settings.pixels(8)
    if width * height > MOST_AREA:
        raise SettingsError(f"`size={settings.size}`: too large for one request", "2048x2048 at most")
    if width * height * min(settings.batch_size, count) > MOST_BATCH:
        raise SettingsError(f"`batch_size={settings.batch_size}`: too many at this `size`", "give a smaller one")
