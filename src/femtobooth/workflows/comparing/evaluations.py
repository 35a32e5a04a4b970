"""Scores that compare reads from earlier evaluations, where they belong to exactly the weights that are compared."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import command
from ...core.files import content_hash, read_json
from .figures import Figure, How
from .pictures import Measured


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
    """Read the scores of its own evaluation, or, for a base, of the first evaluation among `models` whose
    floor it is.
    """
    own = _evaluation(one)
    if own:
        return _scores(one, own, floor=False)
    for other in models:
        found = _evaluation(other)
        if found and other.facts["subject"].get("base_hash") == one.facts["weights_hash"]:
            return _scores(other, found, floor=True)
    return []


def _evaluation(one: Measured) -> dict[str, Any] | None:
    """Read RUN/evaluation/evaluation.json, if it is of these weights."""
    report = read_json(one.candidate.run / "evaluation" / "evaluation.json") if one.candidate.run else None
    known = (
        isinstance(report, dict)
        and isinstance(report.get("scores"), list)
        and report.get("model_hash") == one.facts["weights_hash"]
    )
    return report if known else None


def _scores(one: Measured, report: Mapping[str, Any], floor: bool) -> list[Score]:
    run = one.candidate.run
    assert run is not None  # noqa: S101  (its evaluation was read)
    file = run / "evaluation" / "evaluation.json"
    real = [path for name in ("photos", "held_out") for path in (run / name).rglob("*") if path.is_file()]
    photos = content_hash(real, run)
    shaping = {
        key: value
        for key, value in report.get("settings", {}).items()
        if key not in ("run", "encoders", "device", "batch_size", "together")
    }
    setup = json.dumps([shaping, report.get("prompts"), photos], sort_keys=True)
    against = report.get("scored_against", "those of the run")
    drawn = f"{report.get('pictures')} pictures against {report.get('photos')} photos: {against}"
    found = []
    for row in report["scores"]:
        if floor and row.get("base") is None:
            continue
        value, *interval = [row["base"]] if floor else row["tuned"]
        subject = row.get("subject")  # of several
        what = (
            f"{'of its base, the floor' if floor else 'of the tuned model'}; "
            f"encoder {row['encoder']} ({row.get('weights', '')})"
        )
        found.append(
            Score(
                name=f"{row['score']}{f' of {subject}' if subject else ''} by {row['encoder']}",
                value=float(value),
                interval=(float(interval[0]), float(interval[1])) if interval else None,
                higher=row["better"] == "higher",
                gain=None if floor else row.get("gain"),
                floor=floor,
                zero=row.get("base") == 0 and "drift" in row["score"],
                setup=setup,
                how=_how(file, what, command("evaluate", run), drawn),
            )
        )
    return found


def classifier_evaluation(one: Measured, folders: Sequence[str]) -> tuple[Figure, Figure] | None:
    """Read the top-1 accuracy and calibration error that evaluate-classifier found of exactly these weights; the newest
    report counts.
    """
    own = [place / "evaluation" for place in (one.candidate.run, one.candidate.path) if place]
    files = [folder / "report.json" for folder in [*own, *(Path(folder) for folder in folders)]]
    for file in sorted((file for file in files if file.is_file()), key=lambda file: -file.stat().st_mtime):
        report = read_json(file)
        if not isinstance(report, dict) or report.get("hash") != one.facts["weights_hash"]:
            continue
        try:
            told = f"{report['pictures']} pictures of {report['classes']} classes"
            values = report["top1"], report["calibration"]["before"]["ece"]
            how = _how(
                file,
                f"of the same weights, in {report['engine']}; {told}",
                command("evaluate-classifier", one.candidate.given),
                str(report["data"]),
            )
            first, second = (
                Figure(
                    f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
                    how,
                    float(value),
                    (float(low), float(high)),
                )
                for value, low, high in values
            )
        except (KeyError, TypeError, ValueError):
            continue
        return first, second
    return None


def _how(file: Path, what: str, command: str, data: str) -> How:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
    return How("read from a file", f"{what}; {data}", command, str(file), when=when)
