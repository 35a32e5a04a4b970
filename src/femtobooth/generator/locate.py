"""Where a Stable Diffusion lies, and what its card recommends: told without loading it, and without importing torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors

from ..core import hub, locks
from ..core.errors import ModelError, command
from ..core.files import read_object
from ..core.paths import existing, hub_id, nearest, refuse_missing_path
from ..core.run import Run, is_run
from . import cards
from .families import known

BUNDLED = "bundled"
SUBJECT_FILE = "femtobooth.json"  # lies in a personalized model's folder: token, class noun, provenance
PARTS = known.FAMILIES[0].folders
INDEX = "model_index.json"
WAY_OUT = "give `bundled`, a run, a Stable Diffusion folder, or a .safetensors or .ckpt file"
GATED = "accept its terms on its page on the hub, then run `hf auth login` where there is a network and try again"
METADATA = "femtobooth"  # in the safetensors header: JSON of what `single_file._describe` returns
DAMAGED = "copy or download it again"
SHARED = "FEMTOBOOTH_SHARE_BASE"
"""The variable that has a process map its base (formats/mapped.py) if it is 1; `train-many` sets it for several."""


def locate(reference: str) -> Path:
    """Find the model folder or single file that `reference` names; fetches what only a hub has. Raises ModelError."""
    path = bundled_folder() if reference == BUNDLED else existing(reference)
    if path:
        if is_model(path / "model"):
            return path / "model"
        if is_run(path):
            raise ModelError(
                f"{reference}: this run is not finished and has no model yet{_why(path)}",
                command("personalize", "--resume", reference),
            )
        return path
    refuse_missing_path(reference, WAY_OUT)
    repo = hub_id(reference)
    if repo:
        return hub_folder(repo)
    near = nearest(reference) or next(iter(difflib.get_close_matches(reference[:60], [BUNDLED])), None)
    way_out = f"did you mean {near}?" if near else f"{WAY_OUT}; or a hub id like owner/name"
    raise ModelError(f"{reference}: no such base model, file or folder", way_out)


def is_model(folder: Path) -> bool:
    """Tell whether a folder holds a model in diffusers' layout, or an adapter and the name of its base."""
    return (folder / INDEX).is_file() or adapter_in(folder) is not None


def has_denoiser(folder: Path) -> bool:
    """Tell whether a folder holds what a model draws with."""
    return any((folder / part).is_dir() for part in known.DENOISERS)


def adapter_in(folder: Path) -> dict[str, Any] | None:
    """Read what a folder says of the adapter in it (`adapted_folder`); None for any other folder."""
    if (folder / INDEX).is_file():
        return None
    found = read_object(folder / SUBJECT_FILE).get("adapter")
    return found if isinstance(found, dict) else None


def _why(run: Path) -> str:
    """Say why a run has no model yet, as far as is known."""
    if holder := locks.holder(run):
        return f" (process {holder.pid} works on it since {holder.since})"
    known = Run.peek(run)
    return f" ({known.error})" if known and known.error else ""


def recommended(reference: str, of: str, allowed: tuple[cards.Recommendable, ...]) -> dict[str, Any]:
    """Read the settings of the command `of` that the card of what `reference` names recommends, without loading it; {}
    where there are none.
    """
    path = locate(reference)
    readme, file = (cards.read_readme(path), path / cards.README) if path.is_dir() else (_readme_inside(path), path)
    pipeline = cards.kind_of(path, pipeline_of(path)) if path.is_dir() else ""
    return cards.with_pipeline(cards.parse_card(readme, file, allowed), pipeline).get(of, {})


def pipeline_of(folder: Path) -> str:
    """Read the name of the pipeline that a folder is of from its index; "" where that says none."""
    return str(read_object(folder / INDEX).get("_class_name", ""))


def bundled_folder() -> Path:
    """Say where the bundled base lies in the installed package."""
    return Path(str(resources.files("femtobooth") / "assets" / "bundled"))


def hub_folder(repo: str) -> Path:
    """Find a hub repository's files, from the local cache where it is complete, else downloaded.

    Its index comes first, so that what no family can use is refused before anything large is fetched. Raises
    ModelError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        family = family_of(repo, read_object(_index_of(repo)))
        ends, folders = (".json", ".txt", ".jinja", ".model", ".safetensors"), (*family.folders, *family.optional)
        wanted = [INDEX, cards.README, *(f"{part}/*{end}" for part in folders for end in ends)]
        unwanted = ["*.fp16.*", "*.fp16-*", "*non_ema*", "*.bin"]
        folder = Path(snapshot_download(repo, allow_patterns=wanted, ignore_patterns=unwanted))
        networks = [part for part in family.networks if part not in family.optional or (folder / part).is_dir()]
        bare = [part for part in networks if not any((folder / part).glob("*.safetensors"))]
        if bare:  # some repositories have weights of half precision only, under names of their own
            snapshot_download(repo, allow_patterns=[f"{part}/*fp16*" for part in bare], ignore_patterns=["*.bin"])
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(*not_to_be_had(repo, error)) from None


def _index_of(repo: str) -> Path:
    """Fetch the index of a repository, or find it in the cache where the hub says no or nothing.

    Raises what the hub's library raises, at once.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        hub.ask(repo, INDEX)
    except Exception as error:  # of several libraries
        try:
            return Path(hf_hub_download(repo, INDEX, local_files_only=True))
        except LocalEntryNotFoundError:
            if isinstance(error, HfHubHTTPError):
                raise error from None
            raise
    return Path(hf_hub_download(repo, INDEX))


def family_of(where: object, index: Mapping[str, Any]) -> known.Known:
    """Find the family of a folder by its index. Raises ModelError where that is of none, saying what it is of."""
    pipeline = str(index.get("_class_name", ""))
    family = known.of_pipeline(pipeline) or known.FAMILIES[0]
    what = known.other(pipeline)
    missing = [part for part in family.folders if part not in index]
    if not what and pipeline not in family.pipelines and missing:  # an unheard-of name may stand for a known family
        what = f"a {pipeline[:80]}" if pipeline else f"no model, as its {INDEX} names none"
    if what:
        raise ModelError(f"{where}: {what}", known.WAY_OUT)
    return family


def not_to_be_had(repo: str, error: Exception | None = None) -> tuple[str, str]:
    """Say why a repository of the hub is not here, as far as is known, and what to do; `error` is what the hub said."""
    said, there = known.published(repo), known.MOVED.get(repo)
    if said and said.other:
        return f"{repo}: {said.other}", known.WAY_OUT
    if error and (answer := _answer(repo, error)):
        return answer
    why = f" and the hub cannot be reached ({type(error).__name__})" if error else ""
    if there:
        return f"{repo}: not in the local hub cache, and no longer on the hub", f"give {there}, which has the same"
    fetch = f"run `hf download {repo} --local-dir FOLDER`, copy FOLDER here, and give FOLDER in its place"
    if said and said.gated:
        return f"{repo}: gated, and not in the local hub cache{why}", f"{GATED}; or, there, {fetch}"
    return f"{repo}: not in the local hub cache{why}", f"where there is a network {fetch}"


def _answer(repo: str, error: Exception) -> tuple[str, str] | None:
    """Put what the hub answered into words; None where it did not answer."""
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        said = known.published(repo)
        terms = f" ({said.licence})" if said else ""
        return f"{repo}: gated, its owner wants terms to be accepted{terms}", GATED
    if isinstance(error, RepositoryNotFoundError):
        there = known.MOVED.get(repo)
        way_out = f"give {there}, which has the same" if there else "check the name; for a private one, `hf auth login`"
        return f"{repo}: the hub has no such repository, or it is private", way_out
    if isinstance(error, RemoteEntryNotFoundError):
        return (
            f"{repo}: has no {INDEX}, so it holds no model in diffusers' layout",
            "where it has a single file, download that and give its path",
        )
    return None


def _readme_inside(path: Path) -> str:
    """Read the model card in a single file that femtobooth wrote, else ""; nothing else of the file is read."""
    try:
        with safetensors.safe_open(path, "numpy") as opened:
            return str(parse_description(path, opened.metadata() or {}).get("readme", ""))
    except (safetensors.SafetensorError, OSError):  # a pickle, or damaged, which loading it will say
        return ""


def parse_description(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Read what femtobooth wrote into the header of a single file; {} for a file of others.

    Raises ModelError where it is damaged.
    """
    if METADATA not in metadata:
        return {}
    wanted = {
        **dict.fromkeys(("unet", "vae", "text_encoder", "scheduler", "tokenizer", "subject"), dict),
        "readme": str,
    }
    second = {f"{part}_2": kind for part, kind in wanted.items() if part in ("tokenizer", "text_encoder")}
    try:
        described = json.loads(metadata[METADATA])
        wanted |= {part: kind for part, kind in second.items() if part in described}
        sound = all(isinstance(described[key], kind) for key, kind in wanted.items())
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise ModelError(f"{path}: its `{METADATA}` description is damaged", DAMAGED)
    return described
