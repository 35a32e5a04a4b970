"""runs -> a labelled folder of generated pictures that an independent recognizer lets pass, for `finetune` to train on.

OUT/LABEL/*.png               pictures of one subject; each carries prompt, seed, model, encoder and score in its text
    LABEL/provenance.json     the same of all of them, with hashes: by it and by the text they never validate or test
    NOUN/*.png                with `negatives`: the same prompts without the subject, by the base sheet.png,
    rejected.png   what was kept, and what was not and why synthesized.json          settings, thresholds and counts,
    and every rejected picture with its score .drawn/                   everything that was generated, rejected pictures
    too; made again only where a prompt changed
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, cycle, islice, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import __version__
from ..core import machine
from ..core.bulk.settings import CLUSTER
from ..core.errors import ModelError, SettingsError
from ..core.events import progress_bar, warn
from ..core.files import sha256_of, write_json
from ..core.metrics import wilson
from ..core.names import restored, shown
from ..generator import sampling
from ..generator.image_cache import generate_missing
from ..generator.load import load
from ..generator.prompts import bare, filled, names_subject
from ..generator.run import PersonalizedRun
from ..generator.settings import GenerateSettings, PersonalizeSettings
from ..judging import verdict
from ..judging.encoders import Encoder, open_encoder, usable
from ..judging.filtering import KEPT, REASONS, Filtered, filtered, needed, repeated
from ..pictures import duplicates
from ..pictures.images import find_pictures
from ..recognizer.model.backbone import Recognizer
from . import generate, synthesis_sheets
from .labelled_folder import DRAWN, MANIFEST, file_pictures, open_folder
from .settings import SynthesizeSettings


@dataclass
class Subject:
    """A run to generate from, and what comes of it: N pictures by its model and M by its base."""

    label: str
    name: str
    """What the run calls it."""
    run: PersonalizedRun
    made_with: PersonalizeSettings
    photos: list[np.ndarray]
    hashes: list[str]
    """SHA-256 of the photos that made the model what it is, as they were given and as the run keeps them."""
    prompts: list[str] = field(default_factory=list)
    model_hash: str = ""
    jobs: list[tuple[str, int]] = field(default_factory=list)
    pictures: np.ndarray = field(default_factory=lambda: np.zeros(0))
    files: list[Path] = field(default_factory=list)
    base_jobs: list[tuple[str, int]] = field(default_factory=list)
    negatives: int = 0
    """How many of the base's pictures, the first ones, `negatives` keeps; those behind them only set the threshold."""
    base_pictures: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def noun(self) -> str:
        return self.run.subjects[self.name].class_noun


def run(settings: SynthesizeSettings) -> dict[str, Any]:
    """Generate, judge and file pictures; returns what synthesized.json holds. Raises InputError kinds before anything
    is generated.

    Interrupted, it keeps what was generated, and the same command goes on from there.
    """
    out = Path(settings.out)
    subjects = _subjects(settings)
    encoder, judge = _judge(settings)
    for subject in subjects:
        encoder.refuse_trained_on(subject.hashes)
        known = verdict.of_run(subject.run)
        if known and known.mood == "bad":
            warn(f"{shown(subject.run.folder)}: {known.sentence} What it draws is hardly worth training on.")
    asked = json.loads(settings.model_copy(update={"overwrite": False}).model_dump_json(exclude=CLUSTER))
    with open_folder(out, asked, settings.overwrite):
        return _fill(out, subjects, encoder, judge, asked, settings)


def _fill(
    out: Path,
    subjects: list[Subject],
    encoder: Encoder,
    judge: dict[str, str],
    asked: dict[str, Any],
    settings: SynthesizeSettings,
) -> dict[str, Any]:
    _generate(subjects, settings, out / DRAWN)

    chosen = [
        filtered(
            encoder,
            subject.photos,
            list(subject.base_pictures),
            list(subject.pictures),
            settings.passing,
            settings.threshold,
            others=[other.photos for other in subjects if other is not subject],
        )
        for subject in subjects
    ]
    labels = [
        _file_subject(out, subject, found, judge, settings) for subject, found in zip(subjects, chosen, strict=True)
    ]
    negatives = _file_negatives(out, subjects, settings) if settings.negatives else {}
    report = {
        "femtobooth": __version__,
        "status": "done",
        "folder": str(out),
        "settings": asked,
        "encoder": judge,
        "subjects": labels,
        "negatives": negatives,
        "environment": machine.environment(),
    }
    shown_subjects = [(subject.label, subject.photos, subject.pictures) for subject in subjects]
    synthesis_sheets.write(out, shown_subjects, chosen)
    write_json(out / MANIFEST, report)
    synthesis_sheets.tell(report, out)
    return report


def _subjects(settings: SynthesizeSettings) -> list[Subject]:
    """Open the runs and what is known of them.

    Raises ModelError for what is no finished run, SettingsError for unusable labels.
    """
    if not names_subject(settings.template):
        raise SettingsError(
            f'template "{settings.template}": needs [V], which stands for the subject',
            'for example "a {style} [V] {class}"',
        )
    subjects: list[Subject] = []
    for place in settings.runs:
        run = PersonalizedRun.open_finished(place, "only such a run can draw a subject")
        made_with, hashes = run.made_with(), _hashes(run)
        for name, (taught, _) in run.photos_of_each().items():
            label = Path(place).resolve().name if len(run.subjects) == 1 else name
            photos = [photo.pixels for photo in taught]
            prompts = _prompts(settings, run.subjects[name].class_noun)
            subjects.append(Subject(label, name, run, made_with, photos, hashes, prompts))
    if settings.labels and len(settings.labels) != len(subjects):
        runs, each = f"{len(settings.runs)} runs", "run"
        if len(subjects) > len(settings.runs):
            runs, each = f"{len(subjects)} subjects of {runs}", "subject"
        raise SettingsError(f"`labels`: {len(settings.labels)} for {runs}", f"give one for each {each}, in order")
    for subject, given in zip(subjects, settings.labels, strict=False):
        subject.label = given
    names = [subject.label for subject in subjects]
    for name in [*names, *(subject.noun for subject in subjects if settings.negatives)]:
        if not name.strip() or name.startswith(".") or re.search(r"[/\\\0]", name):
            raise SettingsError(f"`labels`: {name!r} cannot be a folder's name", "use letters, digits and spaces")
    twice = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
    if twice:
        raise SettingsError(f"{twice[0]}: two runs of this name", "`labels` gives each run a name of its own")
    return subjects


def _hashes(run: PersonalizedRun) -> list[str]:
    """Hash (SHA-256) the photos that a run's model has seen: of its copies, and of the originals that are still where
    they were.

    Those held out of training count where they chose the step that became the model, or when training ended.
    """
    chose = bool((run.selected or {}).get("rule")) or run.made_with().validation.stop_when_done
    seen = {"used": "photos", "held out": "held_out"} if run.held_out and chose else {"used": "photos"}
    preflight = json.loads((run.folder / "preflight.json").read_text(encoding="utf-8"))
    originals = [Path(restored(row["file"])) for row in preflight if row["status"] in seen]
    gone = [path for path in originals if not path.is_file()]
    if gone:
        warn(
            f"{shown(run.folder)}: {len(gone)} of its {len(originals)} photos are gone; "
            "finetune will not know that they may not validate"
        )
    return sorted(
        {
            sha256_of(path)
            for path in [*find_pictures([run.folder / name for name in seen.values()])[0], *originals]
            if path.is_file()
        }
    )


def _prompts(settings: SynthesizeSettings, noun: str) -> list[str]:
    """Make the grid of prompts: every background, scale and style, with [V] in it."""
    found = []
    for background, scale, style in product(
        settings.backgrounds or [""], settings.scales or [""], settings.styles or [""]
    ):
        words = {"{background}": background, "{scale}": scale, "{style}": style, "{class}": noun}
        text = settings.template
        for name, word in words.items():
            text = text.replace(name, word)
        found.append(" ".join(text.split()))
    return list(dict.fromkeys(found))


def _judge(settings: SynthesizeSettings) -> tuple[Encoder, dict[str, str]]:
    """Open the encoder that chooses, and tell how it is known. Raises ModelError where it is what will be trained."""
    barred = _hash(settings.recognizer) if settings.recognizer else ""
    for name in [settings.encoder] if settings.encoder else usable():
        judge = {"name": name, "hash": _hash(name)}
        if not barred or judge["hash"] != barred:
            encoder = open_encoder(name).to(machine.device(settings.device))
            return encoder, {**judge, "weights": encoder.source}
    raise ModelError(
        (
            f"`encoder={settings.encoder or settings.recognizer}`: is the recognizer "
            "that is to be trained; it would choose by its own taste"
        ),
        "choose another `encoder`: dino, clip, bundled, tf_efficientnet_lite0 or a path",
    )


def _hash(name: str) -> str:
    """Hash what `finetune` knows a recognizer by; nothing for encoders that it cannot train."""
    return "" if name in ("dino", "clip") else Recognizer.load(name).hash


def _generate(subjects: Sequence[Subject], settings: SynthesizeSettings, folder: Path) -> None:
    """Generate, or read, all pictures: every prompt by the subject's model, and without the subject by its base."""
    device = machine.device(settings.device)
    seeds = count(
        settings.seed
    )  # one of its own for every picture: those from one start look alike, whatever their prompts
    for subject in subjects:
        called = subject.run.called[subject.name]
        texts = [filled(prompt, *called) for prompt in subject.prompts]
        subject.jobs = [(text, next(seeds)) for text in texts for _ in range(settings.count)]
        without = [bare(prompt) for prompt in subject.prompts]
        subject.base_jobs = [
            (text, next(seeds)) for text in without for _ in range(settings.count if settings.negatives else 1)
        ]
        subject.negatives = len(subject.base_jobs)
        missing = (
            needed(settings.passing) - subject.negatives if settings.threshold is None else 0
        )  # a threshold from four tells nothing
        subject.base_jobs += [(text, next(seeds)) for text in islice(cycle(without), max(missing, 0))]
    if settings.executor == "ray":
        _share(subjects, settings, folder)
    total = sum(len(subject.jobs) + len(subject.base_jobs) for subject in subjects)
    with progress_bar("pictures", total, parts=settings.sampling.steps) as bar:
        for subject in subjects:
            how = (settings.sampling, settings.batch_size, subject.run.size, bar)
            base = subject.run.load_base(subject.made_with)
            sampling.check(base, settings.sampling)
            subject.base_pictures, _ = generate_missing(base.to(device), folder, subject.base_jobs, *how)
            del base
            model = load(str(subject.run.folder))
            subject.model_hash = model.hash
            subject.pictures, subject.files = generate_missing(model.to(device), folder, subject.jobs, *how)


def _share(subjects: Sequence[Subject], settings: SynthesizeSettings, folder: Path) -> None:
    """Have the actors of a cluster draw into the folder, which then holds all pictures."""
    import torch

    from ..generator.shared_drawing import How, batches, draw

    folder.mkdir(exist_ok=True)
    threads = 1 if settings.gpus_per_actor else torch.get_num_threads()
    listed = []
    for subject in subjects:
        run = str(subject.run.folder)
        listed += batches(run, True, subject.base_jobs, settings.batch_size)
        listed += batches(run, False, subject.jobs, settings.batch_size)
    draw(settings, listed, How(folder.absolute(), settings.sampling, settings.batch_size, settings.device, threads))


def _file_subject(
    out: Path, subject: Subject, found: Filtered, judge: dict[str, str], settings: SynthesizeSettings
) -> dict[str, Any]:
    """Write the kept pictures of a subject under its label; returns what is reported of it."""
    facts = {
        "label": subject.label,
        "run": str(subject.run.folder),
        "subject": subject.run.subjects[subject.name].token,
        "class_noun": subject.noun,
        "encoder": judge,
        "threshold": found.threshold,
        "photos": subject.hashes,
    }
    kept = [verdict == KEPT for verdict in found.verdicts]
    model = {"source": str(subject.run.folder), "hash": subject.model_hash}
    how = _how(subject, settings)
    file_pictures(
        out / subject.label, subject.jobs, subject.pictures, kept, facts, found.scores, model, how, settings.batch_size
    )
    counts = Counter(found.verdicts)
    return {
        **facts,
        "model_hash": subject.model_hash,
        "drawn": len(kept),
        "kept": counts[KEPT],
        "kept_share": list(wilson(counts[KEPT], len(kept))),
        "rejected": {reason: counts[reason] for reason in REASONS},
        "photos_passing": [found.photos_pass, len(found.photos)],
        "base_passing": [found.base_passes, len(found.base)],
        "scores": {"pictures": found.scores.tolist(), "photos": found.photos.tolist(), "base": found.base.tolist()},
        "rejected_files": [
            {"file": f"{DRAWN}/{path.name}", "reason": verdict, "score": float(score), "prompt": prompt, "seed": seed}
            for path, verdict, score, (prompt, seed) in zip(
                subject.files, found.verdicts, found.scores, subject.jobs, strict=True
            )
            if verdict != KEPT
        ],
    }


def _file_negatives(out: Path, subjects: Sequence[Subject], settings: SynthesizeSettings) -> dict[str, int]:
    """Write the base's pictures under their class nouns (`other NOUN` where a subject has that name); returns how many
    of each.
    """
    counts = {}
    for noun in dict.fromkeys(subject.noun for subject in subjects):
        first = next(subject for subject in subjects if subject.noun == noun)
        taken = noun.casefold() in {subject.label.casefold() for subject in subjects}
        label = f"other {noun}" if taken else noun
        jobs, pictures = first.base_jobs[: first.negatives], first.base_pictures[: first.negatives]
        views = [duplicates.views(Image.fromarray(picture)) for picture in pictures]
        again = set(repeated(views, np.zeros(len(views))))
        kept = [view is not None and index not in again for index, view in enumerate(views)]
        model = {"source": first.made_with.base, "hash": first.run.base_hash}
        facts, how = {"label": label, "class_noun": noun}, _how(first, settings)
        file_pictures(out / label, jobs, pictures, kept, facts, None, model, how, settings.batch_size)
        counts[label] = sum(kept)
    return counts


def _how(subject: Subject, settings: SynthesizeSettings) -> dict[str, Any]:
    """Give the settings that shape a picture, as `generate` stores them."""
    size, device = subject.run.size, str(machine.device(settings.device))
    how = GenerateSettings(run=str(subject.run.folder), size=str(size), device=device, sampling=settings.sampling)
    return generate.shaping(how, size)
