"""The end of a personalize run: the chosen weights become model/, drawn once more beside what the base drew before."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
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
from ...generator.prompts import Prompt, known_of
from ...generator.run import PersonalizedRun
from ...generator.samples import generate_samples, save_samples
from ...generator.settings import PersonalizeSettings
from ...generator.taught import Taught
from ...judging import verdict
from ...judging.selection import JOINT, RULE, Choice
from ...pictures.sheets import sheet, stacked
from ...training import averages
from ...training.averages import trained
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
    subjects: Mapping[str, Taught],
    prompts: list[Prompt],
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
        "rule": RULE + (JOINT if len(subjects) > 1 else "") if choice.front else None,
    }

    model = weights_from(state, module, weights)
    learned, dtype = None, machine.dtype(settings.save_precision)
    beside = model.held != "fp32"  # drawn with as it trained: fewer bits would lose what is merged into them
    if "lora" not in settings.train.parts:
        tokens.TokenEmbedding.remove(model)
    elif beside:
        for parameter in trained(module).values():
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)  # as exact as it will be in the files
    else:
        learned = Learned.take(model, settings, [one.token for one in subjects.values()], dtype)
        model = learned.put_into(model)
    model = model.to(fitted.device)
    texts = [one.text for one in prompts]
    after = generate_samples(model, texts, settings.samples, run.size)
    save_samples(folder / "samples", f"step-{choice.step:06d}", texts, after)
    before = _before(folder, after)
    _overview(folder, subjects, texts, before, after)
    each = verdicts.of_samples(subjects, prompts, before, after, validator.encoder, fitted.device)
    found = verdict.joint(each)
    model.subject = {**known_of(run.called), "base_hash": run.base_hash, "steps": choice.step, "run": run.name}
    if beside:
        learned = Learned.take(model, settings, [one.token for one in subjects.values()], dtype)
    card, overview = _card(run, choice.step, settings, model, texts[0] if texts else ""), folder / "overview.png"
    if learned:
        model.subject["adapter"] = adapted_folder.describe(settings, run.name, learned)
        about = _about(run, choice.step, settings, model)
        adapted_folder.save(folder / "model", learned, model, about, card, dtype, overview)
    else:
        save_folder(model.to("cpu"), folder / "model", card, dtype, overwrite=True, picture=overview)
    run.update(
        status="done",
        steps=choice.step,
        selected=selected,
        validation=validator.summary(),
        verdict=found.plain(),
        verdicts={name: one.plain() for name, one in each.items()} if len(each) > 1 else None,
    )
    validator.remove_weights()
    artifact(folder / "model", "model")
    picture(folder / "overview.png", tag="overview", step=choice.step)
    report.write(folder)
    (conclude if found.mood in ("good", "info") else warn)(found.told)
    again = command("generate", folder, run.asking)
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


def _overview(
    folder: Path, subjects: Mapping[str, Taught], prompts: list[str], before: np.ndarray, after: np.ndarray
) -> None:
    """Write overview.png: photos of each subject on top, then each prompt before and after training."""
    half = after.shape[1]
    rows = [[photo.pixels for photo in one.photos[: 2 * half]] for one in subjects.values()]
    named = [f"{name}, {one.called.phrase}: " if len(subjects) > 1 else "" for name, one in subjects.items()]
    labels = [f"{name}{len(one.photos)} photos" for name, one in zip(named, subjects.values(), strict=True)]
    top = sheet(rows, labels, [], cell=max(128, before.shape[2]))
    below = sheet(
        [[*before[row], *after[row]] for row in range(len(prompts))], prompts, ["before"] * half + ["after"] * half
    )
    drawn = stacked([top, below])
    with atomic_file(folder / "overview.png") as temporary:
        drawn.save(temporary, format="PNG")


def _about(run: PersonalizedRun, steps: int, settings: PersonalizeSettings, model: Family) -> About:
    """Say what the header of an adapter's files says of it: the same for the same run, whenever it is written."""
    owed, _ = cards.inherited(model.readme, settings.base)
    phrases = [one.phrase for one in run.called.values()]
    quoted = " and ".join(f'"{phrase}"' for phrase in phrases)
    what = f"a subject that is called {quoted}" if len(phrases) == 1 else f"subjects that are called {quoted}"
    return About(
        title=run.name,
        description=f"DreamBooth of {what}",
        trigger_phrase=", ".join(phrases),
        merged_from=owed["base_model"],
        license=owed.get("license", ""),
        date=run.created.isoformat(timespec="seconds"),
        steps=steps,
        seed=settings.training.seed,
        photos=sum(len(one.photos) for one in run.subjects.values()),
        picture=next(iter(sorted((run.folder / "samples" / f"step-{steps:06d}").glob("*.png"))), None),
    )


def _card(run: PersonalizedRun, steps: int, settings: PersonalizeSettings, model: Family, prompt: str) -> str:
    """Write the model card: what it is, how to use it, the settings it draws best with, and what it owes its base."""
    phrases = {name: one.phrase for name, one in run.called.items()}
    subject = ", ".join(phrases.values())
    matter, owed = cards.inherited(model.readme, settings.base)
    adapted = "lora" in settings.train.parts
    tags = [*cards.ON_HUB["tags"], *(["lora"] if adapted else []), "dreambooth", "femtobooth"]
    matter |= cards.ON_HUB | {"tags": tags}
    asked = " and ".join(f"a {phrase}" for phrase in phrases.values())
    matter |= {"instance_prompt": asked, "widget": [{"text": prompt, "output": {"url": cards.PICTURE}}]}
    matter["femtobooth"] = {"generate": model.card.get("generate", {})}
    base = matter["base_model"] + (f" ({matter['license']})" if "license" in matter else "")
    shape = f" ({settings.lora.kind} of rank {settings.lora.rank})" if adapted else ""
    body = (
        f"# {subject}\n\n![photos, and pictures before and after]({cards.PICTURE})\n\n"
        f"DreamBooth on {base}: {steps} steps; what trained: {', '.join(settings.train.parts)}{shape}.\n\n"
        f"{_how_to_ask(phrases)} Made with femtobooth {run.versions.get('femtobooth', '')}.\n"
    )
    return cards.card(matter, f"{body}\n# Of the base\n\n{owed}\n" if owed else body)


def _how_to_ask(phrases: Mapping[str, str]) -> str:
    """Say what to write into a prompt."""
    if len(phrases) == 1:
        return f'Write "a {next(iter(phrases.values()))} ..." in a prompt.'
    lines = [f'- {name}: "a {phrase} ...", with femtobooth also `[V:{name}]`' for name, phrase in phrases.items()]
    return "\n".join(["It knows several subjects; write in a prompt", "", *lines, "", ""]).rstrip("\n") + "\n\n"
