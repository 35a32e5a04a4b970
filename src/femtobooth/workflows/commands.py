"""The commands, a row each: what is said of it, which settings it takes, and what it runs.

Adding a command is a file and a row here: its settings say themselves which flags they have (core/fields.py). Rows
name what they mean as `module:name`; nothing is imported before it is needed.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Instead(NamedTuple):
    """What a command does in place of its own: chosen by the first of these settings, which is a flag."""

    settings: str
    run: str
    begins: str
    why: str
    """Why the command's own settings do not go with it."""
    way_out: str


class Command(NamedTuple):  # a dataclass would take `femtobooth --help` as long again
    summary: str
    """In the list of commands."""
    description: str
    settings: str
    """Its settings, a pydantic class."""
    run: str
    """Takes the settings, and returns the result, which can be printed as JSON."""
    begins: str = ""
    """What it says at once, before anything heavy is imported."""
    example: str = ""
    instead: Instead | None = None
    rows: bool = False
    """Whether its result is rows, which go to stdout where `out` is not given."""
    makes: str = ""
    """The kind of run that it makes, whose name must not be taken."""
    plan: str = ""
    """Takes the settings in place of `run` where they say `plan`: says what that would need, and makes nothing."""


def find(reference: str) -> Any:
    """Import what a row names: ``find("generator.settings:GenerateSettings")``."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(f"femtobooth.{module}"), name)


RESUME = "training.settings:ResumeSettings"
ONLY = (
    "loading {0.run}",
    "goes on with the settings the run was started with",
    "leave the other settings out, or start a new run",
)

COMMANDS: dict[str, Command] = {
    "personalize": Command(
        "3-5 photos in, a model that generates the subject out",
        "Teach a Stable Diffusion your subject from 3-5 photos (DreamBooth).",
        "generator.settings:PersonalizeSettings",
        "workflows.personalize:run",
        begins="loading {0.base}",
        example="my-dog/ --class-noun dog",
        instead=Instead(
            RESUME,
            "workflows.personalize:resume",
            *ONLY,
        ),
        makes="generator.run:PersonalizedRun",
        plan="workflows.plan:run",
    ),
    "train-many": Command(
        "the same for many subjects, some at a time or on a cluster",
        "Personalize for each of many subjects, some at a time or on a Ray cluster, with one page of what came of all.",
        "workflows.many.settings:TrainManySettings",
        "workflows.train_many:run",
        begins="reading {0.subjects}",
        example="subjects.jsonl --jobs 2",
    ),
    "caption": Command(
        "captions beside photos, for you to correct",
        "Write a caption beside each photo that has none, by a captioner on this machine, for you to correct.",
        "workflows.settings:CaptionSettings",
        "workflows.caption:run",
        example="my-dog/ --model captioner/ --class-noun dog",
    ),
    "generate": Command(
        "generate pictures with it",
        "Generate pictures with a personalized model or any base.",
        "generator.settings:GenerateSettings",
        "workflows.generate:run",
        begins="loading {0.run}",
        example='runs/rex "a [V] dog on the moon"',
        instead=Instead(
            "generator.settings:AgainSettings",
            "workflows.regenerate:run",
            "loading {0.image}",
            "takes the settings stored in the picture",
            "only `run`, `out` and `overwrite` go with it",
        ),
    ),
    "evaluate": Command(
        "how like the subject, how true to prompts, how far from its base",
        "Measure a personalized model: likeness, prompts, drift and copies, between its base and the real photos.",
        "workflows.settings:ProtocolSettings",
        "workflows.protocol:one_or_all",
        begins="loading {0.run}",
        example="runs/rex",
    ),
    "synthesize": Command(
        "a labelled folder of the subject, for finetune to train on",
        (
            "Generate a labelled folder of your subjects for a recognizer to train on: "
            "judged, without copies, and marked as generated."
        ),
        "workflows.settings:SynthesizeSettings",
        "workflows.synthesize:run",
        begins="loading {0.runs[0]}",
        example="runs/rex --out drawn/",
    ),
    "report": Command(
        "a run on one page: photos, curves, before and after",
        "Put a personalize run on one HTML page, RUN/report.html, that needs nothing else.",
        "workflows.settings:ReportSettings",
        "workflows.report:run",
        begins="reading {0.run}",
        example="runs/rex",
    ),
    "convert": Command(
        "to and from the single-file format of other programs",
        (
            "Turn a model folder or run into one .safetensors file, or back; other "
            "programs load those of Stable Diffusion's own sizes."
        ),
        "generator.convert_settings:ConvertSettings",
        "workflows.convert:run",
        begins="loading {0.source}",
        example="runs/rex rex.safetensors",
    ),
    "classify": Command(
        "say what pictures show",
        "Say what pictures show: one row a file, on stdout or in a file.",
        "recognizer.settings:ClassifySettings",
        "workflows.classify:run",
        example="photos/",
        rows=True,
    ),
    "embed": Command(
        "pictures to embeddings and feature maps",
        "Turn pictures into embeddings (and pre-logits and stage maps), in one file.",
        "recognizer.settings:EmbedSettings",
        "workflows.embed:run",
        example="photos/ --out photos.parquet",
    ),
    "search": Command(
        "the nearest pictures to one",
        "Find the pictures of an index that are nearest to others.",
        "recognizer.settings:SearchSettings",
        "workflows.search:run",
        example="photo.jpg photos.parquet",
    ),
    "finetune": Command(
        "a folder of your classes in, a recognizer of them out",
        "Teach a classifier your classes: dataset report, linear probe, fine-tuning, and which of the two is better.",
        "recognizer.settings:FinetuneSettings",
        "workflows.finetune:run",
        begins="loading {0.model}",
        example="my-classes/",
        instead=Instead(
            RESUME,
            "workflows.finetune:resume",
            *ONLY,
        ),
        makes="recognizer.finetuning.run:FinetunedRun",
    ),
    "export": Command(
        "a recognizer for another runtime, compared with the original",
        "Turn a recognizer into a file for another runtime, and compare it with the original on real photos.",
        "recognizer.settings:ExportSettings",
        "workflows.export:run",
        begins="loading {0.model}",
        example="runs/mine --format onnx",
    ),
    "evaluate-classifier": Command(
        "how good a recognizer is, and how far to believe it",
        (
            "Measure a classifier on labelled pictures: accuracy, calibration, "
            "risk and coverage, out-of-distribution, mistakes; on one page."
        ),
        "recognizer.settings:EvaluateClassifierSettings",
        "workflows.evaluate_classifier:run",
        begins="loading {0.model}",
        example="runs/mine my-classes/",
    ),
    "compare": Command(
        "models side by side, to choose between them",
        "Put models side by side: what was measured here, what their files say, and when to choose which; on one page.",
        "workflows.comparing.settings:CompareSettings",
        "workflows.compare:run",
        begins="loading {0.models[0]} and {0.models[1]}",
        example="runs/rex runs/max",
    ),
    "runs": Command(
        "what is running, interrupted, failed or done, and how to go on",
        "List the runs of a folder: kind, status, progress, time, and the command to type next.",
        "workflows.settings:RunsSettings",
        "workflows.runs:run",
    ),
    "models": Command(
        "the generators and recognizers that are available here and now",
        "List the generators and recognizers that are available here and now, what trains in how much memory, and how "
        "to get others.",
        "workflows.settings:ModelsSettings",
        "workflows.models:run",
        begins="looking for models",
    ),
    "studio": Command(
        "all of this in a browser, and an API for other programs",
        "Serve pages to teach subjects, watch runs and generate pictures, and an HTTP API; for this machine alone.",
        "workflows.settings:StudioSettings",
        "studio.start:run",
        example="--port 8765",
    ),
    "serve": Command(
        "many subjects behind one address, on a Ray cluster",
        "Serve pictures of many subjects by OpenAI's images API: one base for each replica of Ray Serve, adapters as "
        "they are asked for.",
        "workflows.settings:ServeSettings",
        "studio.serving.start:run",
        example="runs/rex runs/max",
    ),
    "demo": Command(
        "the whole story on a mascot, in a few minutes on a CPU",
        "Teach the bundled base a mascot it has never seen, and show what it learned.",
        "workflows.settings:DemoSettings",
        "workflows.demo:run",
        begins="loading bundled",
    ),
}
