"""run -> RUN/report.html: the verdict, before and after, nearest photos, curves, settings and cost on one
self-contained page.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core import older_runs
from ..core.errors import ModelError
from ..core.events import artifact, conclude
from ..core.files import read_json, write_text
from ..generator import prior
from ..generator.photos import Photo, in_proportion, shape_counts
from ..generator.prompts import of_templates
from ..generator.run import PersonalizedRun
from ..generator.settings import PersonalizeSettings
from ..judging import memorization, verdict
from ..judging.memorization import Nearest
from ..pages.run import run_page, warnings
from ..pages.trained_run import ClassImages, Samples, TrainedRun
from ..pictures.crops import Shape
from ..pictures.images import Picture, decode, find_pictures
from ..pictures.masks import without_masks
from .settings import ReportSettings

SHOWN_CLASS_IMAGES = 12  # class images of a prompt that are shown


def run(settings: ReportSettings) -> dict[str, Any]:
    """Write the report of a personalize run; returns what `write` does."""
    return write(Path(settings.run))


def write(folder: Path) -> dict[str, Any]:
    """Write the report of a personalize run, finished or not; an older report is replaced.

    Returns report (its path), bytes, verdict, pictures (of the subject), near_copies and warnings. Raises ModelError
    where `folder` is no such run, PhotoError where its photos are missing or damaged.
    """
    trained = _opened(folder)
    page = run_page(trained)
    target = folder / "report.html"
    write_text(target, page)
    artifact(target, "page")
    conclude(f"report: {target}")
    return {
        "report": str(target),
        "bytes": len(page.encode()),
        "verdict": trained.verdict and trained.verdict.plain(),
        "pictures": len(trained.nearest),
        "near_copies": trained.copies,
        "warnings": warnings(trained),
    }


def _opened(folder: Path) -> TrainedRun:
    run = _run(folder)
    settings, samples = run.made_with(), _samples(folder)
    photos = {name: ours for name, (ours, _) in run.photos_of_each().items()}
    if run.steps in samples:  # what was sampled after the step that became the model is not of it
        samples = {step: shots for step, shots in samples.items() if step <= run.steps}
    return TrainedRun(
        known=run,
        settings=settings,
        photos_of=photos,
        preflight=read_json(folder / "preflight.json") or [],
        samples=samples,
        class_images=_class_images(settings, run, photos),
        metrics=_metrics(folder),
        evaluation=read_json(folder / "evaluation" / "evaluation.json"),
        verdict=verdict.of_run(run),
        verdicts=verdict.of_each(run),
        nearest=_nearest(samples, settings, photos, run),
    )


def _run(folder: Path) -> PersonalizedRun:
    if (folder / "report.html").is_file() and not PersonalizedRun.peek(folder):
        raise ModelError(f"{folder}: not a personalize run", f"its own report is {folder / 'report.html'}")
    return PersonalizedRun.open(folder, instead="give the folder that personalize printed, such as runs/NAME")


def _samples(folder: Path) -> dict[int, Samples]:
    """Read the samples of each step; unreadable ones are left out."""
    steps: dict[int, dict[tuple[int, int], Any]] = {}
    for path in sorted(older_runs.place(folder, "samples").glob("step-*/*-*.png")):
        step, place = re.fullmatch(r"step-(\d+)", path.parent.name), re.fullmatch(r"(\d+)-(\d+)", path.stem)
        if step and place and isinstance(picture := decode(path), Picture):
            steps.setdefault(int(step[1]), {})[int(place[1]), int(place[2])] = picture.image
    return dict(sorted(steps.items()))


def _nearest(
    samples: Mapping[int, Samples],
    settings: PersonalizeSettings,
    photos: Mapping[str, list[Photo]],
    run: PersonalizedRun,
) -> dict[tuple[int, int], Nearest]:
    """Find for each last sample of a subject the training photo of it that it comes nearest to; photos are numbered
    through all subjects.
    """
    last = samples[max(samples)] if samples and max(samples) > 0 else {}
    prompts, first = of_templates(settings.samples.prompts, run.called), 0
    found: dict[tuple[int, int], Nearest] = {}
    for name, one in run.subjects.items():
        token = re.compile(rf"\b{re.escape(one.token)}\b")
        rows = {
            row
            for row, prompt in enumerate(prompts)
            if token.search(prompt.text) and (prompt.of == name or len(run.subjects) == 1)
        }
        places = [place for place in last if place[0] in rows]
        pictures = [np.asarray(last[place]) for place in places]
        near = memorization.nearest(pictures, [photo.pixels for photo in photos[name]]) if places else []
        found |= {place: known._replace(photo=known.photo + first) for place, known in zip(places, near, strict=True)}
        first += len(photos[name])
    return found


def _class_images(
    settings: PersonalizeSettings, run: PersonalizedRun, photos: Mapping[str, list[Photo]]
) -> list[ClassImages]:
    """Read class images from the cache or the user's folder; those that are gone are not generated again for this."""
    if not settings.prior.uses_images:
        return []
    found = []
    counts = in_proportion(shape_counts([photo for some in photos.values() for photo in some]), settings.prior.images)
    for index, prompt in enumerate(prior.prompts(settings.prior, *settings.nouns)):
        if own := settings.prior.folder if index == 0 else None:
            found.append(_shown(prompt, Path(own), None, f"from {own}"))
            continue
        for shape, count in counts.items():
            folder = _cached(prompt, settings, run, shape)
            of_shape = f", {shape[0]}x{shape[1]}" if len(counts) > 1 else ""
            source = f"generated by the base, seeds from {settings.prior.seed}{of_shape}"
            found.append(_shown(prompt, folder, count, source))
    return [one for one in found if one.shown]


def _cached(prompt: str, settings: PersonalizeSettings, run: PersonalizedRun, shape: Shape) -> Path:
    held = settings.train.held
    recipes = [prior.recipe(run.base_hash, known, prompt, settings.prior, shape, held) for known in (True, False)]
    folders = [prior.folder_of(one) for one in recipes]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _shown(prompt: str, folder: Path, count: int | None, source: str) -> ClassImages:
    paths = without_masks(find_pictures([folder])[0])[:count] if folder.is_dir() else []
    images = [picture.image for path in paths[:SHOWN_CLASS_IMAGES] if isinstance(picture := decode(path), Picture)]
    return ClassImages(prompt, images, len(paths), source)


def _metrics(folder: Path) -> list[dict[str, str]]:
    try:
        with (folder / "logs" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return []
    return [{older_runs.column(name): value for name, value in row.items()} for row in rows]
