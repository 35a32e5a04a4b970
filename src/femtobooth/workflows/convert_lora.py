"""femtobooth convert --as lora: a run's adapter, a stranger's, or one extracted from a tuned model, as a file.

A target that ends in `.safetensors` gets kohya's layout, which most programs read; a folder gets diffusers'.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import machine
from ..core.claims import Output
from ..core.errors import ModelError, SettingsError
from ..core.events import conclude, note, progress_bar, warn
from ..core.paths import existing, expanded
from ..core.run import is_run, run_of
from ..generator import cards, locate, lora_reference
from ..generator.convert_settings import ConvertSettings
from ..generator.lora_reference import DIFFUSERS_NAME, Lora
from ..generator.prompts import bare, called_in, filled, of_templates
from ..generator.run import PersonalizedRun
from ..generator.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from ..generator.adapters import Adapter
    from ..generator.families.family import Family

PROMPTS = ("a photo of a [V] {class}", "a [V] {class} on the beach", "a photo of a {class}")
STEPS = 15  # of the pictures by which a model and what was extracted from it are compared
BATCH = 4


@dataclass(frozen=True)
class _Found:
    adapter: Adapter
    model: Family
    """A model of the family that it is for."""
    base: str
    """The base's name, for people."""
    more: dict[str, Any]
    """What extracting it measured."""


def run(settings: ConvertSettings, output: Output, single: bool) -> dict[str, Any]:
    """Write the adapter, and return what was written. Raises ModelError, SettingsError."""
    from ..generator.formats import adapter_header, adapter_keys, adapter_writing, ldm_configs

    lora = _adapter_of(settings.source)
    found = _read(settings, lora) if lora else _extract(settings)
    dtype, model = machine.dtype(settings.precision), found.model
    metadata = adapter_header.header(found.adapter, model, _about(settings, found, output.path))
    if single:
        names = adapter_keys.kohya_names(model)
        adapter_writing.write_kohya(output.path, found.adapter, metadata, dtype, settings.overwrite, names)
    else:
        with output.folder() as folder:
            adapter_writing.write_diffusers(folder / DIFFUSERS_NAME, found.adapter, metadata, dtype)
            for word in lora.words if lora else ():
                shutil.copyfile(word, folder / word.name)
    for word in lora.words if lora else ():
        where = output.path / word.name if not single else word
        note(f"the word {word.stem} trained beside it: other programs need {where} too, as an embedding")
    file = output.path if single else output.path / DIFFUSERS_NAME
    published = ldm_configs.is_published(model)
    written = {
        "target": str(output.path),
        "kind": found.adapter.kind,
        "layout": "kohya" if single else "diffusers",
        "layers": len(found.adapter.modules),
        "base": found.base,
        "loaded_by": ["femtobooth", "diffusers", *(["other programs"] if single and published else [])],
        "precision": settings.precision,
        "bytes": file.stat().st_size,
        **found.more,
    }
    conclude(
        "{target}: {kind} of {layers} layers in {layout}'s layout for {base}, {precision}".format(**written)
        + f", {written['bytes'] / 1e6:.1f} MB"
    )
    return written


def _adapter_of(source: str) -> Lora | None:
    """Find the adapter that a source is; None for a whole model."""
    from safetensors import SafetensorError, safe_open

    from ..generator.formats import adapter_keys

    path = existing(source) if source != locate.BUNDLED else None
    if path is None:
        return None
    if path.is_dir():
        try:
            return lora_reference.find(source)
        except ModelError:
            return None
    try:
        with safe_open(path, framework="numpy") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError):
        return None
    return lora_reference.find(source) if keys and all(map(adapter_keys.split, keys)) else None


def _read(settings: ConvertSettings, lora: Lora) -> _Found:
    from ..generator.formats import adapter_reading
    from ..generator.load import load

    if {"rank", "pictures"} & settings.model_fields_set:
        raise SettingsError(f"`rank`: {settings.source} is an adapter, which has its own", "leave `rank` out")
    base = settings.base
    if base is None and not (lora.weights.parent / locate.SUBJECT_FILE).is_file():
        raise SettingsError(f"{settings.source}: is an adapter, and does not say for which base", "give `base`")
    # a run's adapter comes merged: its layers have the names and shapes of its base all the same
    model = load(base or str(lora.weights.parent), settings.tokenizer)
    adapter = adapter_reading.read(lora.weights, model)
    told = locate.adapter_in(lora.weights.parent) or {}
    name = adapter.metadata.get("modelspec.merged_from") or str(told.get("base") or "") or _name(base or "")
    return _Found(adapter, model, name, {})


def _extract(settings: ConvertSettings) -> _Found:
    from ..generator.adapter_extraction import extract
    from ..generator.adapters import apply
    from ..generator.load import load

    tuned = load(settings.source, settings.tokenizer)
    run = run_of(expanded(settings.source))
    if settings.base is None and not is_run(run):
        raise SettingsError(f"{settings.source}: does not say which base it was tuned from", "give `base`")
    name = settings.base or PersonalizedRun.open(run).base
    base = load(settings.base, settings.tokenizer) if settings.base else PersonalizedRun.open(run).load_base()
    found = extract(tuned, base, settings.rank)
    more: dict[str, Any] = {"rank": settings.rank, "energy": found.kept, "energy_in_layers": found.reach}
    told = f"rank {settings.rank} keeps {found.kept:.1%} of what the layers have learned"
    if found.elsewhere:
        told += f"; {1 - found.reach:.1%} of all changes lies in {found.elsewhere} tensors that no LoRA changes"
    note(told)
    if settings.pictures:
        prompts = _prompts(tuned)[: settings.pictures]
        with progress_bar("pictures", 3 * len(prompts), parts=STEPS) as bar:
            tuned_draws, base_draws = (_draw(model, prompts, bar) for model in (tuned, base))
            apply(base, found.adapter)
            lora_draws = _draw(base, prompts, bar)
        more["picture_difference"] = _far(lora_draws, tuned_draws)
        more["picture_difference_of_base"] = _far(base_draws, tuned_draws)
        note(
            "{n} pictures: {picture_difference:.1f} of 255 levels from the tuned model's, "
            "whose own are {picture_difference_of_base:.1f} from the base's".format(n=len(prompts), **more)
        )
    if found.kept < 0.5:
        warn(f"`rank={settings.rank}`: keeps less than half of what was learned; a higher one keeps more")
    return _Found(found.adapter, replace(base, subject=tuned.subject), _name(name), more)


def _name(reference: str) -> str:
    """Name a base without its path."""
    return cards.inherited("", reference)[0]["base_model"]


def _about(settings: ConvertSettings, found: _Found, target: Path) -> Any:
    """Say what is known of it; no path, and no time but the run's own."""
    from ..generator.formats.adapter_header import About

    told, subject = found.adapter.metadata, found.model.subject
    place = expanded(settings.source)
    run = PersonalizedRun.peek(run_of(place))
    phrase = ", ".join(one.phrase for one in called_in(subject).values() if one.noun)
    folder = place if (place / cards.PICTURE).is_file() else place / "model"
    made = isinstance(run, PersonalizedRun)
    return About(
        title=target.name.removesuffix(target.suffix) if target.suffix.lower() == ".safetensors" else target.name,
        description=told.get("modelspec.description", ""),
        trigger_phrase=told.get("modelspec.trigger_phrase") or phrase,
        merged_from=found.base,
        license=told.get("modelspec.license", ""),
        date=told.get("modelspec.date", ""),
        steps=run.steps if made else None,  # type: ignore[union-attr]
        photos=sum(len(one.photos) for one in run.subjects.values()) if isinstance(run, PersonalizedRun) else None,
        picture=folder / cards.PICTURE if (folder / cards.PICTURE).is_file() else None,
    )


def _prompts(model: Family) -> list[str]:
    if known := called_in(model.subject):
        return [prompt.text for prompt in of_templates(PROMPTS, known)]
    return [filled(bare(text), "", str(model.subject.get("class_noun", "dog"))) for text in PROMPTS]


def _draw(model: Family, prompts: list[str], bar: Any) -> np.ndarray:
    """Draw a picture of each prompt with the seeds 0, 1, ...: uint8 (N, H, W, 3)."""
    from ..generator.sampling import sample

    given = model.card.get("generate", {}).get("sampling", {})
    how = SamplingSettings.model_validate({**given, "steps": STEPS})
    return sample(model, prompts, [*range(len(prompts))], how, batch_size=BATCH, bar=bar)


def _far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())
