"""run -> RUN/report.html: the verdict, before and after, nearest photos, curves, settings and cost on one
self-contained page.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core import config, older_runs
from ..core.errors import ModelError, command
from ..core.events import note
from ..core.files import read_json, read_object, write_text
from ..core.older_runs import read_settings
from ..generator import prior
from ..generator.photos import Photo, restore_photos
from ..generator.prompts import filled
from ..generator.settings import PersonalizeSettings
from ..judging import memorization, verdict
from ..judging.scoring import PHOTOS
from ..judging.verdict import Verdict, percent
from ..pages import html, validation
from ..pages.charts import line_chart
from ..pages.html import Html
from ..pictures.images import Picture, decode, find_pictures
from ..pictures.regions import only_subject, subject_masks
from .settings import ReportSettings

MOST = 12  # class images, and steps between the first and the last, that are shown
INTERNAL = {
    "loss",
    "instance",
    "prior",
    "learning_rate",
    "validation",
    "deterministic",
}  # groups of metrics.csv that have no chart of their own


def run(settings: ReportSettings) -> dict[str, Any]:
    """Write the report of a personalize run; returns what `write` does."""
    return write(Path(settings.run))


def write(folder: Path) -> dict[str, Any]:
    """Write the report of a personalize run, finished or not; an older report is replaced.

    Returns report (its path), bytes, verdict, pictures (of the subject), near_copies and warnings. Raises ModelError
    where `folder` is no such run, PhotoError where its photos are missing or damaged.
    """
    facts = _facts(folder)
    settings = config.resolve(PersonalizeSettings, read_settings(folder / "config.yaml"))
    photos = restore_photos(folder / "photos")
    preflight, evaluation = (
        read_json(folder / "preflight.json") or [],
        read_json(folder / "evaluation" / "evaluation.json"),
    )
    steps = _samples(folder)
    if facts.get("steps") in steps:  # what was drawn after the step that became the model is not of it
        steps = {step: shots for step, shots in steps.items() if step <= facts["steps"]}
    prompts = [filled(prompt, facts["token"], facts["class_noun"]) for prompt in settings.samples.prompts]
    nearest, copies, compared = _nearest(steps, prompts, photos, facts)
    warnings, found = _warnings(facts, settings, photos, preflight), verdict.of_run(folder, facts)
    base = "the bundled base" if settings.base == "bundled" else Path(settings.base).name
    page = html.page(
        f"{facts['token']} {facts['class_noun']}",
        _verdict(found),
        _tiles(folder, facts, photos, settings, found),
        *(html.callout(text, "warn") for text in warnings),
        _before_after(steps, prompts, settings),
        validation.section(folder, facts),
        nearest,
        _photos(photos, preflight, facts, settings),
        _class_images(settings, facts),
        _curves(folder),
        _evaluation(evaluation),
        _reproduce(folder, facts, settings),
        lead=f"A {facts['class_noun']}, taught to {base} from {_count(len(photos), 'photo')}. "
        f'Write "a {facts["token"]} {facts["class_noun"]}" in a prompt to draw it.',
        kind="femtobooth personalize",
        footer=", ".join(f"{name} {version}" for name, version in facts["environment"].items()),
    )
    target = folder / "report.html"
    write_text(target, page)
    note(f"report: {target}")
    return {
        "report": str(target),
        "bytes": len(page.encode()),
        "verdict": found and found.plain(),
        "pictures": compared,
        "near_copies": copies,
        "warnings": warnings,
    }


def _facts(folder: Path) -> dict[str, Any]:
    facts = older_runs.facts(read_object(folder / "run.json"))
    if {"token", "class_noun", "base_hash", "size", "environment", "status"} <= facts.keys():
        return facts
    if (folder / "report.html").is_file():
        raise ModelError(f"{folder}: not a personalize run", f"its own report is {folder / 'report.html'}")
    raise ModelError(
        f"{folder}: not a personalize run (no run.json of one)",
        "give the folder that personalize printed, such as runs/NAME",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _samples(folder: Path) -> dict[int, dict[tuple[int, int], Image.Image]]:
    """Pictures by step, then by (prompt, column); unreadable ones are left out."""
    steps: dict[int, dict[tuple[int, int], Image.Image]] = {}
    for path in sorted(older_runs.place(folder, "samples").glob("step-*/*-*.png")):
        step, place = re.fullmatch(r"step-(\d+)", path.parent.name), re.fullmatch(r"(\d+)-(\d+)", path.stem)
        if step and place and isinstance(picture := decode(path), Picture):
            steps.setdefault(int(step[1]), {})[int(place[1]), int(place[2])] = picture.image
    return dict(sorted(steps.items()))


def _img(image: Image.Image | np.ndarray, alt: str) -> Html:
    """Small bases draw 64x64 pixels, which stay exact; larger pictures are stored as photos."""
    drawn = image if isinstance(image, Image.Image) else Image.fromarray(image)
    tiny = max(drawn.size) <= 128
    return html.picture(drawn, alt, 320, "PNG" if tiny else "JPEG")


def _side_by_side(*images: Html) -> Html:
    return Html(f'<div class="maps">{html.join(*images)}</div>')


def _verdict(found: Verdict | None) -> Html:
    if found is None:
        return Html("")
    head, colon, rest = found.sentence.partition(":")
    return html.callout(html.join(Html(f"{html.strong(head + colon)}{html.markup(rest)}"), found.advice), found.mood)


def _tiles(
    folder: Path, facts: dict[str, Any], photos: list[Photo], settings: PersonalizeSettings, found: Verdict | None
) -> Html:
    """What came of it, then what it took."""
    rates = _column(_rows(folder), "photos_per_second")[1]
    tiles: list[html.OldTile] = []
    if found and found.share:
        value, low, high = found.share
        range_ = f"95 %: {percent(low)} to {percent(high)}"
        tiles.append(("likeness", percent(value), f"of the way from base to photos; {range_}", found.mood))
    if found and (measured := found.evidence):
        if measured.obeyed:
            tuned, base, chance = measured.obeyed
            tiles.append(("prompts followed", f"{tuned:.0%}", f"base {base:.0%}, by chance {chance:.0%}"))
        against = f", {measured.astray} against their prompt" if measured.copies else ""
        tiles.append(("near-copies", f"{measured.copies} of {measured.pictures}", f"of training photos{against}"))
        if measured.drift is not None:
            tiles.append(("drift of its class", f"{measured.drift:.0%}", "as far as the photos are from the base's"))
    step, last = facts.get("steps", "–"), facts.get("trained_steps", settings.training.steps)  # noqa: RUF001
    tiles.append(("steps", step, f"of {last}, on {_count(len(photos), 'photo')} of {facts['size']} px"))
    if "seconds" in facts:
        speed = f"{np.median(rates):.1f} photos/s" if rates else "with class images and samples"
        tiles.append(("time", _duration(facts["seconds"]), speed))
    if "peak_memory_gib" in facts:
        tiles.append(("peak memory", f"{facts['peak_memory_gib']:.2f} GiB", f"precision {settings.training.precision}"))
    if size := sum(path.stat().st_size for path in (folder / "model").rglob("*") if path.is_file()):
        tiles.append(("model on disk", f"{size / 2**20:.0f} MiB", f"weights in {settings.save_precision}"))
    return html.tiles(*tiles)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _warnings(
    facts: dict[str, Any],
    settings: PersonalizeSettings,
    photos: list[Photo],
    preflight: list[dict[str, Any]],
) -> list[str]:
    found = []
    if facts["status"] == "failed":
        found.append(f"The run failed: {facts.get('error', 'no reason is known')}. This shows what there is so far.")
    elif facts["status"] != "done":
        found.append("The run is not finished: this shows what there is so far. Go on with the --resume command below.")
    if len(photos) < 3:
        found.append(
            f"{_count(len(photos), 'photo')} only: 3 to 5 of different views "
            "teach the subject rather than one picture of it."
        )
    found += [
        f"{Path(row['file']).name} was not used: {'; '.join(row['notes']) or row['status']}."
        for row in preflight
        if row["status"] == "skipped" and Path(row["file"]).suffix != ".txt"
    ]
    if settings.prior.weight == 0 and settings.train.parts != ["token"]:
        found.append(f"Trained without class images: every {facts['class_noun']} may now look like this one.")
    return found


def _before_after(
    steps: dict[int, dict[tuple[int, int], Image.Image]], prompts: list[str], settings: PersonalizeSettings
) -> Html:
    if not steps:
        return Html("")
    first, last = min(steps), max(steps)

    def shots(step: int, row: int) -> Html:
        seeds = [
            (settings.samples.seed + column, image) for (line, column), image in steps[step].items() if line == row
        ]
        return _side_by_side(*(_img(image, f"{prompts[row]}, seed {seed}, step {step}") for seed, image in seeds))

    content: list[Html] = []
    for row, prompt in enumerate(prompts):
        sides = [
            html.figure(shots(step, row), f"{'before' if step == 0 else 'after'}, step {step}")
            for step in sorted({first, last})
        ]
        content += [Html(f"<h3>{html.markup(prompt)}</h3>"), html.row(*sides)]
    between = [step for step in steps if step not in (first, last)]
    chosen = [between[round(i)] for i in np.linspace(0, len(between) - 1, min(MOST, len(between)))]
    if chosen:
        on_the_way = []
        for step in chosen:
            images = [
                _img(steps[step][row, 0], f"{text}, step {step}")
                for row, text in enumerate(prompts)
                if (row, 0) in steps[step]
            ]
            on_the_way.append(html.figure(_side_by_side(*images), f"step {step}: the first seed of each prompt"))
        content.append(html.folded("On the way", html.row(*on_the_way)))
    return html.section(
        "Before and after",
        html.text("The same prompts and the same seeds by the base and by the tuned model."),
        *content,
    )


def _nearest(
    steps: dict[int, dict[tuple[int, int], Image.Image]], prompts: list[str], photos: list[Photo], facts: dict[str, Any]
) -> tuple[Html, int, int]:
    """The section; how many of the last pictures of the subject nearly copy a photo; and how many were compared."""
    last = steps.get(max(steps)) if steps and max(steps) > 0 else None
    of_subject = {
        place: image
        for place, image in (last or {}).items()
        if place[0] < len(prompts) and re.search(rf"\b{re.escape(facts['token'])}\b", prompts[place[0]])
    }
    if not of_subject:
        return Html(""), 0, 0
    found = memorization.nearest(
        [np.asarray(image) for image in of_subject.values()], [photo.pixels for photo in photos]
    )
    copies = sum(one.copied for one in found)
    figures = []
    for ((row, _), image), one in zip(of_subject.items(), found, strict=True):
        shown, photo = _img(image, f"generated: {prompts[row]}"), photos[one.photo]
        if one.fit <= -1 and not one.copied:
            figures.append(html.figure(shown, f"{prompts[row]} | without structure: nothing to compare"))
            continue
        pair = _side_by_side(shown, _img(photo.pixels, f"nearest training photo, {photo.path.name}"))
        remark = html.strong(" a near-copy") if one.copied else ""
        figures.append(
            html.figure(pair, html.join(f"{prompts[row]} | {photo.path.name}, correlation {one.fit:.2f}", remark))
        )
    explained = (
        "Each last picture of the subject beside the training photo that it comes "
        "nearest to: the highest correlation of the whole "
        "picture, mirrored or not, with any part of the photo, fine structure "
        "only. It finds copies, not likeness: a picture is a "
        f"near-copy from {memorization.FITS} on, or where its perceptual hash says so, as for femtobooth evaluate. "
        f"{copies} of {len(figures)} are near-copies."
    )
    return (
        html.section("Nearest training photos", html.text(explained), html.grid(*figures, cell=230)),
        copies,
        len(figures),
    )


def _photos(
    photos: list[Photo], preflight: list[dict[str, Any]], facts: dict[str, Any], settings: PersonalizeSettings
) -> Html:
    figures = []
    masks = subject_masks([photo.pixels for photo in photos]) if settings.loss.surroundings == "class" else []
    for index, photo in enumerate(photos):
        caption = " / ".join(filled(text, facts["token"], facts["class_noun"]) for text in photo.captions[:3])
        looks = [_img(photo.pixels, f"photo {index + 1} as it was trained on: {caption}")]
        if masks:
            counted = only_subject(photo.pixels, masks[index])
            looks.append(_img(counted, f"what of photo {index + 1} counted: its subject and what touches it"))
        figures.append(html.figure(_side_by_side(*looks), caption))
    rows = [
        (
            Path(row["file"]).name,
            f"{row['width']}x{row['height']}" if row["width"] else "",
            row["status"],
            "; ".join(row["notes"]),
        )
        for row in preflight
    ]
    table = (
        html.table(["file", ">pixels", "status", "notes"], rows, "What was found in the photo folder") if rows else ""
    )
    return html.section("Photos", html.grid(*figures), table and html.folded("Files", table))


def _class_images(settings: PersonalizeSettings, facts: dict[str, Any]) -> Html:
    """Class images of the cache or of the user's folder; those that are gone are not drawn again for this."""
    if settings.prior.weight == 0:
        return Html("")
    content: list[Html] = []
    for index, prompt in enumerate(prior.prompts(settings.prior, facts["class_noun"])):
        own = settings.prior.folder if index == 0 else None
        folder = Path(own) if own else _drawn_folder(prompt, settings, facts)
        paths = find_pictures([folder])[0] if folder.is_dir() else []
        paths = paths if own else paths[: settings.prior.images]
        images = [picture.image for path in paths[:MOST] if isinstance(picture := decode(path), Picture)]
        if images:
            shown = _side_by_side(*(_img(image, f"class image: {prompt}") for image in images))
            source = f"from {own}" if own else f"drawn by the base, seeds from {settings.prior.seed}"
            content.append(html.figure(shown, f"{prompt}: {len(images)} of {len(paths)}, {source}"))
    if not content:
        content.append(html.text("They are no longer in the cache; training again draws the same ones."))
    explained = "What the base drew for the class alone; training on them too keeps the class as it was."
    if settings.loss.surroundings == "class":
        explained += (
            " On them the base also taught what is around the subject: with its "
            "identifier in the caption, only beside what they show."
        )
    return html.section("Class images", html.text(explained), *content)


def _drawn_folder(prompt: str, settings: PersonalizeSettings, facts: dict[str, Any]) -> Path:
    recipe = {"base": facts["base_hash"], "prompt": prompt, "size": facts["size"], "first_seed": settings.prior.seed}
    return prior.folder_of(recipe | settings.prior.sampling.model_dump())


def _rows(folder: Path) -> list[dict[str, str]]:
    try:
        with (folder / "logs" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def _column(rows: list[dict[str, str]], name: str) -> tuple[list[float], list[float]]:
    kept = [(float(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in kept], [value for _, value in kept]


def _curves(folder: Path) -> Html:
    """Losses, smoothed, and a chart for each group of scores that were taken during training."""
    rows = _rows(folder)
    losses = {
        label: _column(rows, f"loss/{name}") for name, label in (("instance", "photos"), ("prior", "class images"))
    }
    losses = {label: points for label, points in losses.items() if points[0]}
    if not losses:
        return Html("")
    window = max(1, len(rows) // 20)
    smooth = {
        label: (steps[window - 1 :], np.convolve(values, np.ones(window) / window, "valid"))
        for label, (steps, values) in losses.items()
    }
    chart = line_chart(smooth, "step", "loss", "Loss on photos and on class images over optimizer steps")
    caption = (
        f"Mean of {window} steps. It hardly falls: how noisy each picture was made decides most of it."
        if window > 1
        else ""
    )
    figures = [html.figure(chart, caption)]
    groups: dict[str, list[str]] = {}
    for column in rows[0]:
        group, slash, _ = column.partition("/")
        if slash and group not in INTERNAL:
            groups.setdefault(group, []).append(column)
    for group, columns in groups.items():
        series = {column.partition("/")[2]: points for column in columns if (points := _column(rows, column))[0]}
        if series:
            figures.append(
                html.figure(
                    line_chart(series, "step", group, f"{group} over optimizer steps"), f"{group}, during training"
                )
            )
    return html.section("Training", html.row(*figures))


def _evaluation(evaluation: dict[str, Any] | None) -> Html:
    if not evaluation:
        return Html("")

    def number(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, int | float) else "–"  # noqa: RUF001

    rows = [
        (
            row["score"],
            row["encoder"],
            row["better"],
            number(row["base"]),
            f"{number(row['tuned'][0])} ({number(row['tuned'][1])} to {number(row['tuned'][2])})",
            number(row["ceiling"]) + (f", {row['ceiling_of']}" if row.get("ceiling_of") not in (None, PHOTOS) else ""),
        )
        for row in evaluation["scores"]
    ]
    caption = (
        f"{evaluation['pictures']} pictures; 95 % intervals; base is the floor, "
        "real photos are the ceiling, or what stands beside it"
    )
    table = html.table(["score", "encoder", "better", ">base", ">tuned", "real photos"], rows, caption)
    return html.section("Scores", table, *(html.callout(remark) for remark in evaluation["remarks"]))


def _reproduce(folder: Path, facts: dict[str, Any], settings: PersonalizeSettings) -> Html:
    name = folder.resolve().name
    again = command("personalize", "--config", folder / "config.yaml", "--name", f"{name}-again")
    commands = [("Train it again, bit for bit on the same machine and versions", again)]
    if facts["status"] == "done":
        commands += [
            ("Draw with it", command("generate", folder, f"a [V] {facts['class_noun']} on the moon")),
            ("Measure it", command("evaluate", folder)),
            ("One file for other programs", command("convert", folder, f"{name}.safetensors")),
        ]
    else:
        commands.append(("Go on", command("personalize", "--resume", folder)))
    commands.append(("This page again", command("report", folder)))
    lines = [html.text(f"{purpose}:", Html("<br>"), html.code(line)) for purpose, line in commands]
    versions = html.table(["", "version"], list(facts["environment"].items()), "Environment")
    base = html.text("Base:", html.code(settings.base), "with hash", html.code(facts["base_hash"]))
    return html.section(
        "Make it again",
        *lines,
        base,
        html.folded(
            "Settings (config.yaml)",
            Html(f'<pre style="white-space:pre-wrap">{html.markup(config.dump(settings))}</pre>'),
        ),
        html.folded("Environment", versions),
    )
