"""photos -> class images -> DreamBooth training -> run folder with a model that draws the subject.

runs/NAME/config.yaml       every setting, resolved; `--config` with it repeats the run
          run.json          what was found and done: identifier, base, photos, versions, status
          photos/           the photos as they are trained on, with captions
          preflight.json    what was found in the photo folder
          logs/             metrics.csv, TensorBoard
          previews/         the same prompts and seeds every N steps
          checkpoints/      to resume from
          overview.png      photos, before, after
          model/            the result, in diffusers' layout
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image

from ..core import config
from ..core.console import note, rank, table, warn
from ..core.errors import Interrupted, ModelError, PhotoError, SettingsError
from ..core.images import find_pictures
from ..core.runs import atomic_file, environment, refuse_existing, timestamp, write_json, write_text
from ..core.sheets import sheet, stacked
from ..generator import base as bases
from ..generator import prior, sampling, tokens
from ..generator.base import StableDiffusion
from ..generator.dreambooth import DreamBooth, LatentSet, encode
from ..generator.memory import estimate, peak_memory
from ..generator.photos import Photo, load_photos, restore_photos, store_photos
from ..generator.previews import Previews, draw_previews, save_previews
from ..generator.settings import PersonalizeSettings
from ..training import checkpoints, tracking, trainer

RUN_NAME = "FEMTOBOOTH_RUN"  # tells the processes that Lightning starts which run they belong to


def settings_from(*layers: Mapping[str, Any]) -> PersonalizeSettings:
    """Settings from layers over the recommendations of the base's own card."""
    reference = config.merge(*layers).get("base", bases.BUNDLED)
    card = bases.recommended(str(reference)).get("personalize", {})
    return config.resolve(PersonalizeSettings, card, *layers)


def run(settings: PersonalizeSettings) -> dict[str, Any]:
    """Personalize from the start; returns what run.json holds. Raises InputError kinds before anything is written."""
    folder = _new_run(settings)
    model = bases.load(settings.base, settings.tokenizer)
    _check(settings, model)
    size = settings.size or model.size
    photos, preflight = load_photos(settings.photos, size)
    identifier = _identifier(model, settings)
    if rank() == 0:
        if settings.overwrite and folder.exists():
            shutil.rmtree(folder)
        write_text(folder / "config.yaml", config.dump(settings))
        write_json(folder / "preflight.json", preflight)
        store_photos(photos, folder / "photos")
        facts = {
            "token": identifier,
            "class_noun": settings.photos.class_noun,
            "base": settings.base,
            "base_hash": model.hash,
            "size": size,
        }
        write_json(folder / "run.json", {"status": "started", **facts, "environment": environment()})
    return _train(folder, settings, model, identifier, photos, size)


def resume(folder: Path) -> dict[str, Any]:
    """Go on with an interrupted run exactly where its newest good checkpoint stands."""
    facts = read_run(folder)
    if facts["status"] == "done":
        note(f"{folder} is finished already; its model is in {folder / 'model'}")
        return facts
    settings = config.resolve(PersonalizeSettings, config.read_yaml(folder / "config.yaml"))
    os.environ[RUN_NAME] = folder.name
    model = bases.load(settings.base, settings.tokenizer)
    if model.hash != facts["base_hash"]:
        raise ModelError(f"{settings.base}: not the base that {folder} was started from", "put the same base back, or start a new run")
    return _train(folder, settings, model, facts["token"], restore_photos(folder / "photos"), facts["size"])


def read_run(folder: Path) -> dict[str, Any]:
    """A run's run.json. Raises ModelError where `folder` is no run."""
    import json

    try:
        return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise ModelError(
            f"--resume {folder}: not a run folder (no run.json)", "give the folder that personalize printed, such as runs/NAME"
        ) from None


def _new_run(settings: PersonalizeSettings) -> Path:
    name = settings.name or (os.environ.get(RUN_NAME) if rank() else None)
    if name is None and rank():
        raise SettingsError("--name: a run started by torchrun or SLURM needs a name that its processes share", "add --name NAME")
    name = name or f"{settings.photos.class_noun.replace(' ', '-')}-{timestamp()}"
    folder = Path(settings.runs) / name
    if rank() == 0:
        refuse_existing(folder, settings.overwrite)
        os.environ[RUN_NAME] = name
    return folder


def _check(settings: PersonalizeSettings, model: StableDiffusion) -> None:
    """Raise what else would be found only when class images are drawn or training begins."""
    trainer.check(settings.training)
    tracking.check(settings.training)
    sampling.check(model, settings.preview.sampling)
    if settings.prior.weight and (settings.prior.folder is None or settings.prior.other_classes):
        sampling.check(model, settings.prior.sampling)
    if settings.prior.weight and settings.prior.folder and not find_pictures([settings.prior.folder])[0]:
        raise PhotoError(f"--class-folder {settings.prior.folder}: no picture in it", "leave it out to have class images drawn")


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
    folder: Path, settings: PersonalizeSettings, model: StableDiffusion, token: str, photos: list[Photo], size: int
) -> dict[str, Any]:
    started = time.monotonic()
    training = settings.training

    def prepare(lightning: Trainer) -> tuple[LatentSet, LatentSet | None]:
        return _latents(lightning, settings, model, token, photos, size)

    module = DreamBooth(model, settings, token, prepare)
    _show_parts(module)
    checkpoint = checkpoints.newest(folder / "checkpoints")
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    saver = checkpoints.Checkpoints(folder / "checkpoints", training.checkpoint_every, training.keep_checkpoints)
    average = trainer.MovingAverage(training.ema) if training.ema else None
    prompts = [_fill(prompt, settings, token) for prompt in settings.preview.prompts]
    previews = Previews(folder / "previews", prompts, settings.preview, size, average)
    callbacks: list[Callback] = [*([average] if average else []), saver, previews, trainer.StepBar()]
    trackers = tracking.loggers(training, folder / "logs", folder.name, step)
    for tracker in trackers:
        tracker.log_hyperparams(settings.model_dump())
    lightning = trainer.build(training, folder, callbacks, trackers)
    if step:
        note(f"resuming {folder} at step {step}")
    if step < training.steps:
        lightning.fit(module, ckpt_path=checkpoint / checkpoints.STATE if checkpoint else None, weights_only=True)
    if saver.stopped_by:
        raise Interrupted(
            f"stopped at step {lightning.global_step} and saved", f"femtobooth personalize --resume {folder}", saver.stopped_by
        )
    facts = read_run(folder) if rank() == 0 else {}
    if rank() == 0:
        device = lightning.strategy.root_device
        facts |= {
            "seconds": round(time.monotonic() - started, 1),
            "peak_memory_gib": round(peak_memory(device) / 2**30, 2),
            "steps": training.steps,
        }
        del lightning
        _finish(folder, settings, module, photos, prompts, facts, device)
    return facts


def _fill(prompt: str, settings: PersonalizeSettings, token: str) -> str:
    return prompt.replace("[V]", token).replace("{token}", token).replace("{class}", settings.photos.class_noun)


def _latents(
    lightning: Trainer, settings: PersonalizeSettings, model: StableDiffusion, token: str, photos: list[Photo], size: int
) -> tuple[LatentSet, LatentSet | None]:
    """Photos and class images through the VAE, once; the class images are drawn first where they are missing."""
    captions = [[_fill(text, settings, token) for text in photo.captions] for photo in photos]
    pictures = np.stack([photo.pixels for photo in photos])
    if settings.prior.weight == 0:
        return encode(model, pictures, captions, settings.photos.flip), None
    processes = prior.Processes(lightning.global_rank, lightning.world_size, lightning.strategy.barrier)
    images, prompts = [], []
    wanted = prior.prompts(settings.prior, settings.photos.class_noun)
    if settings.prior.folder:
        own = settings.photos.model_copy(update={"paths": [settings.prior.folder], "crop": "center"})
        images = [np.stack([photo.pixels for photo in load_photos(own, size)[0]])]
        prompts = [wanted[0]] * len(images[0])
        wanted = wanted[1:]
    for prompt in wanted:
        images.append(prior.class_images(model, prompt, settings.prior, size, processes))
        prompts += [prompt] * len(images[-1])
    # Both encoded after the class images, whose drawing must see the base as it is.
    return encode(model, pictures, captions, settings.photos.flip), encode(
        model, np.concatenate(images), [[prompt] for prompt in prompts], mirrored=False
    )


def _show_parts(module: DreamBooth) -> None:
    training, rates = module.settings.training, {group["name"]: group["lr"] for group in module.groups()}
    if not rates:
        raise SettingsError("--train: nothing is left to train", "name unet, attention, text_encoder or token")
    modules: dict[str, tuple[torch.nn.Module, float | None]] = {
        name: (part, rates.get(name))
        for name, part in (("unet", module.unet), ("text_encoder", module.text_encoder), ("vae", module.model.vae))
    }
    rows = estimate(modules, training.optimizer, bool(training.ema), 1 if module.frozen else 0)

    def size(count: float) -> str:
        return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"

    total = sum(row["weights"] + row["gradients"] + row["optimizer"] for row in rows)
    table(
        f"What trains ({training.precision}-bit passes); activations come on top",
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


def _finish(
    folder: Path,
    settings: PersonalizeSettings,
    module: DreamBooth,
    photos: list[Photo],
    prompts: list[str],
    facts: dict[str, Any],
    device: Any,
) -> None:
    """The final weights, read from the last checkpoint, become model/; then the last pictures are drawn."""
    model = weights_from(checkpoints.newest(folder / "checkpoints"), module, bool(settings.training.ema))
    model.to(device).unet.eval()
    model.text_encoder.eval()
    last = draw_previews(model, prompts, settings.preview, facts["size"])
    save_previews(folder / "previews", f"step-{settings.training.steps:06d}", prompts, last)
    _overview(folder, photos, prompts, last)
    model.subject = {key: facts[key] for key in ("token", "class_noun", "base", "base_hash", "steps")} | {"run": folder.name}
    dtype = torch.float16 if settings.save_precision == "16" else torch.float32
    bases.save_folder(model.to("cpu"), folder / "model", _card(facts, settings, model), dtype, overwrite=True)
    facts["status"] = "done"
    write_json(folder / "run.json", facts)


def weights_from(checkpoint: Path | None, module: DreamBooth, averaged: bool) -> StableDiffusion:
    """Put a checkpoint's trained weights (or their moving average) into the module's model, and return the model."""
    if checkpoint is None:
        raise ModelError("no checkpoint was written", "train again")
    state = torch.load(checkpoint / checkpoints.STATE, map_location="cpu", weights_only=True, mmap=True)
    trained = dict(state["state_dict"])
    if averaged:
        trained |= state["callbacks"][trainer.MovingAverage.__name__]["average"]
    module.load_state_dict(trained, strict=False)
    tokens.TokenEmbedding.remove(module.model)
    return module.model


def _overview(folder: Path, photos: list[Photo], prompts: list[str], after: np.ndarray) -> None:
    """overview.png: photos on top, then each prompt before and after training."""
    before = np.empty_like(after)
    for row in range(len(prompts)):
        for column in range(after.shape[1]):
            path = folder / "previews" / "step-000000" / f"{row:02d}-{column}.png"
            with contextlib.suppress(OSError), Image.open(path) as image:
                before[row, column] = np.asarray(image)
    half = after.shape[1]
    top = sheet([[photo.pixels for photo in photos[: 2 * half]]], [f"{len(photos)} photos"], [], cell=max(128, before.shape[2]))
    below = sheet([[*before[row], *after[row]] for row in range(len(prompts))], prompts, ["before"] * half + ["after"] * half)
    drawn = stacked([top, below])
    with atomic_file(folder / "overview.png") as temporary:
        drawn.save(temporary, format="PNG")


def _card(facts: dict[str, Any], settings: PersonalizeSettings, model: StableDiffusion) -> str:
    """The model card: what it is, how to use it, and the settings it draws best with."""
    import yaml

    subject = f"{facts['token']} {facts['class_noun']}"
    matter = {"tags": ["dreambooth", "stable-diffusion", "text-to-image"], "femtobooth": {"generate": model.card.get("generate", {})}}
    return (
        f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n\n# {subject}\n\n"
        f"DreamBooth on `{settings.base}`: {facts['steps']} steps, learning rates {settings.train.unet_learning_rate:g} (UNet) and "
        f"{settings.train.text_encoder_learning_rate:g} (text encoder), trained parts {', '.join(settings.train.parts)}.\n\n"
        f'Write "a {subject} ..." in a prompt. Made with femtobooth {facts["environment"].get("femtobooth", "")}.\n'
    )
