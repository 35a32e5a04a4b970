"""dataset -> every subject personalized, generated and scored as in the DreamBooth paper -> one table beside the
published figures.

RUNS/SUBJECT/         a run of personalize with its evaluation/
     protocol.json    scores of every subject so far, their means, the published figures, the settings

Stopped or killed at any point, the same command goes on: finished runs, pictures and scores are kept. Subjects that
were measured before, from the same base and with the same settings and encoders, stay in the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core import config
from ..core.errors import ExistsError, FemtoboothError, Interrupted, PhotoError, SettingsError
from ..core.events import conclude, note, table
from ..core.files import read_json, refuse_existing, write_json, write_text, writing
from ..core.machine import environment
from ..core.metrics import bootstrap
from ..core.paths import expanded
from ..core.processes import world
from ..core.run import is_run
from ..core.strict_yaml import dump_yaml
from ..generator.load import load
from ..generator.run import PersonalizedRun
from ..generator.settings import PersonalizeSettings, of_card
from ..judging import scores, verdict
from ..judging.encoders import open_encoder, usable
from ..pictures.images import find_pictures
from ..training.settings import ResumeSettings
from . import evaluate, personalize
from .many.dreambooth_lists import LISTS, read_lists
from .many.settings import MANY
from .many.together import together
from .many.work import PRIVATE, Ended, Work, training
from .settings import EvaluateSettings, ProtocolSettings

LIVE = frozenset({"cat", "dog"})  # classes of the paper's nine live subjects, which have a list of prompts of their own
SUBJECTS, PROMPTS, PICTURES = 30, 25, 4  # of the paper
COLUMNS = {"dino": "DINO", "clip": "CLIP-I"}  # what the paper calls subject fidelity by these encoders
TRAIN, MEASURE = "train.yaml", "measure.yaml"
FIDELITY, REGION, CLIP_T = "subject fidelity", "subject fidelity, region", "prompt fidelity (CLIP-T)"


@dataclass(frozen=True)
class Subject:
    name: str
    class_noun: str
    prompts: list[str]
    """With [V] and {class}."""


Plan = tuple[Subject, PersonalizeSettings, EvaluateSettings]


def one_or_all(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluate one run or, by a protocol, every subject of a dataset."""
    return run(settings) if isinstance(settings, ProtocolSettings) else evaluate.run(settings)


def run(settings: ProtocolSettings) -> dict[str, Any]:
    """Go through all subjects; returns what protocol.json holds. Raises InputError kinds before anything is trained."""
    if (several := world()) > 1:
        raise SettingsError(
            f"`protocol`: was started as {several} processes, which would all measure",
            "start it once; `jobs` or `executor=ray` train subjects beside each other",
        )
    for name in ("prompts", "photos"):
        if name in settings.model_fields_set:
            raise SettingsError(f"{name}: the protocol takes those of the dataset", "leave yours out")
    data, runs = expanded(settings.run), Path(settings.runs)
    subjects = _subjects(data, settings.subjects)
    encoders = settings.encoders or usable()
    sources = {name: open_encoder(name).source for name in encoders}
    plans = [(subject, *_plan(subject, data, settings, encoders)) for subject in subjects]
    shared = _shared(*plans[0][1:], sources)
    rows = _begin(runs, [subject.name for subject in subjects], shared)
    planned = len(rows.keys() | {subject.name for subject in subjects})
    ended = _beside(plans, runs, settings) if settings.executor == "ray" or settings.jobs else {}
    wrong = [name for name, one in ended.items() if one.status != "done"]
    for number, (subject, train, measure) in enumerate(plans, start=1):
        if subject.name in wrong:
            continue
        note(f"\nsubject {number} of {len(plans)}: {subject.name}")
        rows[subject.name] = _subject(subject, runs / subject.name, train, measure)
        result = _result(settings, [rows[name] for name in sorted(rows)], planned, plans[0][1]) | shared
        write_json(runs / "protocol.json", result)
    if len(wrong) < len(plans):
        _tell(result)
    if wrong:
        raise FemtoboothError(f"not finished: {', '.join(wrong)}", "the same command goes on with them")
    return result


def _beside(plans: Sequence[Plan], runs: Path, settings: ProtocolSettings) -> dict[str, Ended]:
    """Train and measure the subjects beside each other, each in processes of its own, as `train-many` trains them."""
    works = []
    for subject, train, measure in plans:
        place = runs / PRIVATE / subject.name
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        photos = {"paths": train.photos.paths, "class_noun": subject.class_noun}
        given = {"name": subject.name, "runs": settings.runs, "photos": photos}
        write_text(place / TRAIN, dump_yaml(config.merge(settings.personalize, given)))
        write_text(place / MEASURE, dump_yaml(measure.model_dump(mode="json")))
        following = partial(_following, runs / subject.name, place / TRAIN, place / MEASURE, measure)
        works.append(Work(subject.name, place, runs / subject.name, following))
    return together(works, settings, plans[0][1].training.accelerator != "cpu")


def _following(folder: Path, train: Path, measure: Path, wanted: EvaluateSettings) -> Sequence[str] | None:
    if words := training(folder, train):
        return words
    measured = _measured(folder / "evaluation" / "evaluation.json", wanted)
    return None if measured else ["evaluate", "--config", str(measure)]


def _subjects(data: Path, wanted: Sequence[str]) -> list[Subject]:
    """List the wanted subjects, or all that the dataset holds, in the order of its list."""
    if not data.is_dir():
        raise PhotoError(
            f"{data}: no such folder",
            "give a folder with a folder of photos for each subject, as google/dreambooth has",
        )
    classes, objects, live = read_lists(data / LISTS)
    there = [name for name in classes if (data / name).is_dir() and find_pictures([data / name])[0]]
    missing = [name for name in wanted if name not in there]
    if missing:
        raise SettingsError(
            f"`subjects={', '.join(missing)}`: not in {data}", f"there are {', '.join(there) or 'none'}"
        )
    if not there:
        raise PhotoError(
            f"{data}: holds no photos of the subjects in {LISTS}", "it needs a folder for each, named as there"
        )
    chosen = [name for name in there if not wanted or name in wanted]
    return [Subject(name, classes[name], live if classes[name] in LIVE else objects) for name in chosen]


def _plan(
    subject: Subject, data: Path, settings: ProtocolSettings, encoders: list[str]
) -> tuple[PersonalizeSettings, EvaluateSettings]:
    """Settle how a subject is trained and measured. Raises SettingsError for what the protocol itself decides."""
    for path in ("name", "runs", "overwrite", "photos.paths", "photos.class_noun"):
        found: Any = settings.personalize
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            raise SettingsError(f"personalize.{path}: the protocol decides it", "leave it out")
    photos = {"paths": [str(data / subject.name)], "class_noun": subject.class_noun}
    train = config.settle(
        PersonalizeSettings, settings.personalize, {"name": subject.name, "runs": settings.runs, "photos": photos}
    )
    given = settings.model_dump(
        exclude_unset=True, exclude={"run", "protocol", "subjects", "runs", "personalize", "encoders", *MANY}
    )
    own = {"run": str(Path(settings.runs) / subject.name), "prompts": subject.prompts, "encoders": encoders}
    sampling = of_card(train.base, "generate").get("sampling", {})  # which its tuned models inherit
    return train, config.resolve(EvaluateSettings, {"sampling": sampling}, given, own)


def _shared(train: PersonalizeSettings, measure: EvaluateSettings, sources: dict[str, str]) -> dict[str, Any]:
    """Gather what all subjects of one table have in common."""
    return {
        "personalize": train.model_dump(
            mode="json", exclude={"name": True, "runs": True, "overwrite": True, "photos": {"paths", "class_noun"}}
        ),
        "base_hash": load(train.base, train.tokenizer).hash,
        "evaluate": measure.model_dump(mode="json", exclude={"run", "prompts", "encoders", "device", "batch_size"}),
        "encoders": sources,
    }


def _begin(runs: Path, subjects: Sequence[str], shared: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Start the protocol, or go on with it; returns the lines of what was measured before, by subject.

    Raises ExistsError where that was trained in another way, or measured in another way and would not be measured again
    now.
    """
    before = read_json(runs / "protocol.json")
    try:
        rows = {row["subject"]: row for row in before["subjects"]}
        known = {name: before.get(name) for name in shared}
    except (TypeError, KeyError, AttributeError):
        for name in subjects:
            refuse_existing(runs / name, overwrite=False)
        write_json(runs / "protocol.json", {"protocol": "dreambooth", "subjects": [], **shared})
        return {}
    if changed := _changed(known["personalize"], shared["personalize"]):
        raise ExistsError(
            f"{runs}: was begun with other settings of personalize ({changed})",
            "choose another `runs`, or the same settings",
        )
    if known["base_hash"] != shared["base_hash"]:
        raise ExistsError(
            f"{runs}: was begun from another base of the same name",
            "choose another `runs`, or put the same base back",
        )
    changed = _changed(
        {"encoders": known["encoders"], **(known["evaluate"] or {})},
        {"encoders": shared["encoders"], **shared["evaluate"]},
    )
    others = [name for name in rows if name not in subjects]
    if changed and others:
        raise ExistsError(
            f"{runs}: {', '.join(others)}: measured with other settings ({changed}), which makes no common table",
            (
                "choose the same settings, or another `runs`; "
                f"`subjects={','.join(sorted({*rows, *subjects}))}` measures all of them anew"
            ),
        )
    return {} if changed else rows


def _changed(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    before = before or {}
    return ", ".join(sorted(key for key in {*before, *now} if before.get(key) != now.get(key)))


def _subject(subject: Subject, folder: Path, train: PersonalizeSettings, measure: EvaluateSettings) -> dict[str, Any]:
    """Train and measure what is not trained and measured yet; returns the subject's line."""
    try:
        if not is_run(folder):
            personalize.run(train)
        elif PersonalizedRun.open(folder).status != "done":
            personalize.resume(ResumeSettings(run=str(folder)))
    except Interrupted as stop:
        raise Interrupted(stop.problem, "the same command goes on from there", stop.exit_code - 128) from None
    found = _measured(folder / "evaluation" / "evaluation.json", measure) or evaluate.run(measure)
    kept = {
        name: found[name]
        for name in ("class_noun", "steps", "prompts", "pictures", "photos", "held_out", "near_copies", "remarks")
    }
    rows = [{key: value for key, value in row.items() if key != "pictures"} for row in found["scores"]]
    line = {"subject": subject.name, **kept, "prompts": len(kept["prompts"]), "scores": rows}
    return line | {"verdict": found.get("verdict")}


def _measured(path: Path, settings: EvaluateSettings) -> dict[str, Any] | None:
    """Read a finished evaluation with just these settings."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found if found["settings"] == settings.model_dump(mode="json") else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _result(
    settings: ProtocolSettings, rows: list[dict[str, Any]], planned: int, train: PersonalizeSettings
) -> dict[str, Any]:
    scored = [(row["subject"], score) for row in rows for score in row["scores"]]
    means = []
    for name, encoder in dict.fromkeys((score["score"], score["encoder"]) for _, score in scored):
        found = [score for _, score in scored if (score["score"], score["encoder"]) == (name, encoder)]
        mean = {key: _mean([score[key] for score in found]) for key in ("base", "ceiling")}
        # One subject says nothing of others: its own interval, over prompts and seeds, stands.
        tuned = bootstrap(np.mean, [score["tuned"][0] for score in found]) if len(found) > 1 else found[0]["tuned"]
        means.append(
            {
                "score": name,
                "encoder": encoder,
                "better": found[0]["better"],
                "tuned": list(tuned),
                **mean,
                "subjects": len(found),
            }
        )
    whole = len(rows) == SUBJECTS and all(
        (row["prompts"], row["pictures"]) == (PROMPTS, PROMPTS * PICTURES) for row in rows
    )
    return {
        "protocol": "dreambooth",
        "whole": whole,
        "data": settings.run,
        "runs": settings.runs,
        "base": train.base,
        "planned": planned,
        "means": means,
        "published": [dict(zip(("name", "dino", "clip_i", "clip_t"), row, strict=True)) for row in scores.PUBLISHED],
        "subjects": rows,
        "environment": environment(),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _tell(result: Mapping[str, Any]) -> None:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    by_score = {(mean["score"], mean["encoder"]): mean for mean in result["means"]}
    encoders = list(dict.fromkeys(mean["encoder"] for mean in result["means"] if mean["score"] == FIDELITY))
    rows = []
    for subject in result["subjects"]:
        judged = verdict.read(subject.get("verdict"))  # None in a line of an older version
        found = {(row["score"], row["encoder"]): row for row in subject["scores"]}
        for encoder in encoders:
            whole, region = found[FIDELITY, encoder], found.get((REGION, encoder))
            values = (whole["tuned"][0], whole["base"], whole["ceiling"], region["tuned"][0] if region else None)
            rows.append(
                (
                    subject["subject"],
                    encoder,
                    *map(number, values),
                    f"{subject['near_copies']['count']} of {subject['pictures']}",
                    judged.outcome if judged else "-",
                )
            )
    note("")
    columns = ["subject", "encoder", ">fidelity", ">base", ">photos", ">region", ">near-copies", "verdict"]
    table("Subject fidelity: mean cosine of pictures and photos", columns, rows, result=True)

    others = [encoder for encoder in encoders if encoder not in COLUMNS]
    lines = [
        [name, number(dino), number(clip_i), number(clip_t), *("-" for _ in others)]
        for name, dino, clip_i, clip_t in scores.PUBLISHED
    ]
    places = [(FIDELITY, "dino"), (FIDELITY, "clip"), (CLIP_T, "clip"), *((FIDELITY, name) for name in others)]
    for name, key in (("real photos", "ceiling"), ("tuned", "tuned"), ("untuned base", "base")):
        cells = []
        for place in places:
            value = by_score.get(place, {}).get(key)
            if key == "tuned" and value:
                cells.append(f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})")
            else:
                cells.append(number(value))
        lines.append([f"ours: {name}", *cells])
    table(
        "Published (first four lines) and ours",
        ["", ">DINO", ">CLIP-I", ">CLIP-T", *(f">{name}" for name in others)],
        lines,
    )
    subjects = result["subjects"]
    pictures = sorted({row["pictures"] for row in subjects})
    size = (
        f"{len(subjects)} of {SUBJECTS} subjects, {'/'.join(map(str, pictures))} of {PROMPTS * PICTURES} pictures each"
    )
    over = "subjects" if len(subjects) > 1 else "prompts and seeds"
    note(f"ours: {size}, on {Path(result['base']).name}; 95 % intervals over {over}")
    if others:
        note(f"{', '.join(others)}: no encoder of the paper, so these columns compare with nothing that was published")
    conclude(f"all of it: {Path(result['runs']) / 'protocol.json'}")
