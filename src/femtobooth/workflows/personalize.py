"""photos -> class images -> DreamBooth training -> run folder with a model that draws the subject.

runs/NAME/config.yaml       every setting, resolved; `--config` with it repeats the run
          run.json          what was found and done: identifier, base, photos, versions, status
          photos/           the photos as they are trained on, with captions
          preflight.json    what was found in the photo folder
          logs/             metrics.csv, TensorBoard
          samples/          the same prompts and seeds every N steps
          validation/       how alike, how obedient and how drifted the model was at every N steps, and the curve of it
          held_out/         photos that were kept out of training (--hold-out)
          checkpoints/      to resume from
          overview.png      photos, before, after
          report.html       all of it on one page
          model/            the result, in diffusers' layout
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from ..core import config, locks, older_runs
from ..core.claims import Output
from ..core.errors import Interrupted, ModelError, PhotoError, SettingsError, command
from ..core.events import note, table, warn
from ..core.files import read_object, sha256_of, sweep, timestamp, write_json, write_text
from ..core.machine import environment
from ..core.names import shown, stored
from ..core.older_runs import read_settings
from ..core.paths import expanded
from ..core.processes import rank
from ..core.run import read, recorded, settings_of
from ..generator import locate, prior, sampling, tokens
from ..generator.captions import class_captions, fitted
from ..generator.dreambooth import DreamBooth, LatentSet, encode
from ..generator.families.stable_diffusion import StableDiffusion
from ..generator.formats.folder import with_base_of_today
from ..generator.load import load
from ..generator.memory import estimate, peak_memory
from ..generator.photos import (
    CROPS,
    Photo,
    crops_sheet,
    hold_out,
    load_class_images,
    load_photos,
    restore_photos,
    store_photos,
)
from ..generator.prompts import filled, warn_of_unseen
from ..generator.samples import Samples
from ..generator.settings import PersonalizeSettings
from ..judging.encoders import Encoder
from ..pictures.images import find_pictures
from ..training import checkpoints, tracking, trainer
from ..training.settings import ResumeSettings
from . import report
from .personalizing import outcome, validation, verdicts

RUN_FOLDER = "FEMTOBOOTH_RUN"  # tells the processes that Lightning starts which run they belong to
FACTS = ("token", "class_noun", "base_hash", "size")  # what run.json must hold for anything to go on with the run
OWNS = (  # what lies in a run folder; evaluation/, images/ and exports/ have markers of their own, but older ones
    "config.yaml", "run.json", "preflight.json", "overview.png", "crops.png", "report.html", "photos/[0-9]*.png",
    "photos/[0-9]*.txt", "held_out/[0-9]*.png", "held_out/[0-9]*.txt", "logs/metrics.csv", "logs/events.out.tfevents.*",
    "logs/hparams.yaml", "logs/wandb/*", "samples/step-*.png", "validation/validation.json", "validation/curve.svg",
    "validation/step-*.png", "validation/weights/step-*.safetensors", "checkpoints/step-*/state.ckpt",
    "checkpoints/step-*/manifest.json", "model/*.json", "model/README.md", "model/scheduler/*", "model/overview.png",
    "model/text_encoder/*", "model/tokenizer/*", "model/unet/*", "model/vae/*", "evaluation/evaluation.json",
    "evaluation/grid.png", "evaluation/pictures/*.png", "images/*-seed*.png", "images/*/grid.png",
    "images/*/manifest.json", "previews/step-*.png", "watch/watch.json", "watch/curve.svg", "watch/step-*.png",
    "watch/weights/step-*.safetensors",
)  # fmt: skip


def settings_from(*layers: Mapping[str, Any]) -> PersonalizeSettings:
    """Settings from layers over what is recommended for them."""
    return config.settle(PersonalizeSettings, *layers)


def run(settings: PersonalizeSettings) -> dict[str, Any]:
    """Personalize from the start; returns what run.json holds. Raises InputError kinds before anything is written."""
    settings = _settled(settings)
    output = _output(settings)
    if rank() == 0:
        output.check()
    if settings.base == locate.BUNDLED:
        note(f"{verdicts.UNKNOWN_BASE}\n")
    model = load(settings.base, settings.tokenizer)
    _check(settings, model)
    size = settings.size or model.size
    photos, preflight = load_photos(settings.photos, size)
    photos, held_out = hold_out(photos, settings.photos.hold_out)
    encoder = _encoder(settings, [*photos, *held_out])
    token = _identifier(model, settings)
    photos = _fitted(photos, model, token, settings.photos.class_noun)
    _warn_of_unseen(model, settings, token)
    if rank():
        return _train(output.path, settings, model, token, photos, held_out, size, encoder, checkpoint=None)
    facts: dict[str, Any] = {
        "status": "started",
        "token": token,
        "class_noun": settings.photos.class_noun,
        "base": settings.base,
    }
    facts |= {"settings": settings.model_dump(mode="json")}
    facts |= {
        "base_hash": model.hash,
        "size": size,
        "held_out": [photo.path.name for photo in held_out],
        "environment": environment(),
    }
    for row in preflight:
        row["status"] = "held out" if row["file"] in {stored(photo.path) for photo in held_out} else row["status"]

    def begin(folder: Path) -> None:
        write_text(folder / "config.yaml", config.dump(settings.model_copy(update={"overwrite": False})))
        write_json(folder / "preflight.json", preflight)
        store_photos(photos, folder / "photos")
        if held_out:
            store_photos(held_out, folder / "held_out")
        write_json(folder / "run.json", facts)
        crops_sheet([*photos, *held_out]).save(folder / CROPS)

    with output.claimed(begin) as folder, recorded(folder):
        if held_out:
            note(f"kept out of training, to score against: {', '.join(shown(photo.path.name) for photo in held_out)}\n")
        note(f"run folder: {folder}")
        note(f"the photos as they are trained on: {folder / CROPS}\n")
        return _train(folder, settings, model, token, photos, held_out, size, encoder, checkpoint=None)


def resume(settings: ResumeSettings) -> dict[str, Any]:
    """Go on with an interrupted run exactly where its newest good checkpoint stands."""
    folder = Path(settings.run)
    facts = read_run(folder)
    if facts["status"] == "done":
        note(f"{folder} is finished already; its model is in {folder / 'model'}")
        if not (folder / "report.html").is_file():  # it was stopped in the last moment
            report.write(folder)
        return facts
    if rank():
        return _go_on(folder, facts)
    with locks.held(folder), recorded(folder):
        return _go_on(folder, facts)


def _go_on(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    if rank() == 0:
        sweep(folder)
        older_runs.bring_up(folder)
    settings = settings_of(folder, facts, PersonalizeSettings)
    model = load_base(folder, facts, settings)
    checkpoint = checkpoints.newest(folder / "checkpoints")
    photos, held_out = (
        restore_photos(folder / "photos"),
        restore_photos(folder / "held_out") if facts.get("held_out") else [],
    )
    encoder = _encoder(settings, [*photos, *held_out])
    return _train(folder, settings, model, facts["token"], photos, held_out, facts["size"], encoder, checkpoint)


def read_run(folder: Path) -> dict[str, Any]:
    """A run's run.json. Raises ModelError where `folder` is no run."""
    return with_base_of_today(read(folder, "personalize", FACTS))


def open_run(place: str, instead: str) -> tuple[Path, dict[str, Any], PersonalizeSettings]:
    """A finished run: its folder, its run.json and its settings.

    Raises ModelError; `instead` is the way out for runs of other commands.
    """
    folder = Path(place)
    facts = with_base_of_today(read(folder, "personalize", FACTS, option="", instead=instead))
    locate.locate(place)  # raises where the run is not finished
    return folder, facts, config.resolve(PersonalizeSettings, read_settings(folder / "config.yaml"))


def load_base(folder: Path, facts: Mapping[str, Any], settings: PersonalizeSettings) -> StableDiffusion:
    """The base that a run was started from. Raises ModelError where another one is in its place."""
    model = load(settings.base, settings.tokenizer)
    if model.hash != facts["base_hash"]:
        raise ModelError(
            f"{settings.base}: not the base that {folder} was started from",
            "put the same base back, or start a new run",
        )
    return model


def _settled(settings: PersonalizeSettings) -> PersonalizeSettings:
    """Paths made absolute, so that config.yaml means the same from any folder; and no prior where it could teach
    nothing.
    """

    def absolute(text: str | None) -> str | None:
        return str(expanded(text).resolve()) if text and expanded(text).exists() and text != locate.BUNDLED else text

    photos = settings.photos.model_copy(update={"paths": [absolute(path) for path in settings.photos.paths]})
    prior = settings.prior.model_copy(update={"folder": absolute(settings.prior.folder)})
    if settings.train.parts == ["token"] and prior.weight:
        note("class images: none, as class prompts do not hold the only word that trains")
        prior = prior.model_copy(update={"weight": 0.0})
    paths = {"base": absolute(settings.base), "tokenizer": absolute(settings.tokenizer)}
    return settings.model_copy(update={"photos": photos, "prior": prior, **paths})


def _output(settings: PersonalizeSettings) -> Output:
    """Where the run goes."""
    if rank() and RUN_FOLDER in os.environ:
        return Output(Path(os.environ[RUN_FOLDER]), "personalize")
    if rank() and not settings.name:
        raise SettingsError(
            "--name: a run started by torchrun or SLURM needs a name that its processes share", "add --name NAME"
        )
    noun = re.sub(r"[^\w-]+", "-", settings.photos.class_noun)
    return Output(
        Path(settings.runs) / (settings.name or f"{noun}-{timestamp()}"),
        "personalize",
        settings.overwrite,
        inputs=[*settings.photos.paths, settings.base, settings.prior.folder, settings.tokenizer],
        owns=OWNS,
        known=lambda folder: "token" in read_object(folder / "run.json"),
        numbered=not settings.name,
        option="--name",
    )


def _check(settings: PersonalizeSettings, model: StableDiffusion) -> None:
    """Raise what else would be found only when class images are drawn or training begins."""
    trainer.check(settings.training)
    tracking.check(settings.training)
    sampling.check(model, settings.samples.sampling, "samples.sampling")
    if settings.prior.weight and (settings.prior.folder is None or settings.prior.other_classes):
        sampling.check(model, settings.prior.sampling, "prior.sampling")
    if validation.interval(settings):
        sampling.check(model, validation.image_settings(settings).sampling, "validation")
    if settings.prior.weight and settings.prior.folder:
        pictures = find_pictures([settings.prior.folder])[0]
        if not pictures:
            raise PhotoError(
                f"--class-folder {settings.prior.folder}: no picture in it", "leave it out to have class images drawn"
            )
        for picture in pictures:
            class_captions(picture)


def _encoder(settings: PersonalizeSettings, photos: list[Photo]) -> Encoder | None:
    """What scores during training, in the first process.

    Raises ModelError where it is missing or was trained on these photos.
    """
    encoder = validation.chosen_encoder(settings) if rank() == 0 else None
    if encoder:
        encoder.refuse_trained_on(sha256_of(photo.path) for photo in photos)
    return encoder


def _fitted(photos: list[Photo], model: StableDiffusion, token: str, noun: str) -> list[Photo]:
    """Photos with captions of which the text encoder reads the identifier."""
    captions = fitted([(photo.path, photo.captions) for photo in photos], model.tokenizer, token, noun)
    return [replace(photo, captions=ours) for photo, ours in zip(photos, captions, strict=True)]


def _warn_of_unseen(model: StableDiffusion, settings: PersonalizeSettings, token: str) -> None:
    """Name the words of the class noun and of what will be drawn that a small base has never seen."""
    noun = settings.photos.class_noun
    texts = [noun, *settings.samples.prompts, *settings.validation.prompts, *prior.prompts(settings.prior, noun)]
    warn_of_unseen([filled(text, "", noun) for text in texts], model.tokenizer)


def _identifier(model: StableDiffusion, settings: PersonalizeSettings) -> str:
    noun, wanted = settings.photos.class_noun, settings.identifier.token
    if wanted != "auto":
        found = tokens.check(model, wanted, noun)
        adds_it = "token" in settings.train.parts and len(found.pieces) > 1
        for text in [] if adds_it else found.warnings:
            warn(text)
        return wanted
    best = tokens.choose(model, noun)
    table(
        "Identifier: rare single tokens, least meaning first (1 = the effect of an everyday word)",
        ["token", ">response"],
        [(one.token, f"{one.response:.2f}") for one in best],
    )
    return best[0].token


def _train(
    folder: Path,
    settings: PersonalizeSettings,
    model: StableDiffusion,
    token: str,
    photos: list[Photo],
    held_out: list[Photo],
    size: int,
    encoder: Encoder | None,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Train from `checkpoint` or from the start, then write the result; returns what run.json then holds."""
    started, training = time.monotonic(), settings.training

    def prepare(lightning: Trainer) -> tuple[LatentSet, LatentSet | None]:
        return _latents(lightning, settings, model, token, photos, size)

    def fill(prompt: str) -> str:
        return filled(prompt, token, settings.photos.class_noun)

    module = DreamBooth(model, settings, token, prepare)
    _show_parts(module)
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    if step:
        note(f"resuming {folder} at step {step}")
    prompts = [fill(prompt) for prompt in settings.samples.prompts]
    with checkpoints.Signals(command("personalize", "--resume", folder)) as signals:
        saver = checkpoints.Checkpoints(
            folder / "checkpoints", training.checkpoint_every, training.keep_checkpoints, signals
        )
        averages = [trainer.MovingAverage(training.ema)] if training.ema else []
        average = averages[0] if averages else None
        scored = [photo.pixels for photo in held_out or photos]

        def save() -> None:
            signals.save = True

        validator = validation.Validator(folder / "validation", settings, encoder, scored, fill, size, average, save)
        samples = Samples(folder / "samples", prompts, settings.samples, size, average)
        trackers = tracking.loggers(training, folder / "logs", folder.resolve().name, step)
        for tracker in trackers:
            tracker.log_hyperparams(settings.model_dump())
        # The validator goes before the saver, whose checkpoints hold what it has seen.
        lightning = trainer.build(training, folder, [*averages, validator, saver, samples, trainer.StepBar()], trackers)
        if step < training.steps:
            os.environ[RUN_FOLDER] = str(folder.resolve())
            try:
                with checkpoints.last_good_named(lightning, folder / "checkpoints", _calmer(settings)):
                    lightning.fit(
                        module, ckpt_path=checkpoint / checkpoints.STATE if checkpoint else None, weights_only=True
                    )
            finally:
                os.environ.pop(RUN_FOLDER, None)
            step = lightning.global_step
        if saver.stopped_by:
            raise Interrupted(f"stopped at step {step} and saved", signals.way_out, saver.stopped_by)
        if rank():
            return {}
        device = lightning.strategy.root_device
        trainer.release(lightning, module)
        facts = read_run(folder) | {
            "seconds": round(time.monotonic() - started, 1),
            "peak_memory_gib": round(peak_memory(device) / 2**30, 2),
            "trained_steps": step,
        }
        with checkpoints.last_good_named(lightning, folder / "checkpoints", _calmer(settings)):
            return outcome.write(folder, settings, module, device, validator, photos, prompts, facts)


def _calmer(settings: PersonalizeSettings) -> str:
    """What to try where training left the finite numbers."""
    train = settings.train
    rates = {"unet": ("--unet-lr", train.unet_learning_rate), "attention": ("--unet-lr", train.unet_learning_rate)}
    rates |= {
        "text_encoder": ("--text-encoder-lr", train.text_encoder_learning_rate),
        "token": ("--token-lr", train.token_learning_rate),
    }
    named = dict.fromkeys(f"{flag} (it was {rate:g})" for flag, rate in (rates[part] for part in train.parts))
    return f"train again with a lower {' or '.join(named)}, or fewer --steps"


def _latents(
    lightning: Trainer,
    settings: PersonalizeSettings,
    model: StableDiffusion,
    token: str,
    photos: list[Photo],
    size: int,
) -> tuple[LatentSet, LatentSet | None]:
    """Photos and class images through the VAE, once; the class images are drawn first where they are missing."""
    captions = [[filled(text, token, settings.photos.class_noun) for text in photo.captions] for photo in photos]
    pictures = np.stack([photo.pixels for photo in photos])
    apart = settings.loss.surroundings == "class"

    def subject() -> LatentSet:
        return encode(model, pictures, captions, settings.photos.flip, "subject" if apart else "all")

    if settings.prior.weight == 0:
        return subject(), None
    strategy = lightning.strategy
    processes = prior.Processes(lightning.global_rank, lightning.world_size, strategy.barrier, strategy.broadcast)
    images: list[np.ndarray] = []
    prompts: list[list[str]] = []
    wanted = prior.prompts(settings.prior, settings.photos.class_noun)
    if settings.prior.folder:
        own = load_class_images(settings.prior.folder, size)
        images = [np.stack([one.pixels for one in own])]
        prompts = [
            [filled(text, token, settings.photos.class_noun) for text in one.captions] or [wanted[0]] for one in own
        ]
        wanted = wanted[1:]
    for prompt in wanted:
        images.append(prior.class_images(model, prompt, settings.prior, size, processes))
        prompts += [[prompt]] * len(images[-1])
    # All encoded after the class images, whose drawing must see the base as it is.
    imitated = settings.prior.target == "base"
    kept = encode(model, np.concatenate(images), prompts, imitated=imitated)
    if apart:  # class images as they are twice, so that they keep two thirds of the draws
        caption = filled(settings.prior.prompt.replace("{class}", "{token} {class}"), token, settings.photos.class_noun)
        kept += kept + kept.surroundings(model, images[0], caption)
    return subject(), kept


def _show_parts(module: DreamBooth) -> None:
    training, rates = module.settings.training, {group["name"]: group["lr"] for group in module.optimizer_groups()}
    modules: dict[str, tuple[torch.nn.Module, float | None]] = {
        name: (part, rates.get(name))
        for name, part in (("unet", module.unet), ("text_encoder", module.text_encoder), ("vae", module.model.vae))
    }
    copied = {
        name
        for name, part in (("unet", module.unet), ("text_encoder", module.text_encoder))
        if module.frozen and name in rates
    }
    rows = estimate(modules, training.optimizer, bool(training.ema), copied)

    def size(count: float) -> str:
        return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"

    total = sum(row["weights"] + row["gradients"] + row["optimizer"] for row in rows)
    table(
        f"What trains; passes in {training.precision}, activations come on top",
        ["part", ">trained", ">frozen", ">learning rate", ">weights", ">gradients", ">optimizer"],
        [
            (
                row["part"],
                f"{row['trained']:,}",
                f"{row['frozen']:,}",
                f"{row['learning_rate']:g}" if row["learning_rate"] else "-",
                *(size(row[kind]) for kind in ("weights", "gradients", "optimizer")),
            )
            for row in rows
        ]
        + [("total", "", "", "", size(total), "", "")],
    )
