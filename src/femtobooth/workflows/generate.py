"""run + prompts -> pictures, a labelled grid and a manifest; and the same picture again from what is stored in it.

OUT/00-a-sks-dog-on-the-moon-seed3.png   prompt 0, seed 3; its text chunks `femtobooth` and `parameters` tell how it was made
    grid.png                             all of them, a row for each prompt
    manifest.json                        model, settings, and each picture's prompt, seed and hash
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .. import __version__
from ..core import config
from ..core.console import note, progress_bar, warn
from ..core.errors import InputError, ModelError, command
from ..core.images import read_picture
from ..core.paths import expanded
from ..core.runs import environment, refuse_existing, sha256_of, timestamp, write_json
from ..generator import base as bases
from ..generator.base import StableDiffusion
from ..generator.prompts import names_subject, with_subject
from ..generator.sampling import sample
from ..generator.settings import GenerateSettings
from . import picture_files

DTYPES = {"32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
HOW = ("tokenizer", "width", "height", "strength", "precision", "device", "sampling")  # the settings that shape one picture


@dataclass(frozen=True)
class Start:
    """What img2img and inpainting start from."""

    image: np.ndarray | None = None
    """(H, W, 3), uint8."""
    mask: np.ndarray | None = None
    """(H, W) in [0, 1]: 1 is redrawn."""


def settings_from(*layers: Mapping[str, Any]) -> GenerateSettings:
    """Settings from layers over what is recommended for them."""
    return config.settle(GenerateSettings, *layers)


def run(settings: GenerateSettings) -> dict[str, Any]:
    """Draw every prompt with every seed; returns what manifest.json holds. Raises InputError before anything is written.

    Each batch is written as it is finished, so that an interrupted run keeps what it has drawn.
    """
    prompts = _prompts(settings)
    folder = Path(settings.out) if settings.out else _new_folder(_home(settings.run))
    refuse_existing(folder, settings.overwrite)
    device = bases.device(settings.device)
    model = bases.load(settings.run, settings.tokenizer)
    prompts = [_with_subject(prompt, model, settings.run) for prompt in prompts]
    for text in [*prompts, settings.sampling.negative]:
        _warn_of_cut(text, model)
    settings = settings.model_copy(
        update={"device": str(device), "width": settings.width or model.size, "height": settings.height or model.size}
    )
    start = _start(settings)
    _prepare(model, settings)

    seeds = [settings.seed + shot for shot in range(settings.count)]
    jobs = [(prompt, seed, picture_files.name(row, prompt, seed, seeds[-1])) for row, prompt in enumerate(prompts) for seed in seeds]
    how = settings.model_dump(include=set(HOW))
    sources = {key: _fingerprint(path) for key in ("init_image", "mask") if (path := getattr(settings, key))}
    made: list[dict[str, Any]] = []
    pictures: list[np.ndarray] = []
    manifest = {
        "femtobooth": __version__,
        "folder": str(folder),
        "model": {"source": settings.run, "hash": model.hash, **({"subject": model.subject} if model.subject else {})},
        "settings": settings.model_dump(),
        **sources,
        "environment": environment(),
        "complete": False,
        "images": made,
    }
    try:
        with progress_bar("pictures", len(jobs), parts=settings.sampling.steps) as bar:
            for first in range(0, len(jobs), settings.batch_size):
                batch = jobs[first : first + settings.batch_size]
                drawn = _draw(model, settings, start, [job[0] for job in batch], [job[1] for job in batch], bar)
                for row, (picture, (prompt, seed, name)) in enumerate(zip(drawn, batch, strict=True)):
                    record = {
                        picture_files.KEY: __version__,
                        "prompt": prompt,
                        "seed": seed,
                        "model": {"source": settings.run, "hash": model.hash},
                        "settings": how,
                        "batch": [row, len(batch)],
                        **sources,
                    }
                    picture_files.save(picture, folder / name, record)
                    pictures.append(picture)
                    made.append({"file": name, "prompt": prompt, "seed": seed, "sha256": sha256_of(folder / name)})
        manifest["complete"] = True
    finally:
        if made:
            picture_files.save_grid(folder / "grid.png", prompts, seeds, pictures)
            write_json(folder / "manifest.json", manifest)
            note(f"{len(made)} of {len(jobs)} pictures in {folder}")
    return manifest


def regenerate(source: Path, model: str | None = None, out: str | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Draw a generated PNG again from what is stored in it; returns what was done and whether it came out `identical`.

    On the same machine the pixels are the same to the bit: the picture keeps its place in a batch of the same size.
    `model` replaces the place of the model, not the model: raises ModelError where its hash is another, and InputError
    for a picture that femtobooth did not make or whose start picture or mask is gone or changed.
    """
    record, original = picture_files.read(source)
    reference = model or _model_around(source) or record["model"]["source"]
    target = (Path(out) if out else _new_folder(_home(reference))) / source.name
    refuse_existing(target, overwrite)
    for flag, key in (("--init-image", "init_image"), ("--mask", "mask")):
        if key in record:
            _check_fingerprint(flag, record[key])
    how = {**record["settings"], **{key: record[key]["path"] for key in ("init_image", "mask") if key in record}}
    settings = config.resolve(GenerateSettings, {"run": reference, "prompts": [record["prompt"]], "seed": record["seed"], **how})
    way_out = f"give the model that drew it ({record['model']['source']}): {command('generate', 'RUN', '--from', source)}"
    try:
        loaded = bases.load(reference, settings.tokenizer)
    except ModelError as error:
        raise error if model else ModelError(error.problem, way_out) from None
    if loaded.hash != record["model"]["hash"]:
        wanted, found = record["model"]["hash"][:12], loaded.hash[:12]
        raise ModelError(f"{reference}: not the model that drew {source} (its hash is {found}, wanted {wanted})", way_out)
    try:
        bases.device(settings.device)
    except InputError:
        settings = settings.model_copy(update={"device": str(bases.device("auto"))})
    _prepare(loaded, settings)
    row, rows = record["batch"]
    with progress_bar("pictures", rows, parts=settings.sampling.steps) as bar:
        picture = _draw(loaded, settings, _start(settings), [record["prompt"]] * rows, [record["seed"]] * rows, bar)[row]
    picture_files.save(picture, target, record)
    identical = bool(np.array_equal(picture, original))
    if identical:
        note(f"{target}: the same pixels")
    else:
        warn(f"{target}: not quite the pixels of {source}; another machine, device or library version rounds differently")
    return {
        "femtobooth": __version__,
        "folder": str(target.parent),
        "source": str(source),
        "identical": identical,
        "model": record["model"],
        "settings": settings.model_dump(),
        "environment": environment(),
        "complete": True,
        "images": [{"file": target.name, "prompt": record["prompt"], "seed": record["seed"], "sha256": sha256_of(target)}],
    }


def _prompts(settings: GenerateSettings) -> list[str]:
    """Prompts of the settings, then those of the file."""
    prompts = list(settings.prompts)
    if settings.prompts_file:
        try:
            text = Path(settings.prompts_file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--prompts {settings.prompts_file}: cannot be read ({error})", "give a UTF-8 text file") from None
        prompts += [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError("nothing to draw: no prompt was given", 'for example femtobooth generate RUN "a [V] dog on the moon"')
    return prompts


def _with_subject(prompt: str, model: StableDiffusion, reference: str) -> str:
    if not names_subject(prompt):
        return prompt
    if "token" not in model.subject:
        raise InputError(
            f'"{prompt}": {reference} has learned no subject that [V] could stand for',
            "give a run made by femtobooth personalize, or write the prompt without [V]",
        )
    return with_subject(prompt, str(model.subject["token"]))


def _warn_of_cut(text: str, model: StableDiffusion) -> None:
    limit = int(model.tokenizer.model_max_length)
    ids = model.tokenizer(text, truncation=False).input_ids
    if len(ids) > limit:
        cut = model.tokenizer.decode(ids[limit - 1 : -1]).strip()
        warn(f'"{text}" is longer than the {limit - 2} words or word pieces this model reads; not seen: "{cut}"')


def _prepare(model: StableDiffusion, settings: GenerateSettings) -> None:
    """Move the model; the VAE stays in 32 bits, since 8-bit colours need more than half a float's range or precision."""
    model.to(settings.device)
    for part in (model.text_encoder, model.unet):
        part.to(dtype=DTYPES[settings.precision])


def _start(settings: GenerateSettings) -> Start:
    """Start picture and mask in the size to draw: scaled, and cropped around the middle where the shape differs."""
    if settings.mask and not settings.init_image:
        raise InputError(f"--mask {settings.mask}: there is no picture to redraw", "give --init-image too")
    if not settings.init_image:
        return Start()
    size = (settings.width or 0, settings.height or 0)
    image = read_picture(Path(settings.init_image)).image
    mask = None
    if settings.mask:
        stencil = read_picture(Path(settings.mask)).image
        if stencil.size != image.size:
            raise InputError(
                f"--mask {settings.mask}: {stencil.width}x{stencil.height} pixels, but --init-image has {image.width}x{image.height}",
                "draw the mask over the picture itself, white where it should change",
            )
        mask = np.asarray(ImageOps.fit(stencil.convert("L"), size, Image.Resampling.BOX), dtype=np.float32) / 255
    if image.width * size[1] != image.height * size[0]:
        note(f"{settings.init_image}: cropped around the middle to the shape of {size[0]}x{size[1]}; --width and --height change that")
    return Start(np.asarray(ImageOps.fit(image, size, Image.Resampling.LANCZOS)), mask)


def _draw(model: StableDiffusion, settings: GenerateSettings, start: Start, prompts: list[str], seeds: list[int], bar: Any) -> np.ndarray:
    """One batch, uint8 (B, H, W, 3)."""
    size = (settings.width or model.size, settings.height or model.size)
    options = {"init": start.image, "mask": start.mask, "strength": settings.strength if start.image is not None else 1.0}
    return sample(model, prompts, seeds, settings.sampling, size, batch_size=len(prompts), bar=bar, **options)  # type: ignore[arg-type]


def _home(reference: str) -> Path:
    """The folder under which images/ belongs: the run's own, or the current one for a bare model."""
    path = expanded(reference)
    if path.name == "model" and (path.parent / "run.json").is_file():
        path = path.parent
    return path if (path / "model" / "model_index.json").is_file() else Path()


def _new_folder(home: Path) -> Path:
    first = folder = home / "images" / timestamp()
    count = 1
    while folder.exists():
        count += 1
        folder = first.with_name(f"{first.name}-{count}")
    return folder


def _model_around(image: Path) -> str | None:
    """The run that a picture lies in, wherever that was moved."""
    homes = image.resolve().parents[2:3]
    return next((str(home) for home in homes if (home / "model" / "model_index.json").is_file()), None)


def _fingerprint(path: str) -> dict[str, str]:
    return {"path": path, "sha256": sha256_of(Path(path))}


def _check_fingerprint(flag: str, wanted: dict[str, str]) -> None:
    path = Path(wanted["path"])
    if not path.is_file():
        raise InputError(f"{flag} {path}: gone, but the picture was drawn from it", f"put the file back (sha256 {wanted['sha256']})")
    if sha256_of(path) != wanted["sha256"]:
        raise InputError(f"{flag} {path}: changed since the picture was drawn", f"put back the file with sha256 {wanted['sha256']}")
