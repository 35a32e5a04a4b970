"""The command line: parse, import one workflow, turn errors into one or two lines and an exit code. No ML here."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .core.errors import FemtoboothError, InputError, SettingsError

if TYPE_CHECKING:
    from .core.config import Settings

# flag -> setting. Everything else is reached with --set; the help texts are those of the settings.
PERSONALIZE = {
    "--class-noun": "photos.class_noun",
    "--base": "base",
    "--tokenizer": "tokenizer",
    "--name": "name",
    "--runs": "runs",
    "--token": "identifier.token",
    "--train": "train.parts",
    "--steps": "training.steps",
    "--batch-size": "training.batch_size",
    "--accumulate": "training.accumulate",
    "--unet-lr": "train.unet_learning_rate",
    "--text-encoder-lr": "train.text_encoder_learning_rate",
    "--token-lr": "train.token_learning_rate",
    "--size": "size",
    "--crop": "photos.crop",
    "--flip": "photos.flip",
    "--captions": "photos.captions",
    "--prior-weight": "prior.weight",
    "--class-images": "prior.images",
    "--class-folder": "prior.folder",
    "--other-classes": "prior.other_classes",
    "--prior-target": "prior.target",
    "--snr-gamma": "loss.snr_gamma",
    "--seed": "training.seed",
    "--precision": "training.precision",
    "--gradient-checkpointing": "training.gradient_checkpointing",
    "--optimizer": "training.optimizer",
    "--schedule": "training.schedule",
    "--warmup": "training.warmup",
    "--ema": "training.ema",
    "--accelerator": "training.accelerator",
    "--devices": "training.devices",
    "--nodes": "training.nodes",
    "--strategy": "training.strategy",
    "--checkpoint-every": "training.checkpoint_every",
    "--preview-every": "preview.every",
    "--trackers": "training.trackers",
    "--save-precision": "save_precision",
    "--overwrite": "overwrite",
}
GENERATE = {
    "--prompts": "prompts_file",
    "-n": "count",
    "--seed": "seed",
    "--steps": "sampling.steps",
    "--guidance": "sampling.guidance",
    "--guidance-rescale": "sampling.guidance_rescale",
    "--negative": "sampling.negative",
    "--sampler": "sampling.sampler",
    "--init-image": "init_image",
    "--strength": "strength",
    "--mask": "mask",
    "--width": "width",
    "--height": "height",
    "--batch-size": "batch_size",
    "--precision": "precision",
    "--device": "device",
    "--tokenizer": "tokenizer",
    "--out": "out",
    "--overwrite": "overwrite",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `femtobooth`; exits with 0, or with the error's code (2 for bad input)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        name, *rest = given or ["--help"]
        if name in COMMANDS:
            COMMANDS[name][1](rest)
        else:
            _overview().parse_args([name])
            raise InputError(f"{name}: no such command", f"one of {', '.join(COMMANDS)}")
    except FemtoboothError as error:
        _exit(str(error), error.exit_code)
    except KeyboardInterrupt:
        _exit("interrupted; what was finished is kept", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get("FEMTOBOOTH_DEBUG"):
            raise
        first = (str(error).strip() or "no message").splitlines()[0]
        _exit(f"{type(error).__name__}: {first}\n  -> FEMTOBOOTH_DEBUG=1 shows where", 1)


def _exit(message: str, code: int) -> NoReturn:
    if _speaks():
        print(f"femtobooth: {message}", file=sys.stderr)
    sys.exit(code)


def _speaks() -> bool:
    """Whether this is the first process of a run; the others would only repeat it."""
    from .core.console import rank

    return rank() == 0


class _Parser(argparse.ArgumentParser):
    """Whose errors are those of the rest: two lines, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message, f"`{self.prog} --help` shows everything that can be given")


def _overview() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:12} {summary}" for name, (summary, _) in COMMANDS.items())
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


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"femtobooth {name}", description=description, allow_abbrev=False)


def _add_settings(parser: argparse.ArgumentParser, model: type[Settings], flags: dict[str, str]) -> None:
    """A flag for each listed setting (help and type are the setting's), `--config` and `--set`."""
    from .core.config import describe, leaf_types

    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings; flags and --set win over it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="any setting by its name in the YAML file"
    )
    for flag, path in flags.items():
        text = describe(model, path).replace("%", "%%")
        if leaf_types(model, path) == {bool}:
            parser.add_argument(flag, dest=path, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(flag, dest=path, metavar=path.rpartition(".")[2].upper(), help=text)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def _layers(options: argparse.Namespace, model: type[Settings], flags: dict[str, str], **positional: Any) -> list[dict[str, Any]]:
    from .core.config import overrides, read_yaml

    given = {path: getattr(options, path) for path in flags.values() if getattr(options, path) is not None}
    given |= {path: value for path, value in positional.items() if value}
    return [read_yaml(options.config) if options.config else {}, overrides(model, options.sets, given)]


def _personalize(arguments: list[str]) -> None:
    from .generator.settings import PersonalizeSettings

    parser = _parser("personalize", "Teach a Stable Diffusion your subject from 3-5 photos (DreamBooth).")
    parser.add_argument("photos", nargs="*", metavar="PHOTOS", help="photo files or folders of one subject")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run; takes no other settings")
    _add_settings(parser, PersonalizeSettings, PERSONALIZE)
    options = parser.parse_intermixed_args(arguments)
    layers = _layers(options, PersonalizeSettings, PERSONALIZE, **{"photos.paths": options.photos})
    if options.resume and any(layers):
        raise InputError("--resume: goes on with the settings the run was started with", "leave the other settings out, or start a new run")

    from .workflows import personalize

    facts = personalize.resume(options.resume) if options.resume else personalize.run(personalize.settings_from(*layers))
    _report(facts, options.json)


def _generate(arguments: list[str]) -> None:
    from .generator.settings import GenerateSettings

    parser = _parser("generate", "Draw pictures with a personalized model or any base.")
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run folder, its model/, or anything --base takes")
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help='what to draw; [V] is the subject: "a [V] dog on the moon"')
    parser.add_argument("--from", dest="source", type=Path, metavar="IMAGE", help="draw a generated PNG again, from what is stored in it")
    _add_settings(parser, GenerateSettings, GENERATE)
    options = parser.parse_intermixed_args(arguments)

    from .workflows import generate

    if options.source:
        others = [path for path in GENERATE.values() if path not in ("out", "overwrite") and getattr(options, path) is not None]
        if options.prompts or options.sets or options.config or others:
            raise InputError("--from: draws with the settings stored in the picture", "only RUN, --out and --overwrite go with it")
        manifest = generate.regenerate(options.source, model=options.run, out=options.out, overwrite=bool(options.overwrite))
    else:
        layers = _layers(options, GenerateSettings, GENERATE, run=options.run, prompts=options.prompts)
        manifest = generate.run(generate.settings_from(*layers))
    _report(manifest, options.json)


def _convert(arguments: list[str]) -> None:
    parser = _parser("convert", "Turn a model folder or run into one .safetensors file that other programs load, or back.")
    parser.add_argument("source", help="a run, a model folder, a single file, a hub id, or `bundled`")
    parser.add_argument("target", type=Path, help="FILE.safetensors, or a folder for diffusers' layout")
    parser.add_argument("--precision", choices=["32", "16"], default="32", help="number format of the weights; 16 halves the file [32]")
    parser.add_argument("--tokenizer", help="tokenizer folder or hub id, for a single file without one")
    parser.add_argument("--overwrite", action="store_true", help="replace the target")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    options = parser.parse_args(arguments)

    from .workflows import convert

    _report(convert.run(options.source, options.target, options.precision, options.tokenizer, options.overwrite), options.json)


def _demo(arguments: list[str]) -> None:
    parser = _parser("demo", "Teach the bundled base a mascot it has never seen, and show what it learned.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder that holds the runs [runs]")
    options = parser.parse_args(arguments)

    from .workflows import demo

    demo.run(options.runs)


def _report(result: dict[str, Any], as_json: bool) -> None:
    if as_json and _speaks():
        print(json.dumps(result, indent=2, ensure_ascii=False))


COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "personalize": ("3-5 photos in, a model that draws the subject out", _personalize),
    "generate": ("draw pictures with it", _generate),
    "convert": ("to and from the single-file format of other programs", _convert),
    "demo": ("the whole story on a mascot, in a few minutes on a CPU", _demo),
}
