"""Find the pictures that were drawn with a run, here or on the command line, and what each was made with."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..core.files import read_object, timestamp
from ..core.run import Run
from .library import id_of
from .state import Studio

MANIFEST, GRID = "manifest.json", "grid.png"
ROW = re.compile(r"(\d+)-")
SHAPING = ("sampler", "steps", "guidance", "guidance_rescale", "negative")


@dataclass(frozen=True)
class Shot:
    """Hold one picture."""

    address: str
    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Set:
    """Hold the pictures that were asked for at a time."""

    id: str
    when: datetime
    prompts: list[str]
    shots: list[Shot]
    facts: dict[str, str]
    """What they were drawn with, for people."""
    settings: dict[str, Any]
    """What a form needs to ask for the like again."""
    grid: str | None


def sets(run: Run) -> list[Set]:
    """List what was drawn with a run, the newest first."""
    found = [_set(run, manifest) for manifest in run.folder.glob(f"images/*/{MANIFEST}")]
    return sorted((one for one in found if one.shots), key=lambda one: one.when, reverse=True)


def throw_away(studio: Studio, run: Run, set_id: str) -> bool:
    """Move the pictures of a set to the trash; tells whether there were any."""
    for manifest in run.folder.glob(f"images/*/{MANIFEST}"):
        if id_of(manifest.parent.name) == set_id:
            trash = studio.private / "trash"
            trash.mkdir(exist_ok=True)
            manifest.parent.rename(trash / f"{timestamp()}-{secrets.token_hex(3)}-{manifest.parent.name}")
            return True
    return False


def _set(run: Run, manifest: Path) -> Set:
    folder, known = manifest.parent, read_object(manifest)
    settings = known.get("settings", {})
    sampling: Mapping[str, Any] = settings.get("sampling", {})
    prompts = [str(one) for one in settings.get("prompts", [])]

    def address(name: str) -> str:
        inside = (folder / name).relative_to(run.folder).as_posix()
        return f"/api/v1/runs/{id_of(run.folder.name)}/artifacts/{id_of(inside)}"

    shots = []
    for one in known.get("images", []):
        name = str(one.get("file", ""))
        row = ROW.match(name)
        as_asked = prompts[int(row[1])] if row and int(row[1]) < len(prompts) else str(one.get("prompt", ""))
        shots.append(Shot(address(name), name, as_asked, int(one.get("seed", 0))))
    facts = {key.replace("_", " "): str(sampling[key]) for key in SHAPING if sampling.get(key) not in (None, "", 0.0)}
    facts |= {"size": str(settings["size"])} if settings.get("size") else {}
    facts |= {"begun from": "a picture", "may change": f"{settings.get('strength', 1):.0%}"} if _begun(settings) else {}
    if settings.get("loras"):
        facts["adapters"] = ", ".join(Path(str(one)).name for one in settings["loras"])
    return Set(
        id=id_of(folder.name),
        when=datetime.fromtimestamp(manifest.stat().st_mtime, UTC),
        prompts=prompts,
        shots=shots,
        facts=facts,
        settings={"size": settings.get("size") or "", **{key: sampling.get(key, "") for key in SHAPING}},
        grid=address(GRID) if (folder / GRID).is_file() else None,
    )


def _begun(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("init_image"))
