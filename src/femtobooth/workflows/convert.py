"""femtobooth convert: a model between its two forms, the folder of diffusers and the single `.safetensors` file, with
adapters merged into it; or an adapter, as a file of its own (`convert_lora`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..core import machine
from ..core.claims import Output
from ..core.errors import ExistsError, SettingsError
from ..core.events import conclude, note
from ..core.paths import expanded
from ..generator import lora_reference
from ..generator.convert_settings import ConvertSettings
from . import convert_lora


def run(settings: ConvertSettings) -> dict[str, Any]:
    """Write a model, or a run's, as `target`, and return what was written.

    A target that ends in `.safetensors` becomes a single file in the layout of the original code, any other a folder in
    diffusers' layout. Nothing is lost either way at precision fp32. Raises ExistsError, ModelError, SettingsError.
    """
    source, tokenizer, overwrite = settings.source, settings.tokenizer, settings.overwrite
    target = expanded(settings.target)
    merged = [lora_reference.find(text) for text in settings.loras]
    inputs = [source, tokenizer, settings.base, *(lora.reference for lora in merged)]
    output = Output(target, "convert", overwrite, inputs=inputs, known=_is_ours, option="TARGET")
    _check(output)
    if settings.form == "lora":
        return convert_lora.run(settings, output, _is_single(target))

    from ..generator import cards
    from ..generator.formats import ldm_configs
    from ..generator.formats.adapter_reading import add
    from ..generator.formats.folder import write_folder
    from ..generator.formats.single_file import save_single_file
    from ..generator.load import load
    from ..generator.locate import locate

    model = load(source, tokenizer)
    for lora in merged:
        add(model, lora)
    dtype = machine.dtype(settings.precision)
    single = _is_single(target)
    if single:
        save_single_file(model, target, dtype, overwrite)
    else:
        with output.folder() as folder:
            write_folder(model, folder, model.readme or _card(source), dtype, picture=locate(source) / cards.PICTURE)
    files = [target] if target.is_file() else [file for file in target.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    published = ldm_configs.is_published(model)
    layout = model.NAME if model.FLOWS else f"Stable Diffusion {ldm_configs.version(model)}"
    written = {
        "target": str(target),
        "layout": layout if published else f"{layout} layout, sizes of its own",
        "loaded_by": [
            "femtobooth",
            *([] if single else ["diffusers"]),
            *(["other programs"] if single and published else []),
        ],
        "prediction_type": model.process.prediction_type,
        "pixels": model.size,
        "precision": settings.precision,
        "bytes": size,
    }
    conclude(
        "{target}: {layout}, {prediction_type}, {pixels} pixels, {precision}".format(**written)
        + f", {size / 1e6:.0f} MB"
    )
    if single and not published:
        note(
            "programs that expect Stable Diffusion's published sizes do not load it; "
            "a folder of it diffusers loads, whatever the sizes"
        )
    return written


def _check(output: Output) -> None:
    """Refuse, before anything is loaded, what would lose files or run code."""
    target = output.path
    if target.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise SettingsError(
            f"{target}: pickled checkpoints are only read, never written", "name the target .safetensors"
        )
    if _is_single(target) and target.is_dir():
        raise ExistsError(f"{target} is a folder", "choose another name for the file")
    if not _is_single(target) and target.is_file():
        raise ExistsError(f"{target} is a file", "choose another name for the folder, or end the name in .safetensors")
    output.check()


def _is_single(target: Path) -> bool:
    """Tell whether a target becomes a single file, by its name's end in any case."""
    return target.suffix.lower() == ".safetensors"


def _card(source: str) -> str:
    """Write the card of a model that came without one."""
    from ..generator import cards

    matter, _ = cards.inherited("", source)
    return cards.card(matter | cards.ON_HUB, f"# {matter['base_model']}\n\nConverted with femtobooth.\n")


def _is_ours(path: Path) -> bool:
    """Tell whether a file was written by `convert`, or by a run or recipe, in the same way."""
    from ..generator.locate import METADATA

    try:
        with safe_open(path, framework="numpy") as file:
            told = file.metadata() or {}
            return METADATA in told or told.get("modelspec.implementation_version", "").startswith("femtobooth")
    except (OSError, SafetensorError):
        return False
