"""The end of a personalize run: the chosen weights become model/, drawn once more beside what the base drew before."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...core import machine
from ...core.errors import command
from ...core.events import artifact, conclude, note, picture, warn
from ...core.files import atomic_file
from ...generator import adapted_folder, cards, tokens
from ...generator.adapted_folder import Learned
from ...generator.dreambooth import DreamBooth
from ...generator.families.family import Family
from ...generator.formats.adapter_header import About
from ...generator.formats.folder import save_folder
from ...generator.photos import Photo
from ...generator.run import PersonalizedRun
from ...generator.samples import generate_samples, save_samples
from ...generator.settings import PersonalizeSettings
from ...judging.selection import RULE, Choice
from ...pictures.sheets import sheet, stacked
from ...training import averages
from ...training.session import Fitted
from .. import report
from . import verdicts
from .validation import Validator


def write(
    run: PersonalizedRun,
    settings: PersonalizeSettings,
    module: DreamBooth,
    fitted: Fitted,
    validator: Validator,
    photos: list[Photo],
    prompts: list[str],
) -> PersonalizedRun:
    """Choose a step and write model/ and what shows it; only then is the run done. Returns the run.

    Raises CheckpointError where the last step's checkpoint is missing or damaged.
    """
    folder, last, state = run.folder, fitted.step, fitted.state()
    validator.restore(state["callbacks"])
    choice, weights = validator.choose(last), None
    if choice.step != last:
        weights = validator.weights(choice.step)
        choice = choice if weights else Choice(last, f"the weights of step {choice.step} cannot be read", choice.front)
    if validator.points:
        validator.write(choice)
        note(f"model/ takes step {choice.step} of {last}: {choice.reason}")
    selected = {
        "step": choice.step,
        "reason": choice.reason,
        "front": list(choice.front),
        "rule": RULE if choice.front else None,
    }

    model = weights_from(state, module, weights)
    learned, dtype = None, machine.dtype(settings.save_precision)
    if "lora" in settings.train.parts:
        learned = Learned.take(model, settings, run.subject.token, dtype)
        if settings.train.frozen_precision != "fp32":  # the base as it is, not as it was held
            module.to("meta")
            model = run.load_base(settings)
        model = learned.put_into(model)
    else:
        tokens.TokenEmbedding.remove(model)
    model = model.to(fitted.device)
    after = generate_samples(model, prompts, settings.samples, run.size)
    save_samples(folder / "samples", f"step-{choice.step:06d}", prompts, after)
    before = _before(folder, after)
    _overview(folder, photos, prompts, before, after)
    found = verdicts.of_samples(
        settings, photos, run.held_out_photos(), before, after, validator.encoder, fitted.device
    )
    subject = run.subject
    model.subject = {"token": subject.token, "class_noun": subject.class_noun, "base_hash": run.base_hash}
    model.subject |= {"steps": choice.step, "run": run.name}
    card, overview = _card(run, choice.step, settings, model, prompts[0] if prompts else ""), folder / "overview.png"
    if learned:
        model.subject["adapter"] = adapted_folder.describe(settings, run.name, learned)
        about = _about(run, choice.step, settings, model)
        adapted_folder.save(folder / "model", learned, model, about, card, dtype, overview)
    else:
        save_folder(model.to("cpu"), folder / "model", card, dtype, overwrite=True, picture=overview)
    run.update(
        status="done", steps=choice.step, selected=selected, validation=validator.summary(), verdict=found.plain()
    )
    validator.remove_weights()
    artifact(folder / "model", "model")
    picture(folder / "overview.png", tag="overview", step=choice.step)
    report.write(folder)
    (conclude if found.mood in ("good", "info") else warn)(found.told)
    again = command("generate", folder, f"a [V] {subject.class_noun} on the moon")
    conclude(f"{folder / 'report.html'} shows it; draw with\n  {again}", run=folder, status=run.status, steps=run.steps)
    return run


def weights_from(state: dict[str, Any], module: DreamBooth, chosen: dict[str, torch.Tensor] | None = None) -> Family:
    """Put a checkpoint's trained weights (or their average), or those `chosen` over them, into the module's model;
    returns it, with whatever it trained with still in it.
    """
    module.load_state_dict(averages.result(state, module) | (chosen or {}), strict=False)
    return module.model


def _before(folder: Path, after: np.ndarray) -> np.ndarray:
    """Read what the base drew before training in place of `after` (P, S, H, W, 3); white where that is gone."""
    before = np.full_like(after, 255)
    for row in range(after.shape[0]):
        for column in range(after.shape[1]):
            path = folder / "samples" / "step-000000" / f"{row:02d}-{column}.png"
            with contextlib.suppress(OSError), Image.open(path) as image:
                before[row, column] = np.asarray(image)
    return before


def _overview(folder: Path, photos: list[Photo], prompts: list[str], before: np.ndarray, after: np.ndarray) -> None:
    """Write overview.png: photos on top, then each prompt before and after training."""
    half = after.shape[1]
    top = sheet(
        [[photo.pixels for photo in photos[: 2 * half]]], [f"{len(photos)} photos"], [], cell=max(128, before.shape[2])
    )
    below = sheet(
        [[*before[row], *after[row]] for row in range(len(prompts))], prompts, ["before"] * half + ["after"] * half
    )
    drawn = stacked([top, below])
    with atomic_file(folder / "overview.png") as temporary:
        drawn.save(temporary, format="PNG")


def _about(run: PersonalizedRun, steps: int, settings: PersonalizeSettings, model: Family) -> About:
    """Say what the header of an adapter's files says of it: the same for the same run, whenever it is written."""
    owed, _ = cards.inherited(model.readme, settings.base)
    subject = f"{run.subject.token} {run.subject.class_noun}"
    return About(
        title=run.name,
        description=f'DreamBooth of a subject that is called "{subject}"',
        trigger_phrase=subject,
        merged_from=owed["base_model"],
        license=owed.get("license", ""),
        date=run.created.isoformat(timespec="seconds"),
        steps=steps,
        seed=settings.training.seed,
        photos=len(run.subject.photos),
        picture=next(iter(sorted((run.folder / "samples" / f"step-{steps:06d}").glob("*.png"))), None),
    )


def _card(run: PersonalizedRun, steps: int, settings: PersonalizeSettings, model: Family, prompt: str) -> str:
    """Write the model card: what it is, how to use it, the settings it draws best with, and what it owes its base."""
    subject = f"{run.subject.token} {run.subject.class_noun}"
    matter, owed = cards.inherited(model.readme, settings.base)
    adapted = "lora" in settings.train.parts
    tags = [*cards.ON_HUB["tags"], *(["lora"] if adapted else []), "dreambooth", "femtobooth"]
    matter |= cards.ON_HUB | {"tags": tags}
    matter |= {"instance_prompt": f"a {subject}", "widget": [{"text": prompt, "output": {"url": cards.PICTURE}}]}
    matter["femtobooth"] = {"generate": model.card.get("generate", {})}
    base = matter["base_model"] + (f" ({matter['license']})" if "license" in matter else "")
    shape = f" ({settings.lora.kind} of rank {settings.lora.rank})" if adapted else ""
    body = (
        f"# {subject}\n\n![photos, and pictures before and after]({cards.PICTURE})\n\n"
        f"DreamBooth on {base}: {steps} steps; what trained: {', '.join(settings.train.parts)}{shape}.\n\n"
        f'Write "a {subject} ..." in a prompt. Made with femtobooth {run.versions.get("femtobooth", "")}.\n'
    )
    return cards.card(matter, f"{body}\n# Of the base\n\n{owed}\n" if owed else body)
