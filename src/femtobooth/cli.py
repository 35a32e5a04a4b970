"""The command line: parse, import one workflow, turn errors into one or two lines and an exit code. No ML here."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__, flags
from .core import streams
from .core.errors import FemtoboothError, InputError, SettingsError
from .core.names import shown

if TYPE_CHECKING:
    from .core.config import Settings


LONGEST = 2000  # characters of a line of an error
REQUIRED = "the following arguments are required: "  # how argparse begins its own error
EXAMPLES = {
    "personalize": "my-dog/ --class-noun dog",
    "generate": 'runs/rex "a [V] dog on the moon"',
    "evaluate": "runs/rex",
    "synthesize": "runs/rex --out drawn/",
    "report": "runs/rex",
    "convert": "runs/rex rex.safetensors",
    "classify": "photos/",
    "embed": "photos/ --out photos.parquet",
    "search": "photo.jpg photos.parquet",
    "finetune": "my-classes/",
    "export": "runs/mine --format onnx",
    "evaluate-classifier": "runs/mine my-classes/",
    "compare": "runs/rex runs/max",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `femtobooth`; exits with 0, or with the error's code (2 for bad input)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    streams.prepare()
    try:
        if "--json" in given:
            streams.stdout()
        name, *rest = given or ["--help"]
        if name in COMMANDS:
            COMMANDS[name][1](rest)
        else:
            _overview().parse_args([name])
            raise InputError(f"{name}: no such command", f"one of {', '.join(COMMANDS)}")
    except FemtoboothError as error:
        _exit(error.lines, error.exit_code)
    except KeyboardInterrupt:
        _exit(["interrupted; what was finished is kept"], 130)
    except BrokenPipeError:
        streams.silence()
        sys.exit(141)
    except Exception as error:
        if os.environ.get("FEMTOBOOTH_DEBUG"):
            raise
        first = (str(error).strip() or "no message").splitlines()[0]
        _exit([f"{type(error).__name__}: {first}", "  -> FEMTOBOOTH_DEBUG=1 shows where"], 1)


def _exit(lines: Sequence[str], code: int) -> NoReturn:
    """End with a message whose lines hold text of any origin: made harmless for a terminal, and cut where nobody reads on."""
    if _speaks():
        print("\n".join(_cut(shown(line)) for line in (f"femtobooth: {lines[0]}", *lines[1:])), file=sys.stderr)
    sys.exit(code)


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _speaks() -> bool:
    """Whether this is the first process of a run; the others would only repeat it."""
    from .core.console import rank

    return rank() == 0


class _Parser(argparse.ArgumentParser):
    """Whose errors are those of the rest: two lines, not a page of usage."""

    def _print_message(self, message: str, file: object = None) -> None:  # help and version
        streams.write([message])

    def error(self, message: str) -> NoReturn:
        if message.startswith(REQUIRED):
            self.missing(message.removeprefix(REQUIRED).split(", ")[0])
        raise SettingsError(message, f"`{self.prog} --help` shows everything that can be given")

    def missing(self, name: str) -> NoReturn:
        """Say what the positional argument of this name is, and how a whole command looks."""
        told = next((action.help or "" for action in self._actions if action.metavar == name), "").replace("%%", "%").rstrip(".")
        told = told if told[:2].isupper() else told[:1].lower() + told[1:]
        command = self.prog.split()[-1]
        raise SettingsError(f"{command}: no {name} given", f"{told}; for example {self.prog} {EXAMPLES[command]}")


def _overview() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:20} {summary}" for name, (summary, _) in COMMANDS.items())
    parser = _Parser(
        prog="femtobooth",
        usage="femtobooth COMMAND ...",
        description="3-5 photos of one subject in; a Stable Diffusion that draws it anywhere out.",
        epilog=f"commands:\n{listed}\n\n`femtobooth COMMAND --help` shows everything a command can do.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"femtobooth {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def _parser(name: str, description: str) -> _Parser:
    return _Parser(
        prog=f"femtobooth {name}",
        description=description,
        epilog=f"for example: femtobooth {name} {EXAMPLES[name]}" if name in EXAMPLES else None,
        allow_abbrev=False,
    )


def _add_settings(parser: argparse.ArgumentParser, model: type[Settings], flags: dict[str, str]) -> None:
    """A flag for each listed setting (help and type are the setting's), `--config` and `--set`."""
    from .core.config import field_at, help_text, in_force, leaf_types

    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings; flags and --set win over it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="any setting by its name in the YAML file"
    )
    for flag, path in flags.items():
        default = in_force(model, path)
        text = (help_text(model, path) + (f" [{default}]" if default else "")).replace("%", "%%")
        kinds = leaf_types(field_at(model, path))
        if kinds == {bool}:
            parser.add_argument(flag, dest=path, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            action = "append" if list in kinds else "store"
            parser.add_argument(flag, dest=path, action=action, metavar=path.rpartition(".")[2].upper(), help=text)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def _layers(options: argparse.Namespace, model: type[Settings], flags: dict[str, str], /, **positional: Any) -> list[dict[str, Any]]:
    from .core.config import nested, overrides, read_yaml

    given = {path: getattr(options, path) for path in flags.values() if getattr(options, path) is not None}
    places = [nested(path, value) for path, value in positional.items() if value]
    return [read_yaml(options.config) if options.config else {}, overrides(model, options.sets, given), *places]


def _read(
    name: str,
    description: str,
    model: type[Settings],
    flags: dict[str, str],
    arguments: list[str],
    /,
    needs: Sequence[str] = (),
    resumes: bool = False,
    **counts: str,
) -> tuple[argparse.Namespace, list[dict[str, Any]]]:
    """A command whose every option is a setting: its options, and the layers for `core.config.resolve`.

    `counts` says how many of each there can be, as argparse does: ``paths="*"``. With `resumes` there is `--resume RUN`.
    Raises SettingsError where none of the settings that it `needs`, of which the first is positional, is given in any way.
    """
    from .core.config import help_text

    parser = _parser(name, description)
    for path, count in counts.items():
        parser.add_argument(path, nargs=count, metavar=path.partition(".")[0].upper(), help=help_text(model, path).replace("%", "%%"))
    if resumes:
        parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run; takes no other settings")
    _add_settings(parser, model, flags)
    options = parser.parse_intermixed_args(arguments)
    layers = _layers(options, model, flags, **{path: getattr(options, path) for path in counts})
    if resumes and options.resume:
        if any(layers):
            raise InputError(
                "--resume: goes on with the settings the run was started with", "leave the other settings out, or start a new run"
            )
    elif needs:
        _refuse_missing(parser, layers, *needs)
    return options, layers


def _refuse_missing(parser: _Parser, layers: list[dict[str, Any]], *needs: str) -> None:
    """Raise SettingsError, naming the first, where none of these settings is given: as an argument, by `--config` or by `--set`."""
    from .core.config import merge

    for path in needs:
        given: Any = merge(*layers)
        for key in path.split("."):
            given = given.get(key) if isinstance(given, dict) else None
        if given:
            return
    parser.missing(needs[0].partition(".")[0].upper())


def _personalize(arguments: list[str]) -> None:
    from .generator.settings import PersonalizeSettings

    description = "Teach a Stable Diffusion your subject from 3-5 photos (DreamBooth)."
    counts = {"photos.paths": "*"}
    options, layers = _read(
        "personalize", description, PersonalizeSettings, flags.PERSONALIZE, arguments, needs=("photos.paths",), resumes=True, **counts
    )

    from .workflows import personalize

    facts = personalize.resume(options.resume) if options.resume else personalize.run(personalize.settings_from(*layers))
    _report(facts, options.json)


def _generate(arguments: list[str]) -> None:
    from .generator.settings import GenerateSettings

    parser = _parser("generate", "Draw pictures with a personalized model or any base.")
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run folder, its model/, or anything --base takes")
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help='what to draw; [V] is the subject: "a [V] dog on the moon"')
    parser.add_argument("--from", dest="source", type=Path, metavar="IMAGE", help="draw a generated PNG again, from what is stored in it")
    _add_settings(parser, GenerateSettings, flags.GENERATE)
    options = parser.parse_intermixed_args(arguments)

    from .workflows import generate

    if options.source:
        others = [path for path in flags.GENERATE.values() if path not in ("out", "overwrite") and getattr(options, path) is not None]
        if options.prompts or options.sets or options.config or others:
            raise InputError("--from: draws with the settings stored in the picture", "only RUN, --out and --overwrite go with it")
        manifest = generate.regenerate(options.source, model=options.run, out=options.out, overwrite=bool(options.overwrite))
    else:
        layers = _layers(options, GenerateSettings, flags.GENERATE, run=options.run, prompts=options.prompts)
        _refuse_missing(parser, layers, "run")
        manifest = generate.run(generate.settings_from(*layers))
    _report(manifest, options.json)


def _convert(arguments: list[str]) -> None:
    parser = _parser("convert", "Turn a model folder or run into one .safetensors file that other programs load, or back.")
    parser.add_argument("source", metavar="SOURCE", help="a run, a model folder, a single file, a hub id, or `bundled`")
    parser.add_argument("target", type=Path, metavar="TARGET", help="FILE.safetensors, or a folder for diffusers' layout")
    parser.add_argument("--precision", choices=["32", "16"], default="32", help="number format of the weights; 16 halves the file [32]")
    parser.add_argument("--tokenizer", help="tokenizer folder or hub id, for a single file without one")
    parser.add_argument("--overwrite", action="store_true", help="replace the target")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    options = parser.parse_args(arguments)

    from .workflows import convert

    _report(convert.run(options.source, options.target, options.precision, options.tokenizer, options.overwrite), options.json)


def _export(arguments: list[str]) -> None:
    from .recognizer.settings import ExportSettings

    description = "Turn a recognizer into a file for another runtime, and compare it with the original on real photos."
    options, layers = _read("export", description, ExportSettings, flags.EXPORT, arguments, model="?")

    from .core.config import resolve
    from .workflows import export

    _report(export.run(resolve(ExportSettings, *layers)), options.json)


def _models(arguments: list[str]) -> None:
    parser = _parser("models", "List the recognizers that are available here and now, and how to get the others.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder that holds the runs [runs]")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    options = parser.parse_args(arguments)

    from .workflows import models

    _report(models.run(options.runs), options.json)


def _classify(arguments: list[str]) -> None:
    from .recognizer.settings import ClassifySettings

    description = "Say what pictures show: one row a file, on stdout or in --out."
    options, layers = _read("classify", description, ClassifySettings, flags.CLASSIFY, arguments, needs=("paths", "from_file"), paths="*")

    from .core.config import resolve
    from .workflows import classify

    if options.json and not options.out:  # the rows are the result
        classify.run(resolve(ClassifySettings, *layers, {"format": "json"}))
    else:
        _report(classify.run(resolve(ClassifySettings, *layers)), options.json)


def _embed(arguments: list[str]) -> None:
    from .recognizer.settings import EmbedSettings

    description = "Turn pictures into embeddings (and pre-logits and stage maps), in one file."
    options, layers = _read("embed", description, EmbedSettings, flags.EMBED, arguments, needs=("paths", "from_file"), paths="*")

    from .core.config import resolve
    from .workflows import embed

    _report(embed.run(resolve(EmbedSettings, *layers)), options.json)


def _search(arguments: list[str]) -> None:
    from .recognizer.settings import SearchSettings

    parser = _parser("search", "Find the pictures of an index that are nearest to others.")
    parser.add_argument("query", nargs="+", metavar="QUERY", help="pictures, folders or globs to find the like of")
    parser.add_argument("index", metavar="INDEX", help="file that `femtobooth embed` wrote")
    _add_settings(parser, SearchSettings, flags.SEARCH)
    options = parser.parse_intermixed_args(arguments)

    from .core.config import resolve
    from .workflows import search

    layers = _layers(options, SearchSettings, flags.SEARCH, query=options.query, index=options.index)
    _report(search.run(resolve(SearchSettings, *layers)), options.json)


def _finetune(arguments: list[str]) -> None:
    from .recognizer.settings import FinetuneSettings

    description = "Teach a classifier your classes: data report, linear probe, fine-tuning, and which of the two is better."
    options, layers = _read("finetune", description, FinetuneSettings, flags.FINETUNE, arguments, needs=("data",), resumes=True, data="?")

    from .core.config import resolve
    from .workflows import finetune

    _report(finetune.resume(options.resume) if options.resume else finetune.run(resolve(FinetuneSettings, *layers)), options.json)


def _evaluate(arguments: list[str]) -> None:
    from .workflows.settings import ProtocolSettings

    description = "Measure a personalized model: likeness, prompts, drift and copies, between its base and the real photos."
    options, layers = _read(
        "evaluate", description, ProtocolSettings, flags.PROTOCOL | flags.EVALUATE, arguments, needs=("run",), run="?", prompts="*"
    )

    from .workflows import evaluate, protocol

    if any("protocol" in layer for layer in layers):
        result = protocol.run(protocol.settings_from(*layers))
    else:
        result = evaluate.run(evaluate.settings_from(*layers))
    _report(result, options.json)


def _synthesize(arguments: list[str]) -> None:
    from .workflows.settings import SynthesizeSettings

    description = "Draw a labelled folder of your subjects for a recognizer to train on: judged, without copies, and marked as generated."
    options, layers = _read("synthesize", description, SynthesizeSettings, flags.SYNTHESIZE, arguments, needs=("runs",), runs="*")

    from .workflows import synthesize

    _report(synthesize.run(synthesize.settings_from(*layers)), options.json)


def _evaluate_classifier(arguments: list[str]) -> None:
    from .recognizer.settings import EvaluateClassifierSettings

    description = "Measure a classifier on labelled pictures: accuracy, calibration, doubt, unseen classes, mistakes; on one page."
    options, layers = _read(
        "evaluate-classifier",
        description,
        EvaluateClassifierSettings,
        flags.EVALUATE_CLASSIFIER,
        arguments,
        needs=("data",),
        model="?",
        data="?",
    )

    from .core.config import resolve
    from .workflows import evaluate_classifier

    _report(evaluate_classifier.run(resolve(EvaluateClassifierSettings, *layers)), options.json)


def _compare(arguments: list[str]) -> None:
    from .workflows.settings import CompareSettings

    description = "Put models side by side: what was measured here, what their files say, and when to choose which; on one page."
    options, layers = _read("compare", description, CompareSettings, flags.COMPARE, arguments, needs=("models",), models="*")

    from .workflows import compare

    _report(compare.run(compare.settings_from(*layers)), options.json)


def _run_report(arguments: list[str]) -> None:
    parser = _parser("report", "Put a personalize run on one HTML page, RUN/report.html, that needs nothing else.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, finished or not")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    options = parser.parse_args(arguments)

    from .workflows import report

    _report(report.run(options.run), options.json)


def _demo(arguments: list[str]) -> None:
    parser = _parser("demo", "Teach the bundled base a mascot it has never seen, and show what it learned.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder that holds the runs [runs]")
    options = parser.parse_args(arguments)

    from .workflows import demo

    demo.run(options.runs)


def _report(result: dict[str, Any], as_json: bool) -> None:
    if as_json and _speaks():
        streams.write([json.dumps(result, indent=2, ensure_ascii=False) + "\n"])


COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "personalize": ("3-5 photos in, a model that draws the subject out", _personalize),
    "generate": ("draw pictures with it", _generate),
    "evaluate": ("how like the subject, how true to prompts, how far from its base", _evaluate),
    "synthesize": ("a labelled folder of the subject, for finetune to train on", _synthesize),
    "report": ("a run on one page: photos, curves, before and after", _run_report),
    "convert": ("to and from the single-file format of other programs", _convert),
    "classify": ("say what pictures show", _classify),
    "embed": ("pictures to embeddings and feature maps", _embed),
    "search": ("the nearest pictures to one", _search),
    "finetune": ("a folder of your classes in, a recognizer of them out", _finetune),
    "export": ("a recognizer for another runtime, compared with the original", _export),
    "evaluate-classifier": ("how good a recognizer is, and how far to believe it", _evaluate_classifier),
    "compare": ("models side by side, to choose between them", _compare),
    "models": ("the recognizers that are available here and now", _models),
    "demo": ("the whole story on a mascot, in a few minutes on a CPU", _demo),
}
