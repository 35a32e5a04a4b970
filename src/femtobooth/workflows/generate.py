"""run + prompts -> pictures, a labelled grid and a manifest; and the same picture again from what is stored in it.

OUT/00-a-sks-dog-on-the-moon-seed3.png   prompt 0, seed 3; its text chunks `femtobooth` and `parameters` tell how it was
made
    grid.png                             all of them, a row for each prompt
    manifest.json                        model, settings, and each picture's prompt, seed and hash
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..core import config, machine
from ..core.bulk.parts import Part, digest, parts_of
from ..core.bulk.settings import CLUSTER
from ..core.claims import Output
from ..core.errors import InputError
from ..core.events import conclude, note, progress_bar, warn
from ..core.files import sha256_of, timestamp, write_json
from ..core.paths import expanded
from ..core.run import run_of
from ..generator import lora_reference
from ..generator.locate import is_model
from ..generator.prompts import called, called_in, names_subject, warn_of_unseen
from ..generator.settings import GenerateSettings
from ..generator.start_picture import Start, fit, read_start
from ..pictures import records
from . import picture_files

if TYPE_CHECKING:  # torch is imported only once all that can be checked without it is checked
    import pyarrow as pa

    from ..generator.families.family import Family

MAX_TIMES = 2  # the area that a model was trained on, or the side of it: beyond, subjects come twice or in pieces
OWNS = ("[0-9]*-seed[0-9]*.png", "grid.png", "manifest.json")


def run(settings: GenerateSettings) -> dict[str, Any]:
    """Generate every prompt with every seed; returns what manifest.json holds. Raises InputError before anything is
    written.

    Each batch is written as it is finished, so that an interrupted run keeps what it has made.
    """
    if settings.executor == "ray":
        from . import generate_on_ray

        steps = generate_on_ray.Steps(_read_there, _parts, _opened)
        return generate_on_ray.run(settings, _prompts(settings), output_of(settings), steps)
    return write(settings)


def write(settings: GenerateSettings, model: Family | None = None) -> dict[str, Any]:
    """Do what `run` does, with a `model` that is loaded already: what `load` gave for the same model, precision and
    device.
    """
    prompts = _prompts(settings)
    output = output_of(settings)
    output.check()
    original = read_start(settings)
    model, settings = load(settings, model)
    prompts = as_read(prompts, settings, model)
    start = fit(original, settings)
    with output.claimed() as folder:
        return _generate_all(settings, model, prompts, start, folder)


def pictures(settings: GenerateSettings, model: Family | None = None) -> Iterator[np.ndarray]:
    """Generate every prompt with every seed and write nothing; yields uint8 (H, W, 3), by prompts, then seeds.

    `model` is what `load` gave for the same model, precision and device. Raises InputError kinds before the first.
    """
    prompts, original = _prompts(settings), read_start(settings)
    model, settings = load(settings, model)
    prompts = as_read(prompts, settings, model)
    start = fit(original, settings)
    jobs = [(prompt, settings.seed + shot) for prompt in prompts for shot in range(settings.count)]
    with progress_bar("pictures", len(jobs), parts=settings.sampling.steps) as bar:
        for first in range(0, len(jobs), settings.batch_size):
            batch = jobs[first : first + settings.batch_size]
            yield from sample_batch(
                model, settings, start, [prompt for prompt, _ in batch], [seed for _, seed in batch], bar
            )


def _generate_all(
    settings: GenerateSettings, model: Family, prompts: list[str], start: Start, folder: Path
) -> dict[str, Any]:
    """Generate all pictures into a folder that this run holds."""
    seeds = [settings.seed + shot for shot in range(settings.count)]
    jobs = [*_jobs(prompts, settings)]
    drawer = LoadedDrawer(settings, model, start)
    made: list[dict[str, Any]] = []
    pictures: list[np.ndarray] = []
    manifest = {
        "femtobooth": __version__,
        "folder": str(folder),
        "model": {"source": settings.run, "hash": model.hash, **({"subject": model.subject} if model.subject else {})},
        "settings": settings.model_dump(exclude=CLUSTER),
        **drawer.sources,
        "environment": machine.environment(),
        "complete": False,
        "images": made,
    }
    try:
        with progress_bar("pictures", len(jobs), parts=settings.sampling.steps) as bar:
            for first in range(0, len(jobs), settings.batch_size):
                batch = jobs[first : first + settings.batch_size]
                drawn = drawer.drawn([job[0] for job in batch], [job[1] for job in batch], bar)
                for (picture, record), (prompt, seed, name) in zip(drawn, batch, strict=True):
                    records.save(picture, folder / name, record)
                    pictures.append(picture)
                    made.append({"file": name, "prompt": prompt, "seed": seed, "sha256": sha256_of(folder / name)})
        manifest["complete"] = True
    finally:
        if made:
            picture_files.save_grid(folder / "grid.png", prompts, seeds, pictures)
            write_json(folder / "manifest.json", manifest)
            conclude(f"{len(made)} of {len(jobs)} pictures in {folder}")
        else:  # stopped before the first: the place is free again
            shutil.rmtree(folder, ignore_errors=True)
    return manifest


Job = tuple[str, int, str]
"""Prompt, seed and the name of the file."""


def _jobs(prompts: list[str], settings: GenerateSettings) -> Iterator[Job]:
    seeds = range(settings.seed, settings.seed + settings.count)
    for row, prompt in enumerate(prompts):
        yield from ((prompt, seed, picture_files.name(row, prompt, seed, seeds[-1])) for seed in seeds)


class LoadedDrawer:
    """Maps prompts and seeds to pictures with a model that is loaded: what `load` gave with the settings."""

    def __init__(self, settings: GenerateSettings, model: Family, start: Start) -> None:
        self.settings, self.model, self.start = settings, model, start
        self.how = shaping(settings, model.size)
        self.sources: dict[str, Any] = {
            key: _fingerprint(path) for key in ("init_image", "mask") if (path := getattr(settings, key))
        }
        if settings.loras:
            self.sources["loras"] = [lora_reference.find(text).record() for text in settings.loras]

    @property
    def schema(self) -> pa.Schema:
        """Columns of the rows; `png` is the file, with the record of how it was made in it."""
        import pyarrow as pa

        texts = [(name, pa.string()) for name in ("path", "prompt")]
        fields = [*texts, ("seed", pa.int64()), ("sha256", pa.string()), ("png", pa.binary()), ("error", pa.string())]
        return pa.schema(fields, metadata={"model": self.settings.run, "model_hash": self.model.hash})

    def drawn(self, prompts: list[str], seeds: list[int], bar: Any) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Sample one batch: each picture, uint8 (H, W, 3), and its record."""
        known = {"source": self.settings.run, "hash": self.model.hash}
        made = sample_batch(self.model, self.settings, self.start, prompts, seeds, bar)
        for row, picture in enumerate(made):
            more = {"batch": [row, len(made)], **self.sources}
            yield picture, records.record("generated", prompts[row], seeds[row], known, self.how, more=more)

    def tables(self, items: Sequence[Job]) -> Iterator[pa.Table]:
        """Make the rows of prompts and seeds, a batch at a time."""
        import pyarrow as pa

        with progress_bar("pictures", len(items), parts=self.settings.sampling.steps) as bar:
            for first in range(0, len(items), self.settings.batch_size):
                batch = items[first : first + self.settings.batch_size]
                drawn = self.drawn([one[0] for one in batch], [one[1] for one in batch], bar)
                rows = []
                for (picture, record), (prompt, seed, name) in zip(drawn, batch, strict=True):
                    png = records.encode(picture, record)
                    hashed = sha256(png).hexdigest()
                    rows.append({"path": name, "prompt": prompt, "seed": seed, "sha256": hashed, "png": png})
                yield pa.Table.from_pylist(rows, schema=self.schema)

    def stamp(self, items: Sequence[Job]) -> str:
        """Hash prompts and seeds, which do not change."""
        return digest(f"{prompt}\0{seed}" for prompt, seed, _ in items)

    def still_fails(self, items: Sequence[Job], failed: Sequence[str]) -> bool:
        """Say that nothing is to be tried again: what cannot be drawn stops the command."""
        return True


class Drawer(LoadedDrawer):
    """Maps prompts and seeds to pictures: the unit of `generate`, in this process or in an actor of Ray.

    `run` and further arguments are `femtobooth generate`'s settings. Raises InputError kinds.
    """

    def __init__(self, run: str, **settings: Any) -> None:
        given = config.settle(GenerateSettings, {"run": run, **settings})
        original = read_start(given)
        model, given = load(given)
        super().__init__(given, model, fit(original, given))

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        """Map the columns `prompt` and `seed` to rows, `batch_size` at a time; prompts are as the model reads them."""
        import pyarrow as pa

        pairs = zip(map(str, batch["prompt"]), map(int, batch["seed"]), strict=True)
        jobs = [(prompt, seed, picture_files.name(row, prompt, seed, seed)) for row, (prompt, seed) in enumerate(pairs)]
        return pa.concat_tables([self.schema.empty_table(), *self.tables(jobs)])


def _parts(prompts: list[str], settings: GenerateSettings) -> Iterator[Part[Job]]:
    return parts_of(_jobs(prompts, settings), settings.part_size, lambda job: f"{job[0]}\0{job[1]}")


def _opened(settings: dict[str, Any], threads: int) -> Drawer:
    import torch

    torch.set_num_threads(threads)
    return Drawer(**settings)


def _read_there(prompts: list[str], settings: GenerateSettings) -> tuple[str, list[str]]:
    """Give the hash of the model, and the prompts as it reads them."""
    model, here = load(settings.model_copy(update={"device": "cpu"}))
    return model.hash, as_read(prompts, here, model)


def shaping(settings: GenerateSettings, side: int) -> dict[str, Any]:
    """Give the settings that shape one picture, as its record holds them; `side` is the model's own, in pixels."""
    width, height = settings.pixels(side)
    same = settings.model_dump(include={"strength", "precision", "device", "sampling"})
    return {"tokenizer": settings.tokenizer, "width": width, "height": height, **same}


def _prompts(settings: GenerateSettings) -> list[str]:
    """Gather the prompts of the settings, then those of the file."""
    prompts = list(settings.prompts)
    if settings.prompts_file:
        try:
            text = Path(settings.prompts_file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"`prompts_file={settings.prompts_file}`: cannot be read ({error})", "give a UTF-8 text file"
            ) from None
        prompts += [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError(
            "nothing to generate: no prompt was given", 'for example femtobooth generate RUN "a [V] dog on the moon"'
        )
    return prompts


def as_read(prompts: list[str], settings: GenerateSettings, model: Family) -> list[str]:
    """Put identifiers in place of [V] and [V:name], and warn of what the model will not see or does not know."""
    prompts = [_with_subjects(prompt, model, settings.run) for prompt in prompts]
    texts = [*prompts, settings.sampling.negative or ""]
    for text in texts:
        _warn_of_cut(text, model)
    warn_of_unseen(texts, model.tokenizer)
    if settings.sampling.negative == "" and not model.empty_is_none:
        note("negative prompt: the empty one, which this model does not take for none")
    return prompts


def _with_subjects(prompt: str, model: Family, reference: str) -> str:
    if not names_subject(prompt):
        return prompt
    known = called_in(model.subject)
    if not known:
        raise InputError(
            f'"{prompt}": {reference} has learned no subject that [V] could stand for',
            "give a run made by femtobooth personalize, or write the prompt without [V]",
        )
    return called(prompt, {name: one.token for name, one in known.items()})


def _warn_of_cut(text: str, model: Family) -> None:
    reader = model.reader
    pieces = reader.pieces(text)
    if len(pieces) > reader.limit:
        cut = reader.tokenizer.decode(pieces[reader.limit :]).strip()
        warn(f'"{text}" is longer than the {reader.limit} words or word pieces this model reads; not seen: "{cut}"')


def _warn_of_size(width: int, height: int, model: Family) -> None:
    """Warn of a size far from what the model was trained on, and name one of the same shape that is not."""
    side = model.size
    times = width * height / side**2
    if 1 / MAX_TIMES <= times <= MAX_TIMES and max(width, height) <= MAX_TIMES * side:
        return
    scale = min(times**-0.5, MAX_TIMES * side / max(width, height))
    near = "x".join(str(max(round(one * scale / 8), 1) * 8) for one in (width, height))
    comes = "comes in pieces or unfinished" if times < 1 / MAX_TIMES else "often comes twice, or stretched"
    warn(
        f"`size={width}x{height}`: far from the {side}x{side} that this model was trained on, where a subject "
        f"{comes}; of this shape, {near} is near"
    )


def output_of(settings: GenerateSettings) -> Output:
    """Choose the folder that pictures go into: as given, or a new one under the run's images/, or the current folder's
    for a bare model.
    """
    loras = [lora_reference.parse(text)[0] for text in settings.loras]
    inputs = (settings.run, settings.init_image, settings.mask, settings.prompts_file, *loras)
    place = Path(settings.out) if settings.out else home(settings.run) / "images" / timestamp()
    return Output(place, "generate", settings.overwrite, inputs, OWNS, numbered=not settings.out)


def load(settings: GenerateSettings, model: Family | None = None) -> tuple[Family, GenerateSettings]:
    """Load the model, ready to generate; returns it and the settings with its size and the device it is on.

    `model` is the same one from before with the same adapters in it, if it is loaded already. The VAE stays in 32
    bits, since 8-bit colours need more than half a float's range or precision.
    """
    from ..generator import sampling
    from ..generator.formats.adapter_reading import add
    from ..generator.load import load

    device = machine.device(settings.device)
    loras = [lora_reference.find(text) for text in settings.loras]
    if model is None:
        model = load(settings.run, settings.tokenizer)
        for lora in loras:
            add(model, lora)
    sampling.check(model, settings.sampling)
    width, height = settings.pixels(model.size)
    _warn_of_size(width, height, model)
    model.to(device)
    for part in model.trainable.values():
        part.to(dtype=machine.dtype(settings.precision))
    return model, settings.model_copy(update={"device": str(device), "size": f"{width}x{height}"})


def sample_batch(
    model: Family, settings: GenerateSettings, start: Start, prompts: list[str], seeds: list[int], bar: Any
) -> np.ndarray:
    """Sample one batch of pictures, uint8 (B, H, W, 3)."""
    from ..generator.sampling import sample

    options: Any = {
        "init": start.image,
        "mask": start.mask,
        "strength": settings.strength if start.image is not None else 1.0,
    }
    return sample(
        model,
        prompts,
        seeds,
        settings.sampling,
        settings.pixels(model.size),
        batch_size=len(prompts),
        bar=bar,
        **options,
    )


def home(reference: str) -> Path:
    """Find the folder under which images/ belongs: the run's own, or the current one for a bare model."""
    path = run_of(expanded(reference))
    return path if is_model(path / "model") else Path()


def _fingerprint(path: str) -> dict[str, str]:
    return {"path": path, "sha256": sha256_of(Path(path))}
