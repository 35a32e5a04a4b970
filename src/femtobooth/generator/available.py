"""The generators that are here, and what their files say of them: told without importing torch or reading a weight."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from ..core.files import read_object
from ..core.paths import existing, hub_id, refuse_missing_path
from . import cards, locate
from .families import known
from .formats.weight_files import header, weight_files

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
UNTOLD = "what it is, only loading it tells"
IN_FILES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
"""How the names of tensors begin in single files."""
TEXTS_IN_FILES = ("cond_stage_model.", "conditioner.")


@dataclass(frozen=True)
class Generator:
    """A model that pictures can be drawn with, or that can be taught a subject."""

    name: str
    """What to give as the base."""
    source: str
    """Where it comes from: built in, run, models/, hub cache, folder, file, hub."""
    family: str
    """What it is, in words."""
    parameters: int = 0
    """Numbers in its networks; 0 where that is not known."""
    bytes: int = 0
    """On disk, of its weights."""
    size: int = 0
    """Width and height of its pictures, in pixels; 0 where that is not known."""
    licence: str = ""
    gated: bool = False
    """Whether its owner wants terms to be accepted before it is fetched."""
    ready: bool = True
    """Whether it can be a base here and now, without a network."""
    how: str = ""
    """What is the matter and what to do, where it is not ready."""
    key: str = field(default="", repr=False)
    """Stands for the shapes of its tensors; "" where they are not known."""
    path: Path | None = None
    """Where it lies."""


def available(runs: Path, asked: Sequence[str] = ()) -> list[Generator]:
    """List the bundled base, what is asked for, the models of runs, those in RUNS/models/, and those in the local hub
    cache. Raises ModelError for a path that is not there.
    """
    places = [(locate.BUNDLED, "built in", locate.bundled_folder())]
    found = [_found(reference) for reference in asked]
    places += [(str(one.parent), "run", one) for one in sorted(runs.glob("*/model")) if locate.is_model(one)]
    places += [(str(one), "models/", one) for one in placed(runs)]
    places += [(name, "hub cache", one) for name, one in in_hub_cache()]
    told = [_told(*place) for place in places]
    return [*told[:1], *found, *(one for one in told[1:] if one.name not in {other.name for other in found})]


def placed(runs: Path) -> list[Path]:
    """List the models that somebody put into RUNS/models/: folders, and .safetensors files, which may be adapters."""
    inside = sorted((runs / "models").glob("*"))
    return [one for one in inside if one.suffix == ".safetensors" or locate.is_model(one)]


def in_hub_cache() -> Iterator[tuple[str, Path]]:
    """Find the repositories in the local hub cache that have the index of a generator: hub ids and folders."""
    from huggingface_hub import constants

    for place in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        name = "/".join(place.name.split("--")[1:])
        indexes = sorted(place.glob(f"snapshots/*/{locate.INDEX}"), key=lambda path: path.parent.stat().st_mtime)
        main = place / "refs" / "main"
        current = place / "snapshots" / (main.read_text().strip() if main.is_file() else "-")
        if (current / locate.INDEX).is_file():
            yield name, current
        elif indexes:
            yield name, indexes[-1].parent


def _found(reference: str) -> Generator:
    """Tell of what somebody asks for; nothing is fetched. Raises ModelError for a path that is not there."""
    if reference == locate.BUNDLED or (path := existing(reference)):
        path = locate.locate(reference)
        return _told(reference, "built in" if reference == locate.BUNDLED else _kind(path), path)
    refuse_missing_path(reference, locate.WAY_OUT)
    repo = hub_id(reference)
    if repo is None:
        locate.locate(reference)  # raises, with the nearest name
    cached = dict(in_hub_cache())
    if repo in cached:
        return _told(reference, "hub cache", cached[repo])
    problem, way_out = locate.not_to_be_had(str(repo))
    return _elsewhere(reference, "hub", f"{problem}\n  -> {way_out}", known.published(str(repo)))


def _kind(path: Path) -> str:
    return "file" if path.is_file() else "run" if (path.parent / "run.json").is_file() else "folder"


def _elsewhere(name: str, source: str, how: str, said: known.Published | None) -> Generator:
    """Tell of what cannot be a base here and now."""
    family = next((row.name for row in known.FAMILIES if name in row.published), said.other if said else "")
    licence, gated = (said.licence, said.gated) if said else ("", False)
    return Generator(name, source, family or "-", licence=licence, gated=gated, ready=False, how=how)


def _told(name: str, source: str, path: Path) -> Generator:
    """Tell what files say of a generator; of one that cannot be a base, why."""
    said = known.published(name)
    try:
        if path.is_file():
            return _of_file(name, source, path)
        if adapter := locate.adapter_in(path):
            return _of_adapter(name, source, path, adapter)
        return _of_folder(name, source, path, said)
    except ModelError as error:
        return _elsewhere(name, source, "\n  -> ".join(filter(None, (error.problem, error.way_out))), said)


def _of_folder(name: str, source: str, folder: Path, said: known.Published | None) -> Generator:
    index = read_object(folder / locate.INDEX)
    family = locate.family_of(name, index) if index else known.FAMILIES[0]
    headers: dict[str, dict[str, Any]] = {}
    size = 0
    for part in family.networks:
        if part in family.optional and not (folder / part).is_dir():
            continue
        if not (folder / part).is_dir():
            raise ModelError(f"{name}: its {part}/ folder is missing", locate.DAMAGED)
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        files = weight_files(folder / part, stem, told=False)
        headers[part] = {key: one for file in files for key, one in header(file).items()}
        size += sum(file.stat().st_size for file in files)
    matter = cards.front_matter(cards.read_readme(folder), folder / cards.README)
    licence = str(matter.get("license_name") or matter.get("license") or (said.licence if said else ""))
    gated = bool(said and said.gated) or any(str(key).startswith("extra_gated") for key in matter)
    side = side_of(folder)
    numbers, key = _counted(family, side, [one for each in headers.values() for one in each.values()])
    return Generator(name, source, family.name, numbers, size, side, licence, gated, key=key, path=folder)


def _of_adapter(name: str, source: str, folder: Path, adapter: Mapping[str, Any]) -> Generator:
    """Tell of a run whose model is an adapter and the name of its base."""
    weights = folder / str(adapter.get("weights"))
    tensors = header(weights).values() if weights.is_file() else []
    numbers = sum(math.prod(one["shape"]) for one in tensors if one.get("dtype") in FLOATS)
    size = weights.stat().st_size if weights.is_file() else 0
    matter = cards.front_matter(cards.read_readme(folder), folder / cards.README)
    what = f"{adapter.get('kind', 'adapter')} beside {adapter.get('base', 'its base')}"
    return Generator(name, source, what, numbers, size, licence=str(matter.get("license", "")), path=folder)


def _of_file(name: str, source: str, path: Path) -> Generator:
    size, tensors = path.stat().st_size, header(path)
    if not tensors:
        return Generator(name, source, UNTOLD, bytes=size, path=path)
    described = locate.parse_description(path, tensors.pop("__metadata__", {}))
    roots = (*IN_FILES.values(), *TEXTS_IN_FILES)
    ours = {key: one for key, one in tensors.items() if key.startswith(roots)}
    if not all(any(key.startswith(root) for key in ours) for root in IN_FILES.values()):
        problem = f"{name}: no {known.IN_SINGLE_FILES} in one file, by the names of its tensors"
        raise ModelError(problem, known.WAY_OUT)
    xl = any(key.startswith("conditioner.") for key in ours)
    family = known.FAMILIES[int(xl)]
    cells = described.get("unet", {}).get("sample_size") or (128 if xl else 0)
    blocks = described.get("vae", {}).get("block_out_channels") or [0] * 4
    side = int(cells if isinstance(cells, int) else min(cells)) * 2 ** (len(blocks) - 1)
    numbers, key = _counted(family, side, [*ours.values()])
    matter = cards.front_matter(described.get("readme", ""), path)
    licence = str(matter.get("license_name") or matter.get("license") or "")
    return Generator(name, source, family.name, numbers, size, side, licence, key=key if side else "", path=path)


def _counted(family: known.Known, side: int, tensors: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """Count the numbers of tensors, and make what stands for their shapes."""
    shapes = [one["shape"] for one in tensors if one.get("dtype") in FLOATS]
    return sum(map(math.prod, shapes)), shapes_key(family.name, side, shapes)


def shapes_key(family: str, side: int, shapes: Iterable[Sequence[int]]) -> str:
    """Make what stands for an architecture, whatever file has which tensor, and whether it is a matrix there or a 1x1
    convolution.
    """
    plain = [[*shape[:-2]] if [*shape[2:]] == [1, 1] else [*shape] for shape in shapes]
    return hashlib.sha256(json.dumps([family, side, sorted(plain)]).encode()).hexdigest()[:32]


def key_of(model: Any) -> str:
    """Make what stands for a model in memory, with or without weights; files hold shared tensors once."""
    networks = [getattr(model, name) for name in model.NETWORKS]
    shapes = [one.shape for network in networks for one in network.parameters()]
    for network in networks:
        trained = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        held = {name: one for name, one in network.state_dict().items() if name not in trained}
        shapes += [one.shape for one in held.values() if one.is_floating_point()]
    return shapes_key(model.NAME, model.size, shapes)


def side_of(folder: Path) -> int:
    """Read the side of a model's pictures [px] from its configs; 0 where they do not say."""
    configs = (read_object(folder / part / "config.json") for part in known.DENOISERS)
    cells = next((config["sample_size"] for config in configs if config.get("sample_size")), 0)
    vae = read_object(folder / "vae" / "config.json")
    if not cells:  # as transformers of any size say nothing of it
        return int(vae.get("sample_size") or 0)
    blocks = vae.get("block_out_channels") or [0]
    return int(cells if isinstance(cells, int) else min(cells)) * 2 ** (len(blocks) - 1)
