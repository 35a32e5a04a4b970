"""Scores that compare reads from earlier evaluations, where they belong to exactly the weights that are compared."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...core.figures import Figure, How
from ...core.runs import content_hash
from .pictures import Measured

DRAWN_BY = "femtobooth-evaluation"  # the PNG text chunk of evaluate's pictures


@dataclass(frozen=True)
class Score:
    """One score of a generator."""

    name: str
    """With the encoder that made it."""
    value: float
    interval: tuple[float, float] | None
    higher: bool
    """Whether higher is better."""
    gain: tuple[float, float, float] | None
    """Over its base, on the same prompts and seeds."""
    floor: bool
    """Whether it is the base's score in the evaluation of a model that was made from it."""
    zero: bool
    """Whether the base's is 0 by definition: drift is measured from it."""
    setup: str
    """Scores of different setups are not compared."""
    how: How


def scores(one: Measured, models: Sequence[Measured]) -> list[Score]:
    """Of its own evaluation, or, for a base, of the first evaluation among `models` whose floor it is."""
    own = _evaluation(one)
    if own:
        return _scores(one, own, floor=False)
    for other in models:
        found = _evaluation(other)
        if found and other.facts["subject"].get("base_hash") == one.facts["weights_hash"]:
            return _scores(other, found, floor=True)
    return []


def _evaluation(one: Measured) -> dict[str, Any] | None:
    """RUN/evaluation/evaluation.json, if its pictures were drawn by these weights."""
    if not one.candidate.run:
        return None
    folder = one.candidate.run / "evaluation"
    report = _read(folder / "evaluation.json")
    if not isinstance(report, dict) or not isinstance(report.get("scores"), list):
        return None
    stated = report.get("model_hash")
    return (
        report
        if (stated == one.facts["weights_hash"] if stated else drawn_by(one.facts["weights_hash"], one.candidate.run, report))
        else None
    )


def _scores(one: Measured, report: Mapping[str, Any], floor: bool) -> list[Score]:
    run = one.candidate.run
    assert run is not None  # noqa: S101  (its evaluation was read)
    file = run / "evaluation" / "evaluation.json"
    real = [path for name in ("photos", "held_out") for path in (run / name).rglob("*") if path.is_file()]
    photos = content_hash(real, run)
    shaping = {key: value for key, value in report.get("settings", {}).items() if key not in ("run", "encoders", "device", "batch_size")}
    setup = json.dumps([shaping, report.get("prompts"), photos], sort_keys=True)
    against = report.get("scored_against", "those of the run")
    drawn = f"{report.get('pictures')} pictures against {report.get('photos')} photos: {against}"
    found = []
    for row in report["scores"]:
        if floor and row.get("base") is None:
            continue
        value, *interval = [row["base"]] if floor else row["tuned"]
        what = f"{'of its base, the floor' if floor else 'of the tuned model'}; encoder {row['encoder']} ({row.get('weights', '')})"
        found.append(
            Score(
                name=f"{row['score']} by {row['encoder']}",
                value=float(value),
                interval=(float(interval[0]), float(interval[1])) if interval else None,
                higher=row["better"] == "higher",
                gain=None if floor else row.get("gain"),
                floor=floor,
                zero=row.get("base") == 0 and "drift" in row["score"],
                setup=setup,
                how=_how(file, what, f"femtobooth evaluate {run}", drawn),
            )
        )
    return found


def drawn_by(model_hash: str, run: Path, report: Mapping[str, Any]) -> bool:
    """Whether the pictures that an evaluation's report is about were drawn by the model of this hash.

    Each of them holds a key over everything that shaped it, the model among it, as `generator.drawing` makes it.
    """
    facts, settings = _read(run / "run.json"), report.get("settings")
    if not isinstance(facts, dict) or not isinstance(settings, dict) or not report.get("prompts"):
        return False
    try:
        how = {"model": model_hash, "size": facts["size"], "batch": settings["batch_size"], **settings["sampling"]}
        for prompt in report["prompts"]:
            text = re.sub(r"\[v\]", lambda _: facts["token"], prompt, flags=re.IGNORECASE)
            for shot in range(settings["count"]):
                told = json.dumps({**how, "prompt": text, "seed": settings["seed"] + shot}, sort_keys=True)
                key = hashlib.sha256(told.encode()).hexdigest()
                with Image.open(run / "evaluation" / "pictures" / "tuned" / f"{key[:16]}.png") as image:
                    if getattr(image, "text", {}).get(DRAWN_BY) != key:
                        return False
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        return False
    return True


def classifier_evaluation(one: Measured, folders: Sequence[str]) -> tuple[Figure, Figure] | None:
    """Top-1 accuracy and calibration error that evaluate-classifier found of exactly these weights; the newest report counts."""
    own = [place / "evaluation" for place in (one.candidate.run, one.candidate.path) if place]
    files = [folder / "report.json" for folder in [*own, *(Path(folder) for folder in folders)]]
    for file in sorted((file for file in files if file.is_file()), key=lambda file: -file.stat().st_mtime):
        report = _read(file)
        if not isinstance(report, dict) or report.get("hash") != one.facts["weights_hash"]:
            continue
        try:
            told = f"{report['pictures']} pictures of {report['classes']} classes"
            values = report["top1"], report["calibration"]["before"]["ece"]
            how = _how(
                file,
                f"of the same weights, in {report['engine']}; {told}",
                f"femtobooth evaluate-classifier {one.candidate.given}",
                str(report["data"]),
            )
            first, second = (
                Figure(f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})", how, float(value), (float(low), float(high)))
                for value, low, high in values
            )
        except (KeyError, TypeError, ValueError):
            continue
        return first, second
    return None


def _how(file: Path, what: str, command: str, data: str) -> How:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
    return How("read from a file", f"{what}; {data}", command, str(file), when=when)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
