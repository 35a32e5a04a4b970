"""The commands, a row each: what is said of it, which settings it takes, and what it runs.

Nothing heavy is imported before it is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import flags


class Instead(NamedTuple):
    """An option that stands in place of the settings, but for those `beside` it."""

    flag: str
    metavar: str
    help: str
    why: str
    way_out: str
    beside: tuple[str, ...] = ()


class Command(NamedTuple):  # a dataclass would take `femtobooth --help` as long again
    summary: str
    """In `femtobooth --help`."""
    description: str
    settings: str
    """The module and class of its settings."""
    flags: Mapping[str, str]
    """Which flag means which setting."""
    takes: Mapping[str, str | None]
    """The settings that are given without a flag, and how many of each, as argparse says it."""
    run: Callable[[Any, argparse.Namespace], dict[str, Any] | None]
    """Runs the workflow and returns what `--json` prints; without settings where the `instead` option is given."""
    begins: str = ""
    """What it says at once, before anything heavy is imported."""
    example: str = ""
    needs: tuple[tuple[str, ...], ...] = ()
    """Groups of settings of which one must be given; the first of each is given without a flag."""
    files: tuple[str, ...] = ()
    """Settings that name files or folders which have to be there."""
    models: tuple[str, ...] = ()
    """Settings that name models, by a path or otherwise."""
    instead: Instead | None = None
    narrowed: Callable[[Mapping[str, Any]], str] = lambda given: ""
    """The class of its settings where what is given decides, else ""."""


def _personalize(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import personalize

    return personalize.resume(options.instead) if options.instead else personalize.run(settings)


def _generate(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import generate
    from .regenerate import regenerate

    if settings:
        return generate.run(settings)
    beside = options.given
    return regenerate(options.instead, beside.get("run"), beside.get("out"), overwrite=bool(beside.get("overwrite")))


def _evaluate(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import evaluate, protocol

    return protocol.run(settings) if "protocol" in options.given else evaluate.run(settings)


def _synthesize(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import synthesize

    return synthesize.run(settings)


def _report(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import report

    return report.run(Path(settings.run))


def _convert(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import convert

    return convert.run(settings.source, settings.target, settings.precision, settings.tokenizer, settings.overwrite)


def _classify(settings: Any, options: argparse.Namespace) -> dict[str, Any] | None:
    from . import classify

    if options.json and not settings.out:  # the rows are the result
        classify.run(settings.model_copy(update={"format": "json"}))
        return None
    return classify.run(settings)


def _embed(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import embed

    return embed.run(settings)


def _search(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import search

    return search.run(settings)


def _finetune(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import finetune

    return finetune.resume(options.instead) if options.instead else finetune.run(settings)


def _export(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import export

    return export.run(settings)


def _evaluate_classifier(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import evaluate_classifier

    return evaluate_classifier.run(settings)


def _compare(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import compare

    return compare.run(settings)


def _models(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import models

    return models.run(Path(settings.runs))


def _demo(settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    from . import demo

    return demo.run(Path(settings.runs))


RESUME = Instead(
    "--resume",
    "RUN",
    "go on with an interrupted run; takes no other settings",
    "goes on with the settings the run was started with",
    "leave the other settings out, or start a new run",
)
AGAIN = Instead(
    "--from",
    "IMAGE",
    "draw a generated PNG again, from what is stored in it",
    "draws with the settings stored in the picture",
    "only RUN, --out and --overwrite go with it",
    beside=("run", "out", "overwrite"),
)
GENERATOR, RECOGNIZER, BOTH = "generator.settings", "recognizer.settings", "workflows.settings"

COMMANDS: dict[str, Command] = {
    "personalize": Command(
        "3-5 photos in, a model that draws the subject out",
        "Teach a Stable Diffusion your subject from 3-5 photos (DreamBooth).",
        f"{GENERATOR}.PersonalizeSettings",
        flags.PERSONALIZE,
        {"photos.paths": "*"},
        _personalize,
        begins="loading {0.base}",
        example="my-dog/ --class-noun dog",
        needs=(("photos.paths",),),
        instead=RESUME,
        files=("photos.paths", "prior.folder"),
    ),
    "generate": Command(
        "draw pictures with it",
        "Draw pictures with a personalized model or any base.",
        f"{GENERATOR}.GenerateSettings",
        flags.GENERATE,
        {"run": "?", "prompts": "*"},
        _generate,
        begins="loading {0.run}",
        example='runs/rex "a [V] dog on the moon"',
        needs=(("run",), ("prompts", "prompts_file")),
        instead=AGAIN,
        files=("init_image", "mask", "prompts_file"),
    ),
    "evaluate": Command(
        "how like the subject, how true to prompts, how far from its base",
        "Measure a personalized model: likeness, prompts, drift and copies, between its base and the real photos.",
        f"{BOTH}.ProtocolSettings",
        flags.PROTOCOL | flags.EVALUATE,
        {"run": "?", "prompts": "*"},
        _evaluate,
        begins="loading {0.run}",
        example="runs/rex",
        needs=(("run",),),
        narrowed=lambda given: "" if "protocol" in given else f"{BOTH}.EvaluateSettings",
        files=("run", "photos", "gallery"),
    ),
    "synthesize": Command(
        "a labelled folder of the subject, for finetune to train on",
        (
            "Draw a labelled folder of your subjects for a recognizer to train on: "
            "judged, without copies, and marked as generated."
        ),
        f"{BOTH}.SynthesizeSettings",
        flags.SYNTHESIZE,
        {"runs": "*"},
        _synthesize,
        begins="loading {0.runs[0]}",
        example="runs/rex --out drawn/",
        needs=(("runs",),),
        files=("runs",),
    ),
    "report": Command(
        "a run on one page: photos, curves, before and after",
        "Put a personalize run on one HTML page, RUN/report.html, that needs nothing else.",
        f"{BOTH}.ReportSettings",
        {},
        {"run": None},
        _report,
        begins="reading {0.run}",
        example="runs/rex",
        files=("run",),
    ),
    "convert": Command(
        "to and from the single-file format of other programs",
        (
            "Turn a model folder or run into one .safetensors file, or back; other "
            "programs load those of Stable Diffusion's own sizes."
        ),
        f"{GENERATOR}.ConvertSettings",
        flags.CONVERT,
        {"source": None, "target": None},
        _convert,
        begins="loading {0.source}",
        example="runs/rex rex.safetensors",
        models=("source",),
    ),
    "classify": Command(
        "say what pictures show",
        "Say what pictures show: one row a file, on stdout or in --out.",
        f"{RECOGNIZER}.ClassifySettings",
        flags.CLASSIFY,
        {"paths": "*"},
        _classify,
        example="photos/",
        needs=(("paths", "from_file"),),
        models=("model",),
    ),
    "embed": Command(
        "pictures to embeddings and feature maps",
        "Turn pictures into embeddings (and pre-logits and stage maps), in one file.",
        f"{RECOGNIZER}.EmbedSettings",
        flags.EMBED,
        {"paths": "*"},
        _embed,
        example="photos/ --out photos.parquet",
        needs=(("paths", "from_file"),),
        models=("model",),
    ),
    "search": Command(
        "the nearest pictures to one",
        "Find the pictures of an index that are nearest to others.",
        f"{RECOGNIZER}.SearchSettings",
        flags.SEARCH,
        {"query": "+", "index": None},
        _search,
        example="photo.jpg photos.parquet",
        files=("index",),
        models=("model",),
    ),
    "finetune": Command(
        "a folder of your classes in, a recognizer of them out",
        "Teach a classifier your classes: data report, linear probe, fine-tuning, and which of the two is better.",
        f"{RECOGNIZER}.FinetuneSettings",
        flags.FINETUNE,
        {"data": "?"},
        _finetune,
        begins="loading {0.model}",
        example="my-classes/",
        needs=(("data",),),
        instead=RESUME,
        files=("data", "synthesized"),
        models=("model",),
    ),
    "export": Command(
        "a recognizer for another runtime, compared with the original",
        "Turn a recognizer into a file for another runtime, and compare it with the original on real photos.",
        f"{RECOGNIZER}.ExportSettings",
        flags.EXPORT,
        {"model": "?"},
        _export,
        begins="loading {0.model}",
        example="runs/mine --format onnx",
        files=("data", "calibration"),
        models=("model",),
    ),
    "evaluate-classifier": Command(
        "how good a recognizer is, and how far to believe it",
        (
            "Measure a classifier on labelled pictures: accuracy, calibration, "
            "doubt, unseen classes, mistakes; on one page."
        ),
        f"{RECOGNIZER}.EvaluateClassifierSettings",
        flags.EVALUATE_CLASSIFIER,
        {"model": "?", "data": "?"},
        _evaluate_classifier,
        begins="loading {0.model}",
        example="runs/mine my-classes/",
        needs=(("data",),),
        files=("data", "unseen"),
        models=("model",),
    ),
    "compare": Command(
        "models side by side, to choose between them",
        "Put models side by side: what was measured here, what their files say, and when to choose which; on one page.",
        f"{BOTH}.CompareSettings",
        flags.COMPARE,
        {"models": "*"},
        _compare,
        begins="loading {0.models[0]} and {0.models[1]}",
        example="runs/rex runs/max",
        needs=(("models",),),
        files=("data",),
        models=("models",),
    ),
    "models": Command(
        "the recognizers that are available here and now",
        "List the recognizers that are available here and now, and how to get the others.",
        f"{BOTH}.ModelsSettings",
        flags.RUNS,
        {},
        _models,
        begins="looking for recognizers",
    ),
    "demo": Command(
        "the whole story on a mascot, in a few minutes on a CPU",
        "Teach the bundled base a mascot it has never seen, and show what it learned.",
        f"{BOTH}.DemoSettings",
        flags.RUNS,
        {},
        _demo,
        begins="loading bundled",
    ),
}
