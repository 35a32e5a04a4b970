"""What compare is given: for each reference its task, its files and their hash, told without loading any of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from ...core.errors import ModelError, SettingsError
from ...core.files import content_hash
from ...core.paths import expanded
from ...core.run import is_run
from ...generator import locate, lora_reference
from ...generator.families import known
from ...generator.formats.weight_files import header
from ...generator.run import PersonalizedRun
from ...recognizer.model import artifact, formats, weights

GENERATOR, RECOGNIZER = "generator", "recognizer"
BUNDLED = locate.BUNDLED  # names a base and a recognizer
UNET = "model.diffusion_model."  # how the names of a single file's UNet begin


@dataclass(frozen=True)
class Candidate:
    """A model that is compared."""

    given: str
    """As it was typed, for the commands that are printed."""
    name: str
    """For people; each has its own."""
    task: str
    """generator or recognizer."""
    reference: str
    """What the other modules load it by."""
    path: Path
    """Its folder, or its file."""
    files: tuple[Path, ...]
    """What has to be copied to use it."""
    form: str
    """How it is stored."""
    hash: str = ""
    """SHA-256 over the names and contents of `files`."""
    run: Path | None = None
    """The run that it is the result of."""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.files)


def find(references: Sequence[str]) -> list[Candidate]:
    """Find what the references name. Raises ModelError and SettingsError, each naming the reference.

    `generator:` or `recognizer:` before a name says which is meant where it could be either; `bundled` alone is of the
    task that the others have, where they have one.
    """
    tasks = [_task(reference) for reference in references]
    others = {task for task in tasks if task}
    if None in tasks and len(others) != 1:
        raise SettingsError(
            f"{BUNDLED}: is a base and a recognizer", f"write {GENERATOR}:{BUNDLED} or {RECOGNIZER}:{BUNDLED}"
        )
    found = []
    for reference, task in zip(references, tasks, strict=True):
        plain = _plain(reference)
        one = (_generator if (task or others.copy().pop()) == GENERATOR else _recognizer)(reference, plain)
        root = one.path if one.path.is_dir() else one.path.parent
        found.append(replace(one, hash=content_hash(one.files, root)))
    for index, one in enumerate(found):
        twin = next((other for other in found[:index] if other.hash == one.hash and other.task == one.task), None)
        if twin:
            raise SettingsError(f"{one.given}: the same model as {twin.given}", "give different ones")
    return _named(found)


def generators(references: Sequence[str]) -> Iterator[str]:
    """Find those of the references that name generators, as `locate` takes them; nothing is loaded or hashed."""
    tasks = [_task(reference) for reference in references]
    either = RECOGNIZER not in tasks
    return (
        _plain(one)
        for one, task in zip(references, tasks, strict=True)
        if task == GENERATOR or (task is None and either)
    )


def _plain(reference: str) -> str:
    return reference.removeprefix(f"{GENERATOR}:").removeprefix(f"{RECOGNIZER}:")


def _task(reference: str) -> str | None:
    """Tell the task of a reference; None for what could be either."""
    for task in (GENERATOR, RECOGNIZER):
        if reference.startswith(f"{task}:"):
            return task
    path = expanded(reference)
    if reference == BUNDLED and not path.exists():
        return None
    if path.is_dir():
        places = (path, path / "model")
        drawn = any(locate.has_denoiser(place) or locate.is_model(place) for place in places)
        return GENERATOR if drawn or PersonalizedRun.peek(path) else RECOGNIZER
    if path.is_file():
        return (
            GENERATOR
            if path.suffix == ".ckpt" or any(name.startswith(UNET) for name in _tensor_names(path))
            else RECOGNIZER
        )
    return GENERATOR if "/" in reference and _cached(reference) else RECOGNIZER


def _cached(repo: str) -> bool:
    """Tell whether the local hub cache holds a Stable Diffusion of this name."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(repo, "model_index.json"), str)
    except HFValidationError:
        return False


def _tensor_names(path: Path) -> list[str]:
    return [*header(path)] if path.suffix == ".safetensors" else []


def _generator(given: str, reference: str) -> Candidate:
    path = expanded(reference)
    if reference == BUNDLED:
        path = Path(str(resources.files("femtobooth") / "assets" / "bundled"))
    elif not path.exists() or (path.is_dir() and not locate.has_denoiser(path)):
        path = locate.locate(reference)
    if path.is_file():
        return Candidate(given, path.stem, GENERATOR, str(path), path, (path,), f"single file ({path.suffix[1:]})")
    row = known.of_pipeline(locate.pipeline_of(path)) or known.FAMILIES[0]
    parts = (*row.folders, *row.optional)
    files = tuple(file for part in parts for file in sorted((path / part).glob("*")) if file.is_file())
    form = "folder of diffusers"
    if adapter := locate.adapter_in(path):
        form = f"{adapter.get('kind')} beside {adapter.get('base')}"
        held = (locate.SUBJECT_FILE, adapter.get("weights"))
        files = (*(path / str(name) for name in held if name), *lora_reference.embeddings(path, adapter))
    if not files:
        raise ModelError(
            f"{given}: not a Stable Diffusion", f"a model folder holds {', '.join(f'{part}/' for part in parts)}"
        )
    run = path.parent if is_run(path.parent) else None
    name = run.resolve().name if run else Path(reference).name
    return Candidate(given, name, GENERATOR, str(path), path, files, form, run=run)


def _recognizer(given: str, reference: str) -> Candidate:
    exported = formats.exported(reference)
    path = exported.folder if exported else expanded(reference)
    name = path.resolve().name if path.is_dir() else reference
    if not exported:
        found = weights.resolve(reference)
        if not found.is_artifact:
            return Candidate(
                given,
                Path(name).name,
                RECOGNIZER,
                reference,
                found.path,
                (found.path,),
                f"weights ({found.path.suffix[1:]})",
            )
        path = found.path
    artifact.read(path)  # raises where it is damaged
    parts = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    own = (artifact.DESCRIPTION, artifact.REJECTION, artifact.OLDER[artifact.REJECTION])
    files = tuple(
        file for file in parts if file.relative_to(path).parts[0].startswith(("model", "weight")) or file.name in own
    )
    form = f"artifact ({exported.format if exported else 'safetensors'})"
    run = path.parent if is_run(path.parent) else None
    return Candidate(given, name, RECOGNIZER, reference, path, files, form, run=run)


def _named(found: list[Candidate]) -> list[Candidate]:
    """Name each candidate for itself: where two would have the same, as it was given."""
    count = Counter(one.name for one in found)
    return [one if count[one.name] == 1 else replace(one, name=one.given) for one in found]
