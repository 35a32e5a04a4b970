"""From a reference to a model in memory: the bundled base, a run, a folder, a single file, the hub."""

from __future__ import annotations

from functools import partial

from ..core.machine import Precision, give_back_freed_memory
from . import adapted_folder, frozen
from .families import known
from .families.family import Family
from .formats.folder import load_folder, pipeline_name
from .formats.single_file import load_single_file
from .locate import adapter_in, locate

FAMILIES: tuple[type[Family], ...] = tuple(map(known.opened, known.FAMILIES))
"""The classes of `known.FAMILIES`."""


def load(reference: str, tokenizer: str | None = None, weights: bool = True, held: Precision = "fp32") -> Family:
    """Load what `reference` names, tried in this order:

    `bundled`; a path (a model folder, a run folder, a single `.safetensors`/`.ckpt` file); a hub id such as
    `owner/name` (the local hub cache first). A run's adapter comes merged into its
    base. `tokenizer` (a folder or hub id) serves single files without one. Without `weights` the networks have shapes
    alone, on torch's meta device: nothing can be computed with them. What can train is `held` in this number format,
    the VAE in 32 bits; files are read tensor by tensor, and no more than one is in memory beside what is held.
    Raises ModelError saying what to do where none fits.
    """
    if held != "fp32":  # to need less memory
        give_back_freed_memory()
    path = locate(reference)
    if not path.is_dir():
        return load_single_file(path, tokenizer, weights, held)
    if adapter_in(path) is not None:  # which is merged in 32 bits: fewer would lose some of it
        model = adapted_folder.load(path, reference, partial(load, weights=weights), tokenizer)
        if weights:
            frozen.hold(model, held)
        return model
    kind = pipeline_name(path)
    family = next((family for family in FAMILIES if kind in family.PIPELINES), FAMILIES[0])
    return load_folder(family, path, source=reference, weights=weights, held=held)
