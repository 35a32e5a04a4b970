"""A generated PNG -> the same picture again, from the record in it, which is a stranger's: it names no hub and no size
of its own.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..core import config, machine
from ..core.claims import Output
from ..core.errors import InputError, ModelError, command, shortened
from ..core.events import conclude, note, progress_bar, warn
from ..core.files import sha256_of, timestamp
from ..core.paths import existing
from ..generator import locate, lora_reference
from ..generator.locate import is_model
from ..generator.settings import AgainSettings, GenerateSettings
from ..generator.start_picture import fit, read_start
from ..pictures import records
from . import generate, picture_files
from .picture_files import Lora, Recipe, Source


def run(settings: AgainSettings) -> dict[str, Any]:
    """Generate a PNG again from what is stored in it; returns what was done and whether it came out `identical`.

    On the same machine the pixels are the same to the bit: the picture keeps its place in a batch of the same size.
    `run` replaces the place of the model, not the model: raises ModelError where its hash is another, and InputError
    for a picture that femtobooth did not make or whose start picture or mask is gone or changed.
    """
    source, out, overwrite = Path(settings.image), settings.out, settings.overwrite
    record, stored, original = picture_files.read(source)
    reference = settings.run or _model_around(source) or _model_named(record, source)
    if out:
        output = Output(Path(out) / source.name, "generate", overwrite, [source], known=picture_files.is_ours)
    else:
        output = Output(
            generate.home(reference) / "images" / timestamp(),
            "generate",
            owns=[glob.escape(source.name)],
            numbered=True,
        )
    output.check()
    how = _settings(record, reference)
    start = read_start(how)
    note(f"loading {reference}")
    loaded, how = generate.load(_on_this_machine(how))
    if loaded.hash != record.model.hash:
        wanted, found = record.model.hash[:12], loaded.hash[:12]
        raise ModelError(
            f"{reference}: not the model that drew {source} (its hash is {found}, wanted {wanted})",
            _way_out(record, source),
        )
    row, rows = record.batch
    with progress_bar("pictures", rows, parts=how.sampling.steps) as bar:
        picture = generate.sample_batch(
            loaded, how, fit(start, how), [record.prompt] * rows, [record.seed] * rows, bar
        )[row]
    if out:
        target = output.path
        output.check()
        records.save(picture, target, stored)
    else:
        with output.claimed() as folder:
            target = folder / source.name
            records.save(picture, target, stored)
    identical = bool(np.array_equal(picture, original))
    if identical:
        conclude(f"{target}: the same pixels")
    else:
        warn(
            f"{target}: not quite the pixels of {source}; another machine, device or library version rounds differently"
        )
    return {
        "femtobooth": __version__,
        "folder": str(target.parent),
        "source": str(source),
        "identical": identical,
        "model": stored["model"],
        "settings": how.model_dump(),
        "environment": machine.environment(),
        "complete": True,
        "images": [{"file": target.name, "prompt": record.prompt, "seed": record.seed, "sha256": sha256_of(target)}],
    }


def _settings(record: Recipe, reference: str) -> GenerateSettings:
    """Make settings of a record. Raises InputError where a file that it names is not here, or not the same."""
    files: dict[str, str] = {}
    for key, named in (("init_image", record.init_image), ("mask", record.mask)):
        if named:
            _check_same(key, named)
            files[key] = named.path
    for lora in record.loras:
        _check_lora(lora)
    how = record.settings.model_dump()
    how["size"] = f"{how.pop('width')}x{how.pop('height')}"
    if how["tokenizer"] and not existing(how["tokenizer"]):
        raise InputError(
            f"`tokenizer={shortened(how['tokenizer'])}`: not here, but the picture was made with it", "put it back"
        )
    how["loras"] = [f"{lora.path}:{lora.strength}" for lora in record.loras]
    return config.resolve(
        GenerateSettings, {"run": reference, "prompts": [record.prompt], "seed": record.seed, **how, **files}
    )


def _check_same(setting: str, wanted: Source) -> None:
    path = existing(wanted.path)
    name = shortened(wanted.path)
    if not path or not path.is_file():
        raise InputError(
            f"`{setting}={name}`: gone, but the picture is made from it",
            f"put the file back (sha256 {wanted.sha256})",
        )
    if sha256_of(path) != wanted.sha256:
        raise InputError(
            f"`{setting}={name}`: changed since the picture was made", f"put back the file with sha256 {wanted.sha256}"
        )


def _check_lora(wanted: Lora) -> None:
    name = shortened(wanted.path)
    back = f"put it back (sha256 {wanted.sha256})"
    if not existing(wanted.path):
        raise InputError(f"`loras={name}`: gone, but the picture was drawn with it", back)
    if lora_reference.find(f"{wanted.path}:{wanted.strength}").hash != wanted.sha256:
        raise InputError(f"`loras={name}`: changed since the picture was made", back)


def _on_this_machine(settings: GenerateSettings) -> GenerateSettings:
    """Put the settings on a device that is here."""
    try:
        machine.device(settings.device)
    except InputError:
        return settings.model_copy(update={"device": "auto"})
    return settings


def _model_around(image: Path) -> str | None:
    """Find the run that a picture lies in, wherever that was moved."""
    homes = image.resolve().parents[2:3]
    return next((str(home) for home in homes if is_model(home / "model")), None)


def _model_named(record: Recipe, source: Path) -> str:
    """Find the model that a record names, if it lies on this machine.

    Raises ModelError: what a picture says is never looked up on a hub.
    """
    reference = record.model.source
    if reference == locate.BUNDLED or existing(reference):
        return reference
    raise ModelError(
        f"`image={source}`: the model that drew it, {shortened(reference)}, is not here", _way_out(record, source)
    )


def _way_out(record: Recipe, source: Path) -> str:
    return (
        f"give the model that drew it ({shortened(record.model.source)}): "
        f"{command('generate', 'RUN', '--from', source)}"
    )
