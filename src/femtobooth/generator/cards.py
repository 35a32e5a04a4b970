"""Model cards (README.md): the settings that a base recommends, and nothing else that a stranger's card could set; and
writing cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from ..core.config import Settings, merge, nested, parse_yaml
from ..core.errors import SettingsError
from ..core.events import warn
from ..core.files import read_object
from ..core.paths import hub_id

README = "README.md"
PICTURE = "overview.png"  # beside a card that shows it
ON_HUB = {  # what the hub reads of every folder in diffusers' layout
    "library_name": "diffusers",
    "pipeline_tag": "text-to-image",
    "tags": ["text-to-image", "diffusers", "stable-diffusion", "stable-diffusion-diffusers"],
}
_OWED = re.compile(
    r"^##? [^\n]*\b(data|licen[cs]e|attribution|credits?)\b[^\n]*\n.*?(?=^##? |\Z)",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
MAX_OWED_CHARACTERS = 8000  # of a base's card that go into the cards of what is made from it
MAX_CARD_CHARACTERS = 1 << 20  # of a card that are read


class Recommendable(NamedTuple):
    """What a card may recommend to a command: of its settings those named here, `*` for every one of a group."""

    command: str
    settings: type[Settings]
    names: tuple[str, ...]


UNGUIDED = " without guidance"
"""Ends the names of pipelines whose transformer could be told guidance, and is not."""
_XL = {"sampling": {"sampler": "euler", "steps": 30, "guidance": 5.0}}  # what the published base is drawn with
_SD3 = {"sampling": {"sampler": "euler", "steps": 28, "guidance": 4.5}}
_Z_IMAGE = {"sampling": {"sampler": "euler", "steps": 30, "guidance": 5.0}}  # 4 in diffusers' way of counting
_FLUX = {"sampling": {"sampler": "euler", "steps": 28, "guidance": 3.5}}
_SCHNELL = {"sampling": {"sampler": "euler", "steps": 4, "guidance": 1.0}}
OF_PIPELINES: dict[str, dict[str, dict[str, Any]]] = {
    "StableDiffusionXLPipeline": {"generate": _XL, "personalize": {"samples": _XL, "prior": _XL}},
    "ZImagePipeline": {
        "generate": _Z_IMAGE,
        "personalize": {
            "samples": _Z_IMAGE,
            "prior": _Z_IMAGE,
            "validation": {"sampler": "euler"},
            "train": {"parts": ["lora"]},
        },
    },
    **{
        kind: {
            "generate": drawn,
            "personalize": {
                "samples": drawn,
                "prior": drawn,
                "validation": {"sampler": "euler"},
                "train": {"parts": ["lora"]},
                "lora": {"text_encoder": False},
            },
        }
        for kind, drawn in {"FluxPipeline": _FLUX, f"FluxPipeline{UNGUIDED}": _SCHNELL}.items()
    },
    "StableDiffusion3Pipeline": {
        "generate": _SD3,
        "personalize": {"samples": _SD3, "prior": _SD3, "validation": {"sampler": "euler"}},
    },
}
"""What is recommended for folders of a pipeline whose cards say nothing else, by command."""


def with_pipeline(recommended: dict[str, dict[str, Any]], pipeline: str) -> dict[str, dict[str, Any]]:
    """Put what a card recommends, by command, over what is recommended for every model of a pipeline (`kind_of`)."""
    usual = OF_PIPELINES.get(pipeline, {})
    return {name: merge(usual.get(name, {}), recommended.get(name, {})) for name in {**usual, **recommended}}


def kind_of(folder: Path, pipeline: str) -> str:
    """Name what is recommended for a folder of this pipeline."""
    told = read_object(folder / "transformer" / "config.json").get("guidance_embeds", True)
    return pipeline if told else pipeline + UNGUIDED


def read_readme(folder: Path) -> str:
    """Read the model card in a folder, or "" where there is none that can be read."""
    try:
        with (folder / README).open(encoding="utf-8-sig", errors="replace") as file:
            return file.read(MAX_CARD_CHARACTERS)
    except OSError:
        return ""


def read_card(folder: Path, allowed: tuple[Recommendable, ...]) -> dict[str, dict[str, Any]]:
    """Read the settings that the card in a folder recommends, by command; {} where there are none."""
    return parse_card(read_readme(folder), folder / README, allowed)


@lru_cache(maxsize=16)  # read for the settings and again with the model; warned of once
def parse_card(text: str, path: Path, allowed: tuple[Recommendable, ...]) -> dict[str, dict[str, Any]]:
    """Read the settings under `femtobooth:` in a card's front matter, by command, as far as they are `allowed`.

    All else in it, a wrong value, or front matter that is no YAML is left out with a warning that names `path`.
    """
    given = front_matter(text, path).get("femtobooth", {})
    recommended: dict[str, dict[str, Any]] = {}
    ignored: list[str] = []
    for command, settings in given.items() if isinstance(given, Mapping) else ():
        model, names = next(((one.settings, one.names) for one in allowed if one.command == command), (Settings, ()))
        for setting, value in islice(_leaves(settings), 1000):
            if not any(setting == one or (one.endswith(".*") and setting.startswith(one[:-1])) for one in names):
                ignored.append(f"{command}.{setting}" if setting else str(command))
            elif fault := _fault(model, setting, value):
                ignored.append(f"{command}.{setting} ({fault})")
            else:
                recommended[command] = merge(recommended.get(command, {}), nested(setting, value))
    if ignored:
        shown = ", ".join(one[:80] for one in ignored[:5]) + (
            f" and {len(ignored) - 5} more" if len(ignored) > 5 else ""
        )
        warn(f"{path}: this model card cannot set {shown}; ignored")
    return recommended


def front_matter(text: str, path: Path) -> dict[Any, Any]:
    """Read the YAML mapping between a card's `---` lines; {} where there is none, and with a warning where it cannot be
    read.
    """
    text = text.replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    try:
        matter = parse_yaml(
            text[3:].partition("\n---")[0], str(path)
        )  # from the first fence's end, so that lines count as in the file
    except SettingsError as error:
        warn(f"{error.problem}; the model card's settings are ignored")
        return {}
    return matter if isinstance(matter, dict) else {}


def card(matter: Mapping[str, Any], body: str) -> str:
    """Write a card: front matter between `---` lines, then the text."""
    return f"---\n{yaml.safe_dump(dict(matter), sort_keys=False, allow_unicode=True, width=200)}---\n\n{body}"


def completed(text: str) -> str:
    """Add to a card what the hub reads of every model folder, as far as its front matter does not say it; all else
    stays as it is.
    """
    given = front_matter(text, Path(README))
    missing = {key: value for key, value in ON_HUB.items() if key not in given}
    if not text.startswith("---\n"):
        return card(ON_HUB, text)
    if not given or not missing:  # not to be read, or complete
        return text
    return f"---\n{yaml.safe_dump(missing, sort_keys=False)}{text[4:]}"


def inherited(readme: str, base: str) -> tuple[dict[str, Any], str]:
    """Gather what a model owes the base it was made from: its licence and name as front matter, and its sections on
    data and licence as text.
    """
    given = front_matter(readme, Path(README))
    matter = {
        key: str(given[key]) for key in ("license", "license_name", "license_link") if isinstance(given.get(key), str)
    }
    matter["base_model"] = (
        hub_id(base)
        or re.sub(r"[^\w.-]+", "-", f"femtobooth-{base}" if base == "bundled" else Path(base).stem)
        or "base"
    )
    owed = "\n\n".join(section[0].strip() for section in _OWED.finditer(readme))[:MAX_OWED_CHARACTERS]
    return matter, owed


def _leaves(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List dotted paths and their values; no deeper than settings are nested, whatever aliases a card builds."""
    if not isinstance(settings, Mapping) or prefix.count(".") > 2:
        yield prefix, settings
        return
    for key, value in settings.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))


def _fault(model: type[Settings], path: str, value: Any) -> str | None:
    """Say what is wrong with a value for the setting at a dotted path; None if nothing is."""
    *groups, name = path.split(".")
    for group in groups:
        field = model.model_fields.get(group)
        if field is None:
            return "no such setting"
        model = field.annotation  # type: ignore[assignment]
    if name not in model.model_fields:
        return "no such setting"
    try:
        model.model_validate({name: value})
    except ValidationError as error:
        wrong = [fault["msg"] for fault in error.errors() if fault["loc"][:1] in ((), (name,))]
        return wrong[0].lower() if wrong else None
    return None
