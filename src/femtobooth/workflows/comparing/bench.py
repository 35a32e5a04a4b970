"""Measuring for compare: every model in its own process, all in turns, and everything kept in the cache."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ...core import busy, cache
from ...core.errors import PhotoError, command
from ...core.events import progress_bar
from ...core.machine import environment, processor
from ...core.names import shown
from ...generator.prompts import Called, bare, called_in, named, with_subject
from ...pictures import archive_paths
from ...pictures.provenance import Provenance
from ...recognizer import evaluation
from ...recognizer.finetuning import dataset
from ...recognizer.finetuning.examples import Example
from ...recognizer.inference.predict import workers_for
from ...recognizer.model import artifact
from ...recognizer.model.labels import Labels
from . import figures
from .candidates import GENERATOR, RECOGNIZER, Candidate
from .pictures import Drawings, Measured, Pictures
from .settings import CompareSettings
from .worker import Worker

FORMAT = 4  # counts up when what is in the cache should be measured anew
VERSIONS = (
    "python",
    "platform",
    "femtobooth",
    "torch",
    "diffusers",
    "transformers",
    "timm",
    "onnxruntime",
    "openvino",
    "numpy",
)


class Bench:
    """What is the same for all measurements, and the cache that they are kept in."""

    def __init__(self, settings: CompareSettings, candidates: Sequence[Candidate]) -> None:
        self.settings, self.candidates = settings, candidates
        self.threads = workers_for(settings.threads)
        self.options = {"threads": self.threads, "device": settings.device, "sampling": settings.sampling.model_dump()}
        self.machine = f"{processor()}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        models = [one.given for one in candidates]
        self.command = command("compare", *models, *(["--data", settings.data] if settings.data else []))
        self.workers: dict[str, Worker] = {}
        self._temporary = tempfile.TemporaryDirectory(prefix="femtobooth-")
        self.scratch = Path(self._temporary.name)
        """Where the workers write; what they wrote goes into the cache from there."""
        versions = environment()
        self._facts = [FORMAT, self.machine, settings.device, *(versions.get(name, "") for name in VERSIONS)]

    def batches(self) -> tuple[int, ...]:
        return tuple(sorted({1, self.settings.batch_size}))

    def path(self, kind: str, *facts: Any, end: str = "json") -> Path:
        """Say where the result of a measurement is kept; `facts` are all that it depends on besides machine and
        versions.
        """
        told = json.dumps([self._facts, kind, facts], sort_keys=True)
        return cache.cache_folder() / "compare" / f"{kind}-{hashlib.sha256(told.encode()).hexdigest()[:32]}.{end}"

    def kept(self, path: Path) -> dict[str, Any] | None:
        """Say what was measured before, unless `fresh`; None for what is missing or damaged."""
        stored = None if self.settings.fresh else cache.read(path)
        return None if stored is None else dict(json.loads(stored))

    def keep(self, path: Path, value: Any) -> dict[str, Any]:
        stored = {"value": value, "when": time.strftime("%Y-%m-%d %H:%M"), "command": self.command}
        cache.write(path, json.dumps(stored, ensure_ascii=False).encode())
        return stored

    def how(self, stored: Mapping[str, Any], what: str, data: str = "", kind: str = "measured here") -> figures.How:
        return figures.How(kind, what, str(stored["command"]), data, self.machine, str(stored["when"]))


def groups(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Group the models of each task, in order."""
    tasks = dict.fromkeys(one.task for one in candidates)
    return {task: [one for one in candidates if one.task == task] for task in tasks}


def measure(bench: Bench, remarks: list[str]) -> dict[str, Measured]:
    """Measure facts, peak memory and times (none without `speed`) of every model, by its hash."""
    batches, rounds = bench.batches(), bench.settings.rounds
    how = [bench.options["device"], bench.threads, batches]
    facts: dict[str, dict[str, Any]] = {}
    with progress_bar("opening models", len(bench.candidates)) as bar:
        for one in bench.candidates:
            path = bench.path(
                "model", one.hash, one.task, how, bench.options["sampling"] if one.task == GENERATOR else None
            )
            stored = bench.kept(path)
            if stored is None:
                worker = bench.workers[one.hash]
                found = worker.ask("facts")
                stored = bench.keep(path, {"facts": found, "memory": worker.ask("memory", batches=batches)})
            facts[one.hash] = stored
            bar.advance()
    times: dict[str, dict[str, Any]] = {}
    for group in groups(bench.candidates).values():
        if not bench.settings.speed:
            break
        key = [
            sorted(one.hash for one in group),
            how,
            rounds,
            bench.options["sampling"] if group[0].task == GENERATOR else None,
        ]
        path = bench.path("times", *key)
        stored = bench.kept(path) or bench.keep(path, _times(bench, group))
        if said := busy.remark(stored["value"]["others"]):
            remarks.append(said)
        times |= {
            one.hash: {
                "value": stored["value"]["seconds"][one.hash],
                "when": stored["when"],
                "command": stored["command"],
            }
            for one in group
        }
    others = {one.hash: len(group) - 1 for group in groups(bench.candidates).values() for one in group}
    return {
        one.hash: Measured(
            candidate=one,
            facts=facts[one.hash]["value"]["facts"],
            memory=facts[one.hash]["value"]["memory"],
            seconds={int(batch): taken for batch, taken in times[one.hash]["value"].items()} if times else {},
            counted=bench.how(facts[one.hash], "what it turned out to be when it was loaded", kind="counted here"),
            remembered=bench.how(
                facts[one.hash],
                _how_remembered(batches),
            ),
            timed=bench.how(times[one.hash] if times else facts[one.hash], _how_timed(bench, one, others[one.hash])),
        )
        for one in bench.candidates
    }


def _how_remembered(batches: Sequence[int]) -> str:
    return (
        f"most memory that its own process held, libraries included, after batches of {' and '.join(map(str, batches))}"
    )


def _how_timed(bench: Bench, one: Candidate, others: int) -> str:
    turns = f", taking turns with {others} other model{'s' if others > 1 else ''}" if others else ""
    sampling = bench.settings.sampling
    what = f"prompt to picture, {sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}"
    what = what if one.task == GENERATOR else "decoded and resized pixels to logits"
    return f"{what}: median of {bench.settings.rounds} rounds{turns}; 95 % interval of the median"


def _times(bench: Bench, group: Sequence[Candidate]) -> dict[str, Any]:
    """Measure seconds a batch by model and batch size, and the cores that others took meanwhile.

    In each round every model has its turn, and each round begins with another one.
    """
    taken: dict[str, dict[str, list[float]]] = {
        one.hash: {str(batch): [] for batch in bench.batches()} for one in group
    }
    turns = (bench.settings.rounds + 1) * len(bench.batches()) * len(group)
    with busy.Load() as load, progress_bar(f"timing {group[0].task}s", turns) as bar:
        for batch in bench.batches():
            for turn in range(-1, bench.settings.rounds):  # the first round warms up and is thrown away
                for one in (*group[turn % len(group) :], *group[: turn % len(group)]):
                    seconds = bench.workers[one.hash].ask("time", batch=batch)
                    if turn >= 0:
                        taken[one.hash][str(batch)].append(seconds)
                    bar.advance()
    return {"seconds": taken, "others": load.others}


def answers(
    bench: Bench, measured: Mapping[str, Measured], labelled: Mapping[str, Example], remarks: list[str]
) -> Pictures:
    """Ask what each recognizer says of the `labelled` pictures of the data, those left out that one of them was trained
    on or whose ranges were set on them.

    Raises PhotoError where nothing is left to measure on.
    """
    data = str(bench.settings.data)
    these = [one for one in measured.values() if one.candidate.task == RECOGNIZER]
    trained_on = set().union(*(one.facts["provenance"].get("trained_on") or () for one in these))
    ranges = set().union(*(artifact.ranges_from(one.facts["provenance"]) for one in these)) - trained_on
    for seen, why in (
        (trained_on, "one of the models was trained on them"),
        (ranges, "they set the 8-bit ranges of one of the models"),
    ):
        if count := len(seen & labelled.keys()):
            remarks.append(f"{count} of {len(labelled)} pictures of the data were left out for all: {why}.")
    digests = [digest for digest in labelled if digest not in trained_on | ranges]
    examples = [labelled[digest] for digest in digests]
    if not examples:
        raise PhotoError(
            f"`data={data}`: all its pictures trained a model or set its ranges",
            "give other photos",
        )
    truth = _truth(data, these, [example.label for example in examples])
    paths = [example.path for example in examples]
    listed = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    logits, hows = {}, {}
    problems: dict[Path, str] = {}
    waiting = [one for one in these if (truth[one.candidate.hash] >= 0).any()]
    with progress_bar("pictures", len(paths) * len(waiting)) as bar:
        for one in waiting:
            own = one.candidate.hash
            path = bench.path("outputs", own, listed, bench.options["device"])
            array = path.with_suffix(".npy")
            stored, numbers = bench.kept(path), cache.read(array)
            if stored is None or numbers is None:
                temporary = bench.scratch / array.name
                told = bench.workers[own].ask("predict", bar, paths=[str(path) for path in paths], file=str(temporary))
                stored, numbers = bench.keep(path, told), temporary.read_bytes()
                cache.write(array, numbers)
            else:
                bar.advance(len(paths))
            logits[own] = np.load(BytesIO(numbers), allow_pickle=False)
            problems |= {path: why for path, why in zip(paths, stored["value"], strict=True) if why}
            hows[own] = bench.how(
                stored, "its answers to the pictures of the data", data=f"{shown(data)}, SHA-256 {listed[:12]}"
            )
    if problems:
        first = next(iter(problems))
        remarks.append(
            f"{len(problems)} pictures cannot be read and count for no model; "
            f"the first: {shown(first)}: {problems[first]}."
        )
    usable = np.array([path not in problems for path in paths])
    if not usable.any():
        raise PhotoError(f"`data={data}`: none of its pictures can be read", "check the files")
    return Pictures(
        paths=[path for path in paths if path not in problems],
        labels=[example.label for example in examples if example.path not in problems],
        truth={own: classes[usable] for own, classes in truth.items()},
        logits={own: values[usable] for own, values in logits.items()},
        how=hows,
        models=these,
    )


def labelled(data: str, remarks: list[str]) -> dict[str, Example]:
    """Find real labelled pictures by their SHA-256, each once. Raises PhotoError where there are none."""
    read = dataset.read(data)
    everything, said = read.to_measure()
    remarks += said
    provenance = Provenance()
    real = [example for example in everything if not provenance.generated(example.path)]
    if len(real) < len(everything):
        remarks.append(
            f"{len(everything) - len(real)} generated pictures of the data were left out: only real photos can test."
        )
    found: dict[str, Example] = {}
    for example in real:
        if archive_paths.is_file(example.path):
            found.setdefault(archive_paths.sha256_of(example.path), example)
    if len(found) < len(real):
        remarks.append(
            f"{len(real) - len(found)} pictures of the data are missing or copies "
            "of others, and count once or not at all."
        )
    if read.skipped:
        first = f"{shown(read.skipped[0].path)}: {read.skipped[0].reason}"
        remarks.append(f"{len(read.skipped)} files of the data are no labelled pictures; the first: {first}.")
    if not found:
        raise PhotoError(
            f"`data={data}`: nothing to test on: its pictures are generated or missing", "give real photos"
        )
    return found


def _truth(data: str, models: Sequence[Measured], labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Find by model hash the true class of each picture (N,) among that model's classes, -1 where it has none of that
    name.
    """
    given = list(dict.fromkeys(labels))
    found = {}
    for one in models:
        if one.facts.get("several"):  # of which no picture has one true class; `evaluate-classifier` measures them
            found[one.candidate.hash] = np.full(len(labels), -1)
            continue
        synsets = one.facts["synsets"]
        known = evaluation.classes_of(Labels(tuple(one.facts["names"]), tuple(synsets) if synsets else None), given)
        if all(name.isdecimal() for name in given) and one.facts["names"] != models[0].facts["names"]:
            known = dict.fromkeys(given)  # a number means another class there
        found[one.candidate.hash] = np.array([-1 if (index := known[label]) is None else index for label in labels])
    if not any((classes >= 0).any() for classes in found.values()):
        few = ", ".join(given[:4]) + (", ..." if len(given) > 4 else "")
        raise PhotoError(
            f"`data={data}`: no model knows any of its classes ({few})", "name its folders as a model's classes"
        )
    return found


def _read(text: str, subjects: Mapping[str, Called], noun: str) -> str:
    """Give a prompt as a model reads it: of several subjects [V] is the first of this noun, or the first."""
    tokens = {name: one.token for name, one in subjects.items()}
    if not tokens:
        return bare(text)
    same = [one.token for one in subjects.values() if one.noun == noun]
    return with_subject(named(text, tokens), (same or [*tokens.values()])[0])


def drawings(bench: Bench, measured: Mapping[str, Measured]) -> Drawings | None:
    """Draw the same prompts and seeds by every generator."""
    these = [one for one in measured.values() if one.candidate.task == GENERATOR]
    if not these or not bench.settings.prompts:
        return None
    known = [called for one in these for called in called_in(one.facts["subject"]).values()]
    noun = bench.settings.class_noun or next((one.noun for one in known if one.noun), "cat")
    prompts = [prompt.replace("{class}", noun) for prompt in bench.settings.prompts]
    seeds = [bench.settings.seed + shot for shot in range(bench.settings.count)]
    drawn: dict[str, list[bytes]] = {}
    asked: dict[str, list[str]] = {}
    with progress_bar("pictures", len(these) * len(prompts) * len(seeds)) as bar:
        for one in these:
            asked[one.candidate.hash] = [_read(text, called_in(one.facts["subject"]), noun) for text in prompts]
            jobs = [(text, seed) for text in asked[one.candidate.hash] for seed in seeds]
            paths = [
                bench.path("picture", one.candidate.hash, job, bench.options["sampling"], end="png") for job in jobs
            ]
            found = [None if bench.settings.fresh else cache.read(path) for path in paths]
            missing = [index for index, png in enumerate(found) if png is None]
            bar.advance(len(jobs) - len(missing))
            if missing:
                places = {index: bench.scratch / paths[index].name for index in missing}
                asked_for = [(*jobs[index], str(path)) for index, path in places.items()]
                bench.workers[one.candidate.hash].ask("draw", bar, jobs=asked_for)
                for index, path in places.items():
                    found[index] = path.read_bytes()
                    cache.write(paths[index], path.read_bytes())
            drawn[one.candidate.hash] = [png for png in found if png is not None]
    return Drawings(these, prompts, seeds, drawn, asked, bench.settings.sampling.model_dump())
