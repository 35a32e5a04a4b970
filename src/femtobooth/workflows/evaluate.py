"""run -> pictures by the tuned model and by its base -> scores with floor, ceiling and intervals, each with its encoder's name.

RUN/evaluation/evaluation.json    every score, setting and warning
               grid.png           photos, then each prompt by the base and by the tuned model
               pictures/          what was drawn; drawn again only where model, prompt, seed or sampling changed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from ..core import config, scores
from ..core.console import note, progress_bar, table, warn
from ..core.errors import ModelError, PhotoError, SettingsError
from ..core.images import find_pictures, read_picture, shown
from ..core.metrics import wilson
from ..core.runs import atomic_file, environment, sha256_of, write_json
from ..core.sheets import sheet, stacked
from ..generator import base as bases
from ..generator import sampling
from ..generator.base import StableDiffusion
from ..generator.photos import make_square, restore_photos
from ..generator.settings import PersonalizeSettings
from ..generator.tokens import SUBJECT
from ..recognizer.encoders import open_encoder, usable
from ..recognizer.scoring import Drawn, measure, near_copies
from . import generate, personalize
from .settings import EvaluateSettings

KEY = "femtobooth-evaluation"  # the PNG text chunk


def settings_from(*layers: Mapping[str, Any]) -> EvaluateSettings:
    """Settings from layers over the recommendations of the model's own card. Raises ModelError for what is no finished run."""
    given = config.merge(*layers)
    reference = str(given.get("run", ""))
    card = bases.recommended(reference).get("generate", {}) if reference and (Path(reference) / "run.json").is_file() else {}
    return config.resolve(EvaluateSettings, card, given)


def run(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluate; returns what evaluation.json holds. Raises InputError kinds before anything is drawn.

    Interrupted, it keeps the finished pictures, and the same command goes on from there.
    """
    folder = Path(settings.run)
    if not (folder / "run.json").is_file():
        raise ModelError(f"{settings.run}: not a run folder (no run.json)", "give the folder that personalize printed, such as runs/NAME")
    facts = personalize.read_run(folder)
    model_folder = bases.locate(settings.run)  # raises where the run is not finished
    if "token" not in facts:
        raise ModelError(f"{settings.run}: not a run of femtobooth personalize", "femtobooth evaluate-classifier measures classifiers")
    made_with = config.resolve(PersonalizeSettings, config.read_yaml(folder / "config.yaml"))
    noun, size = facts["class_noun"], facts["size"]
    prompts = [prompt.replace("{class}", noun) for prompt in settings.prompts]
    if not prompts or not all(SUBJECT.search(prompt) for prompt in prompts):
        raise SettingsError("prompts: each needs [V], which stands for the subject", 'for example "a [V] {class} on the beach"')
    encoders = [open_encoder(name) for name in dict.fromkeys(settings.encoders or usable())]
    remarks: list[str] = []
    trained = [photo.pixels for photo in restore_photos(folder / "photos")]
    photos, hashes = _real_photos(settings, folder, made_with, trained, remarks)
    gallery, others = _gallery(settings, hashes, size, made_with.photos.crop)
    for encoder in encoders:
        encoder.refuse_trained_on(hashes | others)

    drawn = _draw(settings, folder, facts, made_with, model_folder, prompts)
    generated = [sha256_of(path) for path in drawn.files]
    for encoder in encoders:
        encoder.refuse_trained_on(generated)
    copies = near_copies(drawn.tuned.reshape(-1, *drawn.tuned.shape[2:]), trained)
    texts = [" ".join(SUBJECT.sub("", prompt).split()) for prompt in prompts]
    if len(photos) < 2:
        remarks.append("There is no ceiling: leave-one-out needs two photos.")
    report: dict[str, Any] = {
        "run": str(folder),
        "token": facts["token"],
        "class_noun": noun,
        "base": facts["base"],
        "steps": facts.get("steps"),
        "prompts": prompts,
        "pictures": int(np.prod(drawn.tuned.shape[:2])),
        "photos": len(photos),
        "held_out": bool(settings.photos) and not any("was trained on" in remark for remark in remarks),
        "settings": settings.model_dump(),
        "environment": environment(),
        "near_copies": {"count": sum(copies), "of": len(copies), "share": list(wilson(sum(copies), len(copies)))},
        "scores": [row for encoder in encoders for row in measure(encoder, photos, drawn, texts, gallery, settings.region)],
        "published": [dict(zip(("name", "dino", "clip_i", "clip_t"), row, strict=True)) for row in scores.PUBLISHED],
        "remarks": remarks,
    }
    if not any(encoder.texts for encoder in encoders):
        remarks.append("No encoder here reads text: CLIP-T is not measured; prompt match, by example, stands in (--encoders clip).")
    _grid(folder / "evaluation" / "grid.png", photos, drawn, prompts)
    write_json(folder / "evaluation" / "evaluation.json", report)
    _tell(report, folder / "evaluation")
    return report


def _real_photos(
    settings: EvaluateSettings, folder: Path, made_with: PersonalizeSettings, trained: list[np.ndarray], remarks: list[str]
) -> tuple[list[np.ndarray], set[str]]:
    """The photos to score against, cropped and scaled as those of the run, and the SHA-256 of all files they come from."""
    copies = find_pictures([folder / "photos"])[0]
    preflight = json.loads((folder / "preflight.json").read_text(encoding="utf-8"))
    originals = [Path(row["file"]) for row in preflight if row["status"] == "used"]
    there = [path for path in originals if path.is_file()]
    known = {sha256_of(path) for path in [*copies, *there]}
    if len(there) < len(originals):
        gone = len(originals) - len(there)
        remarks.append(f"{gone} original photos are gone: that no encoder was trained on them is known of the run's copies only.")
    if not settings.photos:
        remarks.append("Scored against the photos it was trained on, which flatters it; --photos FOLDER takes others.")
        return trained, known
    paths, _ = find_pictures(settings.photos)
    if not paths:
        raise PhotoError(f"--photos {', '.join(map(shown, settings.photos))}: no picture in it", "give photos of the subject")
    hashes = {sha256_of(path) for path in paths}
    if hashes & known:
        remarks.append(f"The run was trained on {len(hashes & known)} of the {len(paths)} --photos, which flatters it.")
    size = trained[0].shape[0]
    squares = [np.array(make_square(read_picture(path).image, size, made_with.photos.crop)[0]) for path in paths]
    return squares, known | hashes


def _gallery(settings: EvaluateSettings, own: set[str], size: int, crop: Any) -> tuple[dict[str, list[np.ndarray]], set[str]]:
    """Look-alikes and their photos, and the SHA-256 of these; a folder that holds a photo of the subject itself is left out."""
    if not settings.gallery:
        return {}, set()
    root = Path(settings.gallery).expanduser()
    if not root.is_dir():
        raise PhotoError(f"--gallery {shown(root)}: no such folder", "give a folder with a folder of photos for each look-alike")
    found: dict[str, list[np.ndarray]] = {}
    hashes: set[str] = set()
    for part in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        paths = find_pictures([part])[0]
        digests = {sha256_of(path) for path in paths}
        if paths and not digests & own:
            hashes |= digests
            found[part.name] = [np.array(make_square(read_picture(path).image, size, crop)[0]) for path in paths]
    if not found:
        raise PhotoError(f"--gallery {shown(root)}: holds no folder of other subjects' photos", "give one folder for each look-alike")
    return found, hashes


def _draw(
    settings: EvaluateSettings,
    folder: Path,
    facts: Mapping[str, Any],
    made_with: PersonalizeSettings,
    model_folder: Path,
    prompts: list[str],
) -> Drawn:
    """Draw, or read, everything: first by the tuned model, then by the base it came from. Raises ModelError for another base."""
    texts = [SUBJECT.sub(lambda _: facts["token"], prompt) for prompt in prompts]
    classes = [settings.class_prompt.replace("{class}", noun) for noun in dict.fromkeys((facts["class_noun"], *settings.other_classes))]
    jobs = [(text, settings.seed + shot) for text in texts for shot in range(settings.count)]
    jobs += [(text, settings.seed + shot) for text in classes for shot in range(settings.class_count)]
    size, files, results = facts["size"], [], []
    base = bases.load(made_with.base, made_with.tokenizer)
    if base.hash != facts["base_hash"]:
        raise ModelError(f"{made_with.base}: not the base that {folder} was made from", "put the same base back to evaluate")
    models = {"tuned": bases.load_folder(model_folder), "base": base}
    device = generate._device(settings.device)
    for model in models.values():
        sampling.check(model, settings.sampling)
    with progress_bar("pictures", len(models) * len(jobs) * settings.sampling.steps) as bar:
        for name, model in models.items():
            pictures, paths = _pictures(model.to(device), folder / "evaluation" / "pictures" / name, jobs, settings, size, bar)
            model.to("cpu")
            files += paths
            results.append(pictures)
    cut = len(texts) * settings.count
    tuned, floor = (pictures[:cut].reshape(len(texts), settings.count, size, size, 3) for pictures in results)
    parts = [pictures[cut:].reshape(len(classes), settings.class_count, size, size, 3) for pictures in results]
    return Drawn(tuned, floor, {text: (parts[0][i], parts[1][i]) for i, text in enumerate(classes)}, files)


def _pictures(
    model: StableDiffusion, folder: Path, jobs: list[tuple[str, int]], settings: EvaluateSettings, size: int, bar: Any
) -> tuple[np.ndarray, list[Path]]:
    """Pictures uint8 (N, size, size, 3) of prompts and seeds, and their files; whole batches are drawn where one is missing."""
    how = {"model": model.hash, "size": size, "batch": settings.batch_size, **settings.sampling.model_dump()}
    keys = [hashlib.sha256(json.dumps({**how, "prompt": text, "seed": seed}, sort_keys=True).encode()).hexdigest() for text, seed in jobs]
    paths = [folder / f"{key[:16]}.png" for key in keys]
    found = np.empty((len(jobs), size, size, 3), np.uint8)
    for first in range(0, len(jobs), settings.batch_size):
        rows = range(first, min(first + settings.batch_size, len(jobs)))
        stored = [_read(paths[row], keys[row], size) for row in rows]
        if any(picture is None for picture in stored):
            texts, seeds = zip(*(jobs[row] for row in rows), strict=True)
            drawn = sampling.sample(model, [*texts], [*seeds], settings.sampling, (size, size), batch_size=len(rows), bar=bar)
            for row, picture in zip(rows, drawn, strict=True):
                _write(paths[row], keys[row], jobs[row], picture)
            stored = list(drawn)
        else:
            bar.advance(len(rows) * settings.sampling.steps)
        found[rows.start : rows.stop] = np.stack(stored)  # type: ignore[arg-type]
    return found, paths


def _write(path: Path, key: str, job: tuple[str, int], picture: np.ndarray) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, key)
    text.add_text("parameters", f"{job[0]}\nSeed: {job[1]}")
    with atomic_file(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", pnginfo=text)


def _read(path: Path, key: str, size: int) -> np.ndarray | None:
    """The picture of this key, or None where it is missing, damaged or another's."""
    try:
        with Image.open(path) as image:
            image.load()
            if getattr(image, "text", {}).get(KEY) != key or image.size != (size, size) or image.mode != "RGB":
                return None
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        return None


def _grid(path: Path, photos: Sequence[np.ndarray], drawn: Drawn, prompts: Sequence[str]) -> None:
    count = min(drawn.tuned.shape[1], 4)
    top = sheet([photos[: 2 * count]], [f"{len(photos)} photos"], [], cell=128)
    rows = [[*drawn.base[row, :count], *drawn.tuned[row, :count]] for row in range(len(prompts))]
    with atomic_file(path) as temporary:
        below = sheet(rows, prompts, ["base"] * count + ["tuned"] * count, cell=128)
        stacked([top, below]).save(temporary, format="PNG")


def _tell(report: Mapping[str, Any], folder: Path) -> None:
    for remark in report["remarks"]:
        warn(remark)

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    note(f"{report['run']}: {report['pictures']} pictures of {len(report['prompts'])} prompts, {report['photos']} photos\n")
    for encoder in dict.fromkeys(row["encoder"] for row in report["scores"]):
        rows = []
        for row in report["scores"]:
            if row["encoder"] == encoder:
                value, low, high = row["tuned"]
                name = row["score"] + (" \u2191" if row["better"] == "higher" else " \u2193")
                rows.append((name, number(value), f"{number(low)} to {number(high)}", number(row["base"]), number(row["ceiling"])))
        table(f"Scored by {encoder}", ["score", ">tuned", ">95 % interval", ">base", ">photos"], rows)
    note("base: before training, the floor; photos: each photo against the others, the ceiling")
    copies = report["near_copies"]
    note(f"near-copies of training photos: {copies['count']} of {copies['of']}")
    if any(row["encoder"] in ("dino", "clip") for row in report["scores"]):
        published = [[name, *(number(value) for value in values)] for name, *values in scores.PUBLISHED]
        table("Published: 30 subjects x 25 prompts x 4 pictures of 512 pixels", ["", ">DINO", ">CLIP-I", ">CLIP-T"], published)
    note(f"all of it: {folder / 'evaluation.json'}; pictures: {folder / 'grid.png'}")
