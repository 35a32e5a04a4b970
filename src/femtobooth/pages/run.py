"""Write the page of a personalize run: the verdict, before and after, nearest photos, curves, settings and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core import config
from ..core.errors import command
from ..generator.photos import shape_counts
from ..generator.prompts import filled
from ..generator.run import PersonalizedRun
from ..generator.stored_photos import counted, size_of
from ..judging import memorization
from ..judging.scores import PHOTOS
from ..judging.verdict import Verdict, percent
from . import validation, who_is_who
from .charts import line_chart
from .html import Chart, Page, Shot, Strip, Tile, render
from .trained_run import ClassImages, TrainedRun

MOST = 12  # steps between the first and the last that are shown
INTERNAL = {"loss", "instance", "prior", "learning_rate", "validation", "deterministic"}
"""Groups of metrics.csv that have no chart of their own."""


@dataclass(frozen=True)
class Pair:
    """Hold one prompt with its pictures before and after training."""

    prompt: str
    sides: list[Strip]


@dataclass(frozen=True, kw_only=True)
class RunPage(Page):
    """Hold what the page shows."""

    verdict: Verdict | None
    tiles: list[Tile]
    warnings: list[str]
    pairs: list[Pair]
    on_the_way: list[Strip]
    validation: validation.Section | None
    nearest: list[Strip]
    copies: int
    fits: float
    """Correlation from which on a picture is a near-copy."""
    photos: list[Strip]
    files: list[tuple[str, str, str, str]]
    """Name, pixels, status and notes of each file of the photo folder."""
    counted: str
    """What the grey pictures beside the photos show; "" where all of every photo counted."""
    masked: bool
    """Whether the base taught what is around the subject."""
    prior: bool
    """Whether class images were trained on."""
    as_class: bool
    """Whether the photos under captions of their class were trained on instead."""
    class_images: list[Strip]
    curves: list[Chart]
    scores: list[tuple[str, ...]]
    """Score, encoder, which side is better, base, tuned, real photos."""
    scored: str
    """On how many pictures."""
    who: who_is_who.Section | None
    """How several subjects are told apart."""
    score_remarks: list[str]
    commands: list[tuple[str, str]]
    """Purpose and command."""
    base: str
    base_hash: str
    config: str
    environment: list[tuple[str, str]]


def run_page(run: TrainedRun) -> str:
    """Write the whole page."""
    known, settings, evaluation = run.known, run.settings, run.evaluation or {}
    base = "the bundled base" if settings.base == "bundled" else Path(settings.base).name
    page = RunPage(
        title=_title(known),
        kind="femtobooth personalize",
        lead=_lead(run, base),
        footer=", ".join(f"{name} {version}" for name, version in known.versions.items()),
        verdict=run.verdict,
        tiles=[
            *(tile for name, one in _verdicts(run) for tile in _learned(one, name)),
            *_spent(run),
        ],
        warnings=warnings(run),
        pairs=_pairs(run),
        on_the_way=_on_the_way(run),
        validation=validation.section(known),
        nearest=_nearest(run),
        copies=run.copies,
        fits=memorization.COPY_FIT,
        photos=_photos(run),
        files=[_file(row) for row in run.preflight],
        counted=_counted(run),
        masked=settings.loss.background == "class",
        prior=settings.prior.uses_images,
        class_images=[_class_images(one) for one in run.class_images],
        as_class=settings.prior.weight > 0 and settings.prior.target == "photos",
        curves=_curves(run.metrics, "class images" if settings.prior.uses_images else "photos as their class"),
        scores=[_score(row) for row in evaluation.get("scores", [])],
        scored=str(evaluation.get("pictures", "")),
        who=who_is_who.section(known.folder, evaluation),
        score_remarks=list(evaluation.get("remarks", [])),
        commands=_commands(run),
        base=settings.base,
        base_hash=known.base_hash,
        config=config.dump(settings),
        environment=[*known.versions.items()],
    )
    return render("run.html", page)


def _verdicts(run: TrainedRun) -> list[tuple[str, Verdict | None]]:
    """Give the verdicts of several subjects by name, or that of one."""
    return [*run.verdicts.items()] or [("", run.verdict)]


def _title(known: PersonalizedRun) -> str:
    if len(known.subjects) == 1:
        return known.subject.called.phrase
    return ", ".join(f"{name} ({one.phrase})" for name, one in known.called.items())


def _lead(run: TrainedRun, base: str) -> str:
    """Say what was taught to what from how much, and how to ask for it."""
    called, photos = run.known.called, _count(len(run.photos), "photo")
    if len(called) == 1:
        ((token, noun),) = called.values()
        return f'A {noun}, taught to {base} from {photos}. Write "a {token} {noun}" in a prompt to draw it.'
    each = " and ".join(f"{name}, a {one.noun}," for name, one in called.items())
    forms = " or ".join(f'"a [V:{name}] {one.noun}" ({one.phrase})' for name, one in called.items())
    return f"{each} taught to {base} from {photos}. Write {forms} in a prompt."


def warnings(run: TrainedRun) -> list[str]:
    """Say what a reader has to know before the rest."""
    known, found = run.known, []
    if known.status == "failed":
        found.append(f"The run failed: {known.error or 'no reason is known'}. This shows what there is so far.")
    elif known.status != "done":
        found.append("The run is not finished: this shows what there is so far. Go on with the command below.")
    for name, photos in run.photos_of.items():
        if len(photos) < 3:
            whose = f" of {name}" if len(run.photos_of) > 1 else ""
            found.append(
                f"{_count(len(photos), 'photo')}{whose} only: 3 to 5 of different views "
                "teach the subject rather than one picture of it."
            )
    found += [
        f"{Path(row['file']).name} was not used: {'; '.join(row['notes']) or row['status']}."
        for row in run.preflight
        if row["status"] == "skipped" and Path(row["file"]).suffix != ".txt"
    ]
    unpreserved = run.settings.prior.weight == 0 and run.settings.prior.weights == 0
    if unpreserved and run.settings.train.parts != ["token"]:
        found += [
            f"Trained without class images: every {noun} may now look like this one." for noun in run.settings.nouns
        ]
    return found


def _shot(image: Image.Image | np.ndarray, alt: str) -> Shot:
    return Shot(image, alt, longest=320, exact=128)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _learned(found: Verdict | None, name: str = "") -> list[Tile]:
    """Make the tiles of what came of it, or of the subject of this name."""
    tiles = _tiles(found)
    return [replace(tile, name=f"{name}: {tile.name}") for tile in tiles] if name else tiles


def _tiles(found: Verdict | None) -> list[Tile]:
    tiles: list[Tile] = []
    if found and found.share:
        value, low, high = found.share
        interval = f"95 %: {percent(low)} to {percent(high)}"
        tiles.append(Tile("likeness", percent(value), f"of the way from base to photos; {interval}", found.mood))
    if found and (measured := found.evidence):
        if measured.obeyed:
            tuned, base, chance = measured.obeyed
            tiles.append(Tile("prompts followed", f"{tuned:.0%}", f"base {base:.0%}, by chance {chance:.0%}"))
        against = f", {measured.astray} against their prompt" if measured.copies else ""
        tiles.append(Tile("near-copies", f"{measured.copies} of {measured.pictures}", f"of training photos{against}"))
        if measured.drift is not None:
            far = "as far as the photos are from the base's"
            tiles.append(Tile("drift of its class", f"{measured.drift:.0%}", far))
    return tiles


def _spent(run: TrainedRun) -> list[Tile]:
    """Make the tiles of what it took."""
    known, settings = run.known, run.settings
    step, last = known.steps or "–", known.trained_steps or settings.training.steps  # noqa: RUF001
    shapes = shape_counts(run.photos)
    of = f"of {known.size} px" if [*shapes] == [(known.size, known.size)] else f"in {_count(len(shapes), 'bucket')}"
    tiles = [Tile("steps", step, f"of {last}, on {_count(len(run.photos), 'photo')} {of}")]
    if known.seconds:
        rates = _column(run.metrics, "photos_per_second")[1]
        speed = f"{np.median(rates):.1f} photos/s" if rates else "with class images and samples"
        tiles.append(Tile("time", _duration(known.seconds), speed))
    if known.peak_memory_gib:
        memory = f"{known.peak_memory_gib:.2f} GiB"
        tiles.append(Tile("peak memory", memory, f"precision {settings.training.precision}"))
    if size := sum(path.stat().st_size for path in (known.folder / "model").rglob("*") if path.is_file()):
        tiles.append(Tile("model on disk", f"{size / 2**20:.0f} MiB", f"{settings.save_precision} weights"))
    return tiles


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _pairs(run: TrainedRun) -> list[Pair]:
    """Set the samples of the first step beside those of the last, prompt by prompt."""
    if not run.samples:
        return []
    ends = sorted({min(run.samples), max(run.samples)})
    pairs = []
    for row, prompt in enumerate(run.prompts):
        sides = []
        for step in ends:
            seeds = [
                (run.settings.samples.seed + column, image)
                for (line, column), image in run.samples[step].items()
                if line == row
            ]
            shots = [_shot(image, f"{prompt}, seed {seed}, step {step}") for seed, image in seeds]
            sides.append(Strip(shots, f"{'before' if step == 0 else 'after'}, step {step}"))
        pairs.append(Pair(prompt, sides))
    return pairs


def _on_the_way(run: TrainedRun) -> list[Strip]:
    between = sorted(run.samples)[1:-1]
    strips = []
    for step in (between[round(i)] for i in np.linspace(0, len(between) - 1, min(MOST, len(between)))):
        shots = [
            _shot(run.samples[step][row, 0], f"{prompt}, step {step}")
            for row, prompt in enumerate(run.prompts)
            if (row, 0) in run.samples[step]
        ]
        strips.append(Strip(shots, f"step {step}: the first seed of each prompt"))
    return strips


def _nearest(run: TrainedRun) -> list[Strip]:
    """Set the last samples of the subject beside the training photos that they come nearest to."""
    strips = []
    for (row, column), one in run.nearest.items():
        prompt, photo = run.prompts[row], run.photos[one.photo]
        shots = [_shot(run.samples[max(run.samples)][row, column], f"generated: {prompt}")]
        if one.fit <= -1 and not one.copied:
            strips.append(Strip(shots, f"{prompt} | without structure: nothing to compare"))
            continue
        shots.append(_shot(photo.pixels, f"nearest training photo, {photo.path.name}"))
        caption = f"{prompt} | {photo.path.name}, correlation {one.fit:.2f}"
        strips.append(Strip(shots, caption, "a near-copy" if one.copied else ""))
    return strips


def _photos(run: TrainedRun) -> list[Strip]:
    """Show the photos as they were trained on, and what of them counted."""
    below = [part for photos in run.photos_of.values() for part in counted(photos, run.settings.loss.background)]
    whose = [name for name, photos in run.photos_of.items() for _ in photos]
    strips = []
    for index, photo in enumerate(run.photos):
        called = run.known.called[whose[index]]
        caption = " / ".join(filled(text, *called) for text in photo.captions[:3])
        caption += f" ({size_of(photo)})" if run.settings.photos.shapes == "buckets" else ""
        shots = [_shot(photo.pixels, f"photo {index + 1} as it was trained on: {caption}")]
        if (part := below[index]) is not None:
            what = "its subject and what touches it" if photo.mask is None else "its mask"
            shots.append(_shot(part, f"what of photo {index + 1} counted: {what}"))
        strips.append(Strip(shots, caption))
    return strips


def _counted(run: TrainedRun) -> str:
    """Say what the pictures beside the photos show."""
    masks, outside = sum(photo.mask is not None for photo in run.photos), run.settings.loss.unmasked_weight
    apart = run.settings.loss.background == "class"
    if not masks and not apart:
        return ""
    source = f"{masks} of {_count(len(run.photos), 'photo')} came with a mask" if masks else "No photo came with a mask"
    rest = ", and the subject of the others was found" if apart and masks < len(run.photos) else ""
    weight = f"counted {outside:g} of the rest" if outside else "did not count"
    return f"Beside each photo: what of it was learned from. {source}{rest}. What is grey {weight}."


def _file(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    pixels = f"{row['width']}x{row['height']}" if row["width"] else ""
    return Path(row["file"]).name, pixels, row["status"], "; ".join(row["notes"])


def _class_images(found: ClassImages) -> Strip:
    shots = [_shot(image, f"class image: {found.prompt}") for image in found.shown]
    return Strip(shots, f"{found.prompt}: {len(shots)} of {found.count}, {found.source}")


def _column(rows: Sequence[Mapping[str, str]], name: str) -> tuple[list[float], list[float]]:
    kept = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in kept], [value for _, value in kept]


def _curves(rows: list[dict[str, str]], of_class: str) -> list[Chart]:
    """Draw losses, smoothed, and a chart for each group of scores that were taken during training."""
    losses = {label: _column(rows, f"loss/{name}") for name, label in (("instance", "photos"), ("prior", of_class))}
    losses = {label: points for label, points in losses.items() if points[0]}
    if not losses:
        return []
    window = max(1, len(rows) // 20)
    smooth = {
        label: (steps[window - 1 :], np.convolve(values, np.ones(window) / window, "valid"))
        for label, (steps, values) in losses.items()
    }
    caption = f"Mean of {window} steps. It hardly falls: how noisy each picture was made decides most of it."
    alt = f"Loss on photos and on {of_class} over optimizer steps"
    charts = [Chart(line_chart(smooth, "step", "loss", alt), caption if window > 1 else "")]
    groups: dict[str, list[str]] = {}
    for column in rows[0]:
        group, slash, _ = column.partition("/")
        if slash and group not in INTERNAL:
            groups.setdefault(group, []).append(column)
    for group, columns in groups.items():
        series = {column.partition("/")[2]: points for column in columns if (points := _column(rows, column))[0]}
        if series:
            drawn = line_chart(series, "step", group, f"{group} over optimizer steps")
            charts.append(Chart(drawn, f"{group}, during training"))
    return charts


def _score(row: Mapping[str, Any]) -> tuple[str, ...]:
    def number(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, int | float) else "–"  # noqa: RUF001

    value, low, high = map(number, row["tuned"])
    ceiling = number(row["ceiling"]) + (f", {row['ceiling_of']}" if row.get("ceiling_of") not in (None, PHOTOS) else "")
    name = f"{row['subject']}: {row['score']}" if row.get("subject") else row["score"]
    return name, row["encoder"], row["better"], number(row["base"]), f"{value} ({low} to {high})", ceiling


def _commands(run: TrainedRun) -> list[tuple[str, str]]:
    folder, name = run.known.folder, run.known.name
    again = command("personalize", "--config", folder / "config.yaml", "--name", f"{name}-again")
    commands = [("Train it again, bit for bit on the same machine and versions", again)]
    if run.known.status == "done":
        commands += [
            ("Draw with it", command("generate", folder, run.known.asking)),
            ("Measure it", command("evaluate", folder)),
            ("One file for other programs", command("convert", folder, f"{name}.safetensors")),
        ]
    else:
        commands.append(("Go on", run.known.resume_command))
    return [*commands, ("This page again", command("report", folder))]
