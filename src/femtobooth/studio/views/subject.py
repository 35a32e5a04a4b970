"""A new subject: its photos and what was found in them, what it is, what it is taught to, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from PIL import Image
from starlette.datastructures import FormData, UploadFile

from ...core.config import merge, nested
from ...core.errors import FemtoboothError
from ...core.run import is_run
from ...generator.settings import PersonalizeSettings
from ...generator.subject_settings import PhotoSettings
from .. import bases, fieldsets
from ..asked import Here, ThisDraft, ThisPhoto
from ..drafts import Draft, Found, look
from ..nouns import NOUNS, suggested
from ..presets import presets
from ..state import Studio
from ..uploads import Upload
from .arriving import in_a_file, take_picture
from .rendering import error_page, go, not_here, page, plain

router = APIRouter()
MASCOT = Path(__file__).parents[2] / "assets" / "mascot"
OWN = ("photos.class_noun", "photos.crop", "photos.mask", "name")
"""Settings that have a place of their own on the page."""
LEFT_OUT = (
    *OWN, "photos.paths", "photos.hold_out", "overwrite", "plan", "memory", "training.devices", "training.nodes",
    "training.strategy", "training.trackers", "training.accelerator", "training.log_every",
)  # fmt: skip
CROPS = {
    "subject": "close around the subject",
    "smart": "the part with most in it",
    "center": "the middle",
    "pad": "all of it, with borders",
}
THUMBNAIL = 640
CROP = ("left", "top", "width", "height")
MOST_PHOTOS, CAPTION_LENGTH, MOST_LOOKED = 60, 300, 16


@router.get("/new", response_class=HTMLResponse)
def begin() -> HTMLResponse:
    """Ask for photos."""
    return page("begin.html", title="New subject", here="new")


@router.post("/new")
async def take(request: Request, studio: Here) -> Response:
    """Begin a draft from photos that were dropped or chosen, or from the mascot's."""
    form = await request.form()
    draft = studio.drafts.new()
    problems = await run_in_threadpool(_take, studio, draft, form)
    if not draft.photos:
        told = "; ".join(problems) or "No photo came along."
        return error_page(400, "That did not work", told, "Choose JPEG, PNG or WebP photos.")
    return go(f"/new/{draft.id}")


@router.post("/new/{draft_id}/photos")
async def take_more(request: Request, draft: ThisDraft, studio: Here) -> Response:
    """Take further photos into a draft."""
    problems = await run_in_threadpool(_take, studio, draft, await request.form())
    if problems:
        return error_page(400, "Not all photos could be used", "; ".join(problems), "The others were added.")
    return go(f"/new/{draft.id}")


def _take(studio: Studio, draft: Draft, form: FormData) -> list[str]:
    """Add what a form brought; returns what could not be used, and why."""
    problems: list[str] = []
    if form.get("example") == "mascot":
        for path in sorted(MASCOT.glob("*.jpg")):
            upload = studio.uploads.add_picture(path, path.name)
            caption = path.with_suffix(".txt")
            if caption.is_file():
                studio.uploads.caption(upload, caption.read_text(encoding="utf-8"))
            draft.photos.append(upload.id)
        draft.settings = {"photos": {"class_noun": "robot"}, "name": "femto"}
    for sent in form.getlist("photos"):
        if not isinstance(sent, UploadFile) or not sent.filename:
            continue
        if len(draft.photos) >= MOST_PHOTOS:
            problems.append(f"{sent.filename}: more than {MOST_PHOTOS} photos; 3 to 5 different ones are best")
            break
        try:
            draft.photos.append(take_picture(studio, sent).id)
        except FemtoboothError as error:
            problems.append(f"{Path(sent.filename).name}: {error.problem}")
    if draft.photos:
        studio.drafts.keep(draft)
    return problems


@router.get("/new/{draft_id}", response_class=HTMLResponse)
def show(draft: ThisDraft, studio: Here) -> Response:
    """Show a draft."""
    if draft.job and (job := studio.jobs.get(draft.job)):
        return go(f"/jobs/{job.id}")
    return _page(studio, draft, draft.settings, {})


def _page(studio: Studio, draft: Draft, given: Mapping[str, Any], errors: Mapping[str, str]) -> HTMLResponse:
    """Render the whole page of a draft."""
    here = bases.bases(studio)
    base = bases.find(here, draft.base)
    recommended = PersonalizeSettings.recommended({"base": base.path})
    ways = presets(recommended)
    below = merge(recommended, ways[draft.preset].settings)
    noun = plain(given, "photos.class_noun", "")
    crop = plain(given, "photos.crop") or plain(below, "photos.crop", "smart")
    listed = fieldsets.offered(PersonalizeSettings, LEFT_OUT)
    known = bases.bundled_nouns() if base.reference == "bundled" else list(NOUNS)
    return page(
        "subject.html",
        status_code=422 if errors else 200,
        title="New subject",
        here="new",
        draft=draft,
        photos=photos_of(studio, draft),
        found=_look(studio, draft, crop, base.side),
        noun=noun,
        name=given.get("name") or "",
        crop=crop,
        crops=CROPS,
        nouns=known,
        suggested=suggested(photos_of(studio, draft), known),
        bases=here,
        base=base,
        ways=list(ways.values()),
        common=fieldsets.groups(PersonalizeSettings, [one for one in listed if one.common], given, below, errors),
        groups=fieldsets.groups(PersonalizeSettings, [one for one in listed if not one.common], given, below, errors),
        errors=errors,
        deeper=bool(errors.keys() - {"photos.class_noun", "name", "base", ""}),
    )


def photos_of(studio: Studio, draft: Draft) -> list[Upload]:
    """Give the photos of a draft that are still here."""
    return [one for one in map(studio.uploads.get, draft.photos) if one]


def _look(studio: Studio, draft: Draft, crop: str, side: int) -> Found:
    """Look at the photos once for all the requests of a page."""
    photos = photos_of(studio, draft)
    key = (str([(one.id, one.crop, one.mask, one.caption) for one in photos]), crop, side)
    if key not in _looked:
        while len(_looked) >= MOST_LOOKED:
            _looked.pop(next(iter(_looked)), None)
        settings = PhotoSettings(paths=["-"], class_noun="thing", crop=crop)  # type: ignore[arg-type]
        _looked[key] = look(photos, studio.uploads, settings, side)
    return _looked[key]


_looked: dict[tuple[str, str, int], Found] = {}


@router.get("/new/{draft_id}/found", response_class=HTMLResponse)
def found(request: Request, draft: ThisDraft, studio: Here) -> Response:
    """Look at the photos again, after another crop or base was chosen."""
    noun = " ".join(request.query_params.get("photos.class_noun", "").split())[:60]
    base = request.query_params.get("base", draft.base)
    return _photos(studio, draft, base, request.query_params.get("photos.crop", "smart"), noun)


def _photos(studio: Studio, draft: Draft, base: str, crop: str, noun: str) -> HTMLResponse:
    crop = crop if crop in CROPS else "smart"
    found = bases.find(bases.bases(studio), base)
    draft = draft.model_copy(update={"base": found.reference})
    made = _look(studio, draft, crop, found.side)
    return page("photos.html", draft=draft, photos=photos_of(studio, draft), found=made, noun=noun, crop=crop)


@router.get("/new/{draft_id}/plan", response_class=HTMLResponse)
def plan(request: Request, draft: ThisDraft, studio: Here) -> Response:
    """Say what it would need of memory."""
    texts = {key: request.query_params.getlist(key) for key in request.query_params}
    given, way = _chosen(studio, draft, texts)
    settings = merge(way, given, {"base": draft.base}, nested("photos.paths", _references(draft)))
    settings = merge({"photos": {"class_noun": "thing"}}, settings)
    settings.pop("name", None)
    try:
        found = studio.desk.plan(settings)
    except FemtoboothError as error:
        return page("told.html", text=error.problem)
    return page("plan.html", plan=found, free=psutil.virtual_memory().available)


@router.get("/photos/{upload_id}")
def photo(upload_id: str, studio: Here, side: int = THUMBNAIL, whole: bool = False) -> Response:
    """Give an upload shrunk to `side` pixels: as it is learned from, or the `whole` of it."""
    upload = studio.uploads.get(upload_id)
    if upload is None or upload.kind != "picture":
        return not_here()
    path = bases.whole(studio.uploads, upload) if whole else studio.uploads.path(upload)
    data = _shrunk(path, min(max(side, 16), 2048))
    return Response(data, media_type="image/webp", headers={"cache-control": "no-cache"})


@router.get("/new/{draft_id}/photos/{upload_id}/square")
def square(request: Request, upload_id: str, draft: ThisDraft, studio: Here, crop: str = "smart") -> Response:
    """Give a photo as the model will see it."""
    side = bases.find(bases.bases(studio), request.query_params.get("base", draft.base)).side
    made = _look(studio, draft, crop, side) if crop in CROPS else None
    if made is None or upload_id not in made.squares:
        return not_here()
    stored = BytesIO()
    Image.fromarray(made.squares[upload_id]).save(stored, format="PNG")
    return Response(stored.getvalue(), media_type="image/png", headers={"cache-control": "no-cache"})


def _shrunk(path: Path, side: int) -> bytes:
    with Image.open(path) as image:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        stored = BytesIO()
        image.save(stored, format="WEBP", quality=88)
    return stored.getvalue()


@router.post("/new/{draft_id}/photos/{upload_id}/caption")
async def caption(request: Request, photo: ThisPhoto, studio: Here) -> Response:
    """Change a caption; the page sends it as it is typed."""
    text = str((await request.form()).get(f"caption-{photo.id}", ""))
    studio.uploads.caption(photo, text[:CAPTION_LENGTH])
    return Response(status_code=204)


@router.post("/new/{draft_id}/photos/{upload_id}/remove")
async def remove(request: Request, draft: ThisDraft, photo: ThisPhoto, studio: Here) -> Response:
    """Take a photo out of a draft."""
    draft.photos.remove(photo.id)
    studio.drafts.keep(draft)
    studio.uploads.remove(photo)
    if request.headers.get("hx-request"):
        crop = str((await request.form()).get("photos.crop", "smart"))
        noun = plain(draft.settings, "photos.class_noun", "")
        return await run_in_threadpool(_photos, studio, draft, draft.base, crop, noun)
    return go(f"/new/{draft.id}")


@router.get("/new/{draft_id}/photos/{upload_id}/edit", response_class=HTMLResponse)
def edit(draft: ThisDraft, photo: ThisPhoto, studio: Here) -> Response:
    """Show a photo to cut it, or to paint over what counts in it."""
    with Image.open(bases.whole(studio.uploads, photo)) as image:
        size = image.size
    box = photo.crop or (0, 0, *size)
    return page("photo.html", title=f"Edit {photo.name}", here="new", draft=draft, photo=photo, size=size, box=box)


@router.get("/new/{draft_id}/photos/{upload_id}/mask")
def mask(photo: ThisPhoto, studio: Here) -> Response:
    """Give the mask of a photo."""
    if not photo.mask:
        return not_here()
    path = studio.uploads.path(photo).with_suffix(".mask.png")
    return Response(path.read_bytes(), media_type="image/png", headers={"cache-control": "no-cache"})


@router.post("/new/{draft_id}/photos/{upload_id}/edit")
async def edited(request: Request, draft: ThisDraft, photo: ThisPhoto, studio: Here) -> Response:
    """Cut a photo as chosen, or keep the mask that was painted."""
    form = await request.form()
    try:
        if form.get("do") == "crop":
            left, top, width, height = (
                round(float(str(form.get(key, "")))) for key in ("left", "top", "width", "height")
            )
            await run_in_threadpool(studio.uploads.crop, photo, (left, top, width, height))
        elif form.get("do") == "whole":
            await run_in_threadpool(studio.uploads.crop, photo, None)
        elif form.get("do") == "unmask":
            studio.uploads.mask(photo, None)
        elif isinstance(painted := form.get("mask"), UploadFile):
            await run_in_threadpool(in_a_file, painted, lambda path: studio.uploads.mask(photo, path))
    except FemtoboothError as error:
        return error_page(400, "That did not work", error.problem, error.way_out)
    except ValueError:
        return error_page(400, "That did not work", "This is no part of the photo.")
    return go(f"/new/{draft.id}")


@router.post("/new/{draft_id}/delete")
def delete(draft_id: str, studio: Here) -> Response:
    """Throw a draft away, and its photos."""
    if draft := studio.drafts.get(draft_id):
        for upload in photos_of(studio, draft):
            studio.uploads.remove(upload)
        studio.drafts.remove(draft)
    return go("/")


@router.post("/new/{draft_id}")
async def start(request: Request, draft: ThisDraft, studio: Here) -> Response:
    """Check what was chosen and begin to teach it, or show what is to be mended, at its field."""
    form = await request.form()
    return await run_in_threadpool(
        _start, studio, draft, {key: [str(one) for one in form.getlist(key)] for key in form}
    )


def _start(studio: Studio, draft: Draft, texts: Mapping[str, Sequence[str]]) -> Response:
    given, way = _chosen(studio, draft, texts)
    studio.drafts.keep(draft)
    if errors := _missing(studio, draft, given):
        return _page(studio, draft, given, errors)
    settings = merge(way, given, nested("photos.paths", _references(draft)), {"base": draft.base})
    try:
        job = studio.desk.submit("personalize", settings, draft.id)
    except FemtoboothError as error:
        return _page(studio, draft, given, fieldsets.blame(PersonalizeSettings, error))
    draft.job = job.id
    studio.drafts.keep(draft)
    return go(f"/jobs/{job.id}")


def _chosen(
    studio: Studio, draft: Draft, texts: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Read the form into a draft; returns what was given, and the settings of the preset."""
    base = bases.find(bases.bases(studio), "".join(texts.get("base", [draft.base])))
    recommended = PersonalizeSettings.recommended({"base": base.path})
    ways = presets(recommended)
    way = "".join(texts.get("preset", [draft.preset]))
    draft.base, draft.preset = base.reference, way if way in ways else "balanced"
    below = ways[draft.preset].settings
    given = fieldsets.read(PersonalizeSettings, texts, merge(recommended, below))
    given.pop("base", None)
    draft.settings = given
    return given, below


def _references(draft: Draft) -> list[str]:
    return [f"upload:{one}" for one in draft.photos]


def _missing(studio: Studio, draft: Draft, given: dict[str, Any]) -> dict[str, str]:
    """Say what is to be mended before the rest is looked at, by setting."""
    found = {}
    if not photos_of(studio, draft):
        found[""] = "There is no photo yet."
    if not plain(given, "photos.class_noun"):
        found["photos.class_noun"] = "Say in a word or two what it is."
    name = str(given.get("name") or "")
    if name and "/" not in name and is_run(studio.folder / name):
        found["name"] = "There is one of this name already."
    return found
