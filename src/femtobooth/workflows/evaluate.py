"""run -> pictures by the tuned model and by its base -> scores with floor, ceiling and intervals, each with its
encoder's name.

RUN/evaluation/evaluation.json    every score, setting and warning
               grid.png           photos, then each prompt by the base and by the tuned model
               pictures/          what was generated; generated again only where model, prompt, seed or sampling changed
RUN/report.html                   written anew where there is one, with these scores on it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import locks, machine
from ..core.errors import PhotoError, SettingsError, needs
from ..core.events import conclude, note, progress, progress_bar, table, warn
from ..core.files import atomic_file, sha256_of, write_json
from ..core.metrics import wilson
from ..core.names import restored, shown
from ..core.paths import expanded
from ..generator import locate, sampling
from ..generator.image_cache import generate_missing
from ..generator.load import load
from ..generator.photos import Photo
from ..generator.prompts import bare, names_subject, with_subject
from ..generator.run import PersonalizedRun
from ..generator.settings import PersonalizeSettings
from ..generator.stored_photos import restore_photos
from ..judging import lpips, scores, verdict
from ..judging.encoders import open_encoder, usable
from ..judging.memorization import near_copies
from ..judging.scoring import PHOTOS, Generated, Real, Row, diversity_by_lpips, evidence, measure
from ..pictures.images import Skipped, decode, find_pictures
from ..pictures.masks import without_masks
from ..pictures.sheets import sheet, stacked
from ..pictures.squares import make_square
from . import report
from .settings import EvaluateSettings


@dataclass(frozen=True)
class Against:
    """What pictures are scored against."""

    photos: list[np.ndarray]
    """Photos of the subject, uint8 (size, size, 3)."""
    others: list[np.ndarray]
    """Further ones, for the ceiling; none where `photos` must serve for both."""
    masks: list[np.ndarray | None]
    """Masks of `photos` and then of `others`, where they came with some."""
    hashes: set[str]
    """SHA-256 of every file that they come from, also of those that the run was trained on."""
    held_out: bool
    """Whether none of `photos` was trained on."""
    source: str
    """Where `photos` are from, for people."""


def run(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluate a run; returns what evaluation.json holds. Raises InputError kinds before anything is generated.

    Interrupted, it keeps the finished pictures, and the same command goes on from there.
    """
    run = PersonalizedRun.open_finished(settings.run, "femtobooth evaluate-classifier measures classifiers")
    with locks.held_place(run.folder / "evaluation"):
        return _evaluate(settings, run)


def _evaluate(settings: EvaluateSettings, run: PersonalizedRun) -> dict[str, Any]:
    folder, made_with, noun, size = run.folder, run.made_with(), run.subject.class_noun, run.size
    prompts = [prompt.replace("{class}", noun) for prompt in settings.prompts]
    if not prompts or not all(names_subject(prompt) for prompt in prompts):
        raise SettingsError(
            "prompts: each needs [V], which stands for the subject", 'for example "a [V] {class} on the beach"'
        )
    device = machine.device(settings.device)
    encoders = [open_encoder(name).to(device) for name in dict.fromkeys(settings.encoders or usable())]
    remarks: list[str] = []
    photos = run.photos()
    trained = [photo.pixels for photo in photos]
    real = _real_photos(settings, run, made_with, photos, remarks)
    gallery, others = _gallery(settings, real.hashes, size, made_with.photos.crop)
    own = {sha256_of(path) for path in find_pictures([folder], recursive=True)[0]}
    for encoder in encoders:
        encoder.refuse_trained_on(real.hashes | others)
        encoder.refuse_trained_on(own, "pictures of this run")

    generated, model_hash = _generate(settings, run, made_with, prompts)
    for encoder in encoders:
        encoder.refuse_trained_on([sha256_of(path) for path in generated.files])
    texts = [bare(prompt) for prompt in prompts]
    seen = Real(real.photos, real.others, gallery, real.masks)
    rows = [
        row
        for encoder in progress(encoders, "scoring")
        for row in measure(encoder, seen, generated, texts, settings.region)
    ]
    if settings.count > 1 and lpips.usable():
        rows.append(diversity_by_lpips(generated, device))
    copied, by_base = (
        near_copies(list(one.reshape(-1, *one.shape[2:])), trained) for one in (generated.tuned, generated.base)
    )
    remarks += _remarks(
        settings, [encoder.name for encoder in encoders], any(encoder.texts for encoder in encoders), real, run
    )
    result: dict[str, Any] = {
        "run": str(folder),
        "model_hash": model_hash,
        "token": run.subject.token,
        "class_noun": noun,
        "base": run.base,
        "steps": run.steps,
        "prompts": prompts,
        "pictures": len(copied),
        "photos": len(real.photos),
        "scored_against": real.source,
        "held_out": real.held_out,
        "settings": settings.model_dump(),
        "environment": machine.environment(),
        "verdict": verdict.judge(evidence(rows, copied), bundled=made_with.base == locate.BUNDLED).plain(),
        "near_copies": {
            "count": sum(copied),
            "of": len(copied),
            "share": list(wilson(sum(copied), len(copied))),
            "base": sum(by_base),
        },
        "scores": rows,
        "published": [dict(zip(("name", "dino", "clip_i", "clip_t"), row, strict=True)) for row in scores.PUBLISHED],
        "remarks": remarks,
    }
    _grid(folder / "evaluation" / "grid.png", real.photos, generated, prompts)
    write_json(folder / "evaluation" / "evaluation.json", result)
    _tell(result, folder / "evaluation")
    if (folder / "report.html").is_file():
        report.write(folder)
    return result


def _real_photos(
    settings: EvaluateSettings,
    run: PersonalizedRun,
    made_with: PersonalizeSettings,
    photos: list[Photo],
    remarks: list[str],
) -> Against:
    """Find the photos to score against, cropped and scaled as those of the run:

    `photos`, else those held out, else the run's own.
    """
    folder, trained, masks = run.folder, [photo.pixels for photo in photos], [photo.mask for photo in photos]
    copies, held_out = find_pictures([folder / "photos"])[0], folder / "held_out"
    preflight = json.loads((folder / "preflight.json").read_text(encoding="utf-8"))
    originals = [Path(restored(row["file"])) for row in preflight if row["status"] != "skipped"]
    there = [path for path in originals if path.is_file()]
    known = {sha256_of(path) for path in [*copies, *there]}
    if len(there) < len(originals):
        gone = len(originals) - len(there)
        remarks.append(
            f"{gone} original photos are gone: that no encoder was trained on them is known of the run's copies only."
        )
    if settings.photos:
        paths = without_masks(find_pictures(settings.photos)[0])
        hashes = {sha256_of(path) for path in paths}
        squares = _squares(paths, run.size, made_with.photos.crop)
        of_squares: list[np.ndarray | None] = [None] * len(squares)
        if not squares:
            raise PhotoError(f"`photos={', '.join(settings.photos)}`: no picture in it", "give photos of the subject")
        source = "the photos that were given"
    elif held_out.is_dir():
        kept = restore_photos(held_out)
        squares, of_squares = [photo.pixels for photo in kept], [photo.mask for photo in kept]
        hashes = {sha256_of(path) for path in find_pictures([held_out])[0]}
        source = "photos held out of training"
    else:
        remarks.append(
            "Scored against the photos it was trained on, which flatters it: give others, or hold one out of training."
        )
        return Against(trained, [], masks, known, held_out=False, source="the photos it was trained on")
    seen = sum(near_copies(squares, trained))
    if seen:
        remarks.append(
            f"The run was trained on {seen} of the {len(squares)} photos it is "
            "scored against, or on copies, which flatters it."
        )
    others, of_others = ([], []) if seen else (trained, masks)
    return Against(squares, others, [*of_squares, *of_others], known | hashes, held_out=not seen, source=source)


def _squares(paths: Sequence[Path], size: int, crop: Any) -> list[np.ndarray]:
    """Crop pictures to squares; what cannot be read is named and left out."""
    found = []
    for path in paths:
        picture = decode(path)
        if isinstance(picture, Skipped):
            warn(f"{shown(path)}: {picture.reason}; left out")
        else:
            found.append(np.array(make_square(picture.image, size, crop)[0]))
    return found


def _gallery(
    settings: EvaluateSettings, own: set[str], size: int, crop: Any
) -> tuple[dict[str, list[np.ndarray]], set[str]]:
    """Find look-alikes and their photos, and the SHA-256 of these; a folder that holds a photo of the subject itself is
    left out.
    """
    if not settings.gallery:
        return {}, set()
    root = expanded(settings.gallery)
    if not root.is_dir():
        raise PhotoError(
            f"`gallery={root}`: no such folder", "give a folder with a folder of photos for each look-alike"
        )
    found: dict[str, list[np.ndarray]] = {}
    hashes: set[str] = set()
    for part in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        paths = without_masks(find_pictures([part])[0])
        digests = {sha256_of(path) for path in paths}
        squares = [] if digests & own else _squares(paths, size, crop)
        if squares:
            hashes |= digests
            found[part.name] = squares
    if not found:
        raise PhotoError(
            f"`gallery={root}`: holds no folder of other subjects' photos", "give one folder for each look-alike"
        )
    return found, hashes


def _remarks(
    settings: EvaluateSettings, encoders: Sequence[str], reads_text: bool, real: Against, run: PersonalizedRun
) -> list[str]:
    """Say what a reader of the scores must know."""
    found = []
    if len(real.photos) < 2 and not real.others:
        found.append("There is no ceiling: leave-one-out needs two photos.")
    if set(encoders) == {"bundled"}:
        way_out = f"{needs('imagenet')} brings one that does."
        found.append(
            "bundled knows the bundled base's world of icons and not photographs, "
            f"of which its scores say little: {way_out}"
        )
    chooser = (run.validation or {}).get("encoder")
    if chooser in encoders and (run.selected or {}).get("rule"):
        found.append(
            f"{chooser} also chose the step of training that became model/, "
            "which flatters its scores; let another judge too."
        )
    if not reads_text:
        found.append("No encoder here reads text: CLIP-T is not measured; prompt match, by example, stands in.")
    if settings.count > 1 and not lpips.usable():
        found.append(f"LPIPS is not measured; diversity is 1 - cosine by each encoder. For LPIPS {lpips.how_to_get()}")
    return found


def _generate(
    settings: EvaluateSettings,
    run: PersonalizedRun,
    made_with: PersonalizeSettings,
    prompts: list[str],
) -> tuple[Generated, str]:
    """Generate, or read, everything: first by the tuned model, then by the base it came from; and the tuned model's
    hash.

    Raises ModelError for another base.
    """
    texts = [with_subject(prompt, run.subject.token) for prompt in prompts]
    classes = [
        settings.class_prompt.replace("{class}", noun)
        for noun in dict.fromkeys((run.subject.class_noun, *settings.other_classes))
    ]
    jobs = [(text, settings.seed + shot) for text in texts for shot in range(settings.count)]
    jobs += [(text, settings.seed + shot) for text in classes for shot in range(settings.class_count)]
    size, files, results = run.size, [], []
    models = {"tuned": load(settings.run), "base": run.load_base(made_with)}
    device = machine.device(settings.device)
    for model in models.values():
        sampling.check(model, settings.sampling)
    with progress_bar("pictures", len(models) * len(jobs), parts=settings.sampling.steps) as bar:
        for name, model in models.items():
            place = run.folder / "evaluation" / "pictures" / name
            pictures, paths = generate_missing(
                model.to(device), place, jobs, settings.sampling, settings.batch_size, size, bar
            )
            model.to("cpu")
            files += paths
            results.append(pictures)
    cut = len(texts) * settings.count
    tuned, floor = (pictures[:cut].reshape(len(texts), settings.count, size, size, 3) for pictures in results)
    parts = [pictures[cut:].reshape(len(classes), settings.class_count, size, size, 3) for pictures in results]
    return Generated(tuned, floor, {text: (parts[0][i], parts[1][i]) for i, text in enumerate(classes)}, files), models[
        "tuned"
    ].hash


def _grid(path: Path, photos: Sequence[np.ndarray], generated: Generated, prompts: Sequence[str]) -> None:
    count = min(generated.tuned.shape[1], 4)
    top = sheet([photos[: 2 * count]], [f"{len(photos)} photo{'' if len(photos) == 1 else 's'}"], [], cell=128)
    rows = [[*generated.base[row, :count], *generated.tuned[row, :count]] for row in range(len(prompts))]
    with atomic_file(path) as temporary:
        below = sheet(rows, prompts, ["base"] * count + ["tuned"] * count, cell=128)
        stacked([top, below]).save(temporary, format="PNG")


def _tell(result: Mapping[str, Any], folder: Path) -> None:
    for remark in result["remarks"]:
        warn(remark)

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    def end(row: Row) -> str:
        """Give the other end of the scale, and what has it where that is not the photos."""
        return number(row["ceiling"]) + (
            f" ({row['ceiling_of']})" if row["ceiling"] is not None and row["ceiling_of"] != PHOTOS else ""
        )

    scored = f"{result['pictures']} pictures of {len(result['prompts'])} prompts"
    note(f"{result['run']}: {scored}, scored against {result['photos']} photos: {result['scored_against']}\n")
    for encoder in dict.fromkeys(row["encoder"] for row in result["scores"]):
        rows = []
        for row in result["scores"]:
            if row["encoder"] == encoder:
                value, low, high = row["tuned"]
                name = row["score"] + (" \u2191" if row["better"] == "higher" else " \u2193")
                rows.append((name, number(value), f"{number(low)} to {number(high)}", number(row["base"]), end(row)))
        table(f"Scored by {encoder}", ["score", ">tuned", ">95 % interval", ">base", "photos"], rows, result=True)
    note(
        "base: before training, the floor; photos: real photos of the subject in "
        "place of pictures, the ceiling, or what stands beside it"
    )
    copies = result["near_copies"]
    conclude(f"near-copies of training photos: {copies['count']} of {copies['of']} (by the base: {copies['base']})")
    if any(row["encoder"] in ("dino", "clip") for row in result["scores"]):
        published = [[name, *(number(value) for value in values)] for name, *values in scores.PUBLISHED]
        table(
            "Published: 30 subjects x 25 prompts x 4 pictures of 512 pixels",
            ["", ">DINO", ">CLIP-I", ">CLIP-T"],
            published,
        )
    conclude(f"all of it: {folder / 'evaluation.json'}; pictures: {folder / 'grid.png'}")
    if found := verdict.read(result["verdict"]):
        note(f"\n{found.told}")
