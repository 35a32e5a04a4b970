"""Open and fill the folder that `synthesize` writes: opened so that nothing of the user's goes, filed so that no
picture is ever unlisted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import __version__
from ..core import locks
from ..core.claims import Output, is_free
from ..core.errors import ExistsError
from ..core.files import TEMPORARY, sha256_of, sweep, write_json
from ..pictures import duplicates, provenance, records
from . import picture_files

MANIFEST, DRAWN = "synthesized.json", ".drawn"
MADE_BY = "femtobooth synthesize"


@contextmanager
def open_folder(out: Path, asked: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """Make OUT ready, and hold it: new, interrupted with the same settings, or to be replaced, of which only what
    `synthesize` wrote goes.

    Raises ExistsError for anything else. What was generated before stays in .drawn/, to be used again.
    """
    _refuse_loss(out, asked, overwrite)
    with locks.held_place(out, "wait until it is done, or choose another `out`"):
        _refuse_loss(out, asked, overwrite)  # someone may have finished meanwhile
        sweep(out)
        write_json(out / MANIFEST, {"femtobooth": __version__, "status": "started", "settings": asked})
        for listed in sorted(out.glob(f"*/{provenance.MANIFEST}")):
            _take_back(listed)
        for name in ("sheet.png", "rejected.png"):
            (out / name).unlink(missing_ok=True)
        yield


def _refuse_loss(out: Path, asked: dict[str, Any], overwrite: bool) -> None:
    Output(out, MADE_BY).refuse_unwritable()
    if is_free(out):
        return
    try:
        before = dict(json.loads((out / MANIFEST).read_text(encoding="utf-8")))
        status, known = before["status"], before["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ExistsError(
            f"{out} is not a folder of {MADE_BY}, and is not overwritten", "choose another `out`"
        ) from None
    if overwrite and out.is_symlink():
        raise ExistsError(
            f"{out} is a link, and is not overwritten", "choose another `out`, or give the place it leads to"
        )
    if not overwrite and status == "done":
        raise ExistsError(
            f"{out} already exists", "choose another `out`, or add `overwrite=true` to choose its pictures anew"
        )
    if not overwrite and known != asked:
        raise ExistsError(f"{out}: was begun with other settings", "give those to go on, or `overwrite=true`")


def _take_back(listed: Path) -> None:
    """Remove the pictures that an earlier call filed, if they are what they were, and their manifest; others stay, and
    so does it then.
    """
    try:
        facts = dict(json.loads(listed.read_text(encoding="utf-8")))
        ours = (
            [(listed.parent / one["file"], one["sha256"]) for one in facts["generated"]]
            if facts.get("made_by") == MADE_BY
            else []
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise ExistsError(
            f"{listed}: cannot be read, so what is generated there is unknown", "choose another `out`"
        ) from None
    for path, digest in ours:
        if path.is_file() and sha256_of(path) == digest:
            path.unlink()
    if ours and not any(path.name != listed.name for path in listed.parent.iterdir()):
        listed.unlink()
        listed.parent.rmdir()


def file_pictures(
    folder: Path,
    jobs: Sequence[tuple[str, int]],
    pictures: np.ndarray,
    kept: Sequence[bool],
    facts: dict[str, Any],
    scores: np.ndarray | None,
    model: dict[str, str],
    how: dict[str, Any],
    batch_size: int,
) -> None:
    """Write the kept ones of N pictures uint8 (N, H, W, 3) into the folder of a class, with their manifest.

    Each PNG holds what `generate` writes, so that `generate` makes it again, and `facts` with its score beside
    it. The manifest comes before the pictures that it lists. Raises ExistsError rather than replace a file.
    """
    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in jobs))}
    staged: list[tuple[Path, Path]] = []
    entries = []
    for index in np.flatnonzero(kept).tolist():
        prompt, seed = jobs[index]
        score = {} if scores is None else {"score": float(scores[index])}
        first = index - index % batch_size
        more = {
            "batch": [index - first, min(batch_size, len(jobs) - first)],
            records.CHOSEN: {**facts, **score},
        }
        record = records.record("synthesized", prompt, seed, model, how, more=more)
        path = folder / picture_files.name(row_of[prompt], prompt, seed, jobs[-1][1])
        if path.exists():
            raise ExistsError(
                f"{path}: was changed or put there by someone else, and is not overwritten", "move it away"
            )
        aside = folder.parent / DRAWN / f"{TEMPORARY}{len(staged)}.png"
        records.save(pictures[index], aside, record)
        staged.append((aside, path))
        views = duplicates.views(Image.fromarray(pictures[index]))
        signs = {} if views is None else {"signs": duplicates.signs(views)}
        entries.append(
            {"file": path.name, "sha256": sha256_of(aside), "prompt": prompt, "seed": seed, **score, **signs}
        )
    if not entries:
        return
    listed = folder / provenance.MANIFEST
    if listed.is_file():  # of pictures that were changed since an earlier call; they are still generated
        entries += json.loads(listed.read_text(encoding="utf-8"))["generated"]
    manifest = {
        "femtobooth": __version__,
        "made_by": MADE_BY,
        "model": model,
        "settings": how,
        **facts,
        "generated": entries,
    }
    write_json(listed, manifest)
    for aside, path in staged:
        aside.replace(path)
