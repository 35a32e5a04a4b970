"""Subject photos: checked, cropped to squares, captioned; and the table that says what became of each file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..core import events
from ..core.errors import PhotoError
from ..core.files import atomic_folder
from ..core.names import shown, stored
from ..pictures.images import Picture, Skipped, decode, find_pictures, read_picture
from ..pictures.regions import find_subject, find_subjects, lab, likeness_of_subjects, thumbnail
from ..pictures.sheets import sheet, stacked
from .captions import STYLES, caption_files, class_captions, own_captions
from .prompts import SUBJECT
from .settings import PhotoSettings

MIN_SIDE_PIXELS = 64  # below, there is nothing to learn a subject from
MIN_PHOTOS = 3  # below, there is a warning
CROPS = "crops.png"  # in a run folder: the photos as they are trained on
MIN_KEPT_SHARE = 0.3  # of a photo: a crop that keeps less may hold a detail, or something beside the subject
MIN_LIKENESS = 0.4  # of what is taken for the subject: below, its colours are not those of the other photos' subjects
# of the side of the square that is cut out around a subject; what is taken for it often lacks a foot or a handle
SUBJECT_SHARE = 0.7


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo as it is trained on."""

    path: Path
    pixels: np.ndarray
    """(size, size, 3), uint8 sRGB."""
    captions: tuple[str, ...]
    """Templates, one of which is drawn at each visit: `{token}` and `{class}` are still to be filled in."""
    notes: tuple[str, ...]
    """What was done to the picture, in words."""
    own: bool = False
    """Whether the captions lie beside the photo."""


@dataclass(frozen=True)
class _Subject:
    """What is taken for the subject of a photo."""

    mask: np.ndarray | None
    """bool (h, w), of any resolution."""
    likeness: float | None
    """Share of it that has colours of the other photos' subjects."""


def load_photos(settings: PhotoSettings, size: int) -> tuple[list[Photo], list[dict[str, Any]]]:
    """Find, check, crop and caption the subject's photos, and print the preflight table.

    Returns the photos and the table as data, a row for each file found: file, width, height, format, status (`used`
    or `skipped`), notes (with the reason), captions. Exact duplicates are skipped; near-duplicates stay, with a
    warning, since a burst may be meant. Fewer than three photos warn. Raises PhotoError for none at all, for a
    path that does not exist, and for a caption that is not UTF-8.
    """
    paths, skipped = find_pictures(settings.paths)
    photos: list[Photo] = []
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    same: dict[str, Path] = {}
    thumbnails: dict[Path, np.ndarray] = {}
    captioned = {file for path in paths for file in caption_files(path)}
    styles = STYLES[settings.captions]
    subjects = _subjects(paths) if settings.crop == "subject" else {}
    for path in paths:
        picture = decode(path)
        if isinstance(picture, Skipped):
            rows.append(_row(path, reason=picture.reason))
            continue
        image, pixels = picture.image, _hash(picture.image)
        if min(image.size) < MIN_SIDE_PIXELS:
            rows.append(_row(path, picture, reason=f"too small: needs {MIN_SIDE_PIXELS} px each way"))
            continue
        if pixels in same:
            rows.append(_row(path, picture, reason=f"same pixels as {shown(same[pixels].name)}"))
            continue
        same[pixels] = path
        notes = [*picture.notes]
        look = _thumbnail(image)
        twins = [other for other, known in thumbnails.items() if nearly_same(look, known)]
        thumbnails[path] = look
        if twins:
            notes.append(f"nearly the same as {shown(twins[0].name)}")
            warnings.append(
                f"{shown(path.name)} is nearly the same as {shown(twins[0].name)}; varied photos teach more"
            )
        square, done = make_square(image, size, settings.crop, subjects[path].mask if path in subjects else None)
        notes += done
        own = own_captions(path)
        if own:
            notes.append(
                "own caption" if all("{token}" in caption for caption in own) else f"own caption, without {SUBJECT}"
            )
        photos.append(Photo(path, np.array(square), own or styles, tuple(notes), bool(own)))
        rows.append(_row(path, picture, notes=notes, captions=own or styles))
    rows += [_row(left.path, reason=left.reason) for left in skipped if left.path not in captioned]
    _print_table(rows)
    if not photos:
        where = ", ".join(map(shown, settings.paths))
        raise PhotoError(f"no usable photo in {where}", "give 3 to 5 JPEG, PNG or WebP photos of the subject")
    enlarged = [shown(photo.path.name) for photo in photos if any(note.startswith("enlarged") for note in photo.notes)]
    if enlarged:
        warnings.append(f"smaller than {size} px and enlarged, which blurs them: {', '.join(enlarged)}")
    if len(photos) < MIN_PHOTOS:
        count = "1 usable photo" if len(photos) == 1 else f"{len(photos)} usable photos"
        warnings.append(f"only {count}; 3 to 5 varied ones keep the subject apart from its background")
    for warning in [*warnings, *_doubtful_crops([photo.path for photo in photos], subjects)]:
        events.warn(warning)
    return photos, rows


def load_class_images(folder: str, size: int) -> list[Photo]:
    """Load one's own class images, as `load_photos` but for what is asked of photos of a subject. Raises PhotoError."""
    paths, skipped = find_pictures([folder])
    captioned = {file for path in paths for file in caption_files(path)}
    found, rows = [], [_row(left.path, reason=left.reason) for left in skipped if left.path not in captioned]
    for path in paths:
        picture = decode(path)
        if isinstance(picture, Skipped):
            rows.append(_row(path, reason=picture.reason))
            continue
        square, notes = make_square(picture.image, size, "center")
        own = class_captions(path)
        notes = [*picture.notes, *notes, *["own caption"] * bool(own)]
        found.append(Photo(path, np.array(square), own, tuple(notes), bool(own)))
        rows.append(_row(path, picture, notes=notes, captions=own))
    _print_table(rows, "class images")
    if not found:
        raise PhotoError(
            f"`prior.folder={folder}`: no usable picture in it", "leave it out to have class images generated"
        )
    return found


def crops_sheet(photos: Sequence[Photo]) -> Image.Image:
    """Lay out all photos as they are trained on, with their names."""
    columns = min(len(photos), 6)
    rows = [photos[first : first + columns] for first in range(0, len(photos), columns)]
    one = [sheet([[photo.pixels for photo in row]], [], [photo.path.name for photo in row], cell=192) for row in rows]
    return stacked(one)


def _doubtful_crops(paths: Sequence[Path], subjects: Mapping[Path, _Subject]) -> list[str]:
    """List warnings of what may have been taken for the subject instead of it."""
    known = [(path, subjects[path]) for path in paths if path in subjects and subjects[path].mask is not None]
    small = [f"{path.name} ({part:.0%})" for path, one in known if (part := _kept(one.mask)) < MIN_KEPT_SHARE]
    other = [path.name for path, one in known if one.likeness is not None and one.likeness < MIN_LIKENESS]
    warnings = []
    if small:
        warnings.append(
            f"the crop around what stands out keeps little of {', '.join(small)}; see in {CROPS} if it is the subject"
        )
    if other:
        warnings.append(
            f"what stands out in {', '.join(other)} has other colours than in "
            f"the rest; see in {CROPS} if it is the subject"
        )
    if warnings:
        warnings.append("where it is not, `photos.crop=smart` keeps the most detailed square, and center the middle")
    return warnings


def _kept(mask: np.ndarray | None) -> float:
    """Estimate the share of a photo that the crop around a mask keeps, roughly."""
    box = None if mask is None else Image.fromarray(mask).getbbox()
    if mask is None or box is None:
        return 1.0
    side = max((box[2] - box[0]) / mask.shape[1], (box[3] - box[1]) / mask.shape[0]) / SUBJECT_SHARE
    return min(side, 1.0) ** 2


def hold_out(photos: list[Photo], count: int) -> tuple[list[Photo], list[Photo]]:
    """Split photos into those to train on and `count` to score against: the last by order, but those with a near-copy
    among the photos only if need be.

    A near-copy of what was trained on would flatter every score. Raises PhotoError where fewer than two would be left.
    """
    if not count:
        return photos, []
    if len(photos) - count < 2:
        most = max(len(photos) - 2, 0)
        raise PhotoError(
            (
                f"`photos.hold_out={count}`: leaves {max(len(photos) - count, 0)} of "
                f"{len(photos)} photos to train on, which needs 2"
            ),
            f"hold out at most {most}, or give more photos" if most else "give more photos, or hold none out",
        )
    looks = [_thumbnail(Image.fromarray(photo.pixels)) for photo in photos]
    twinned = [any(nearly_same(look, other) for other in looks if other is not look) for look in looks]
    held = sorted(range(len(photos)), key=lambda index: (twinned[index], -index))[:count]
    return [photo for index, photo in enumerate(photos) if index not in held], [photos[index] for index in sorted(held)]


def _subjects(paths: Sequence[Path]) -> dict[Path, _Subject]:
    """Find what the photos have in common, in their thumbnails; each file is read once more, as not all may fit in
    memory at once.
    """
    thumbnails = {}
    for path in paths:
        picture = decode(path)
        if isinstance(picture, Picture) and min(picture.image.size) >= MIN_SIDE_PIXELS:
            thumbnails[path] = thumbnail(np.asarray(picture.image))
    small = list(thumbnails.values())
    masks = find_subjects(small)
    found = zip(masks, likeness_of_subjects(small, masks), strict=True)
    return {path: _Subject(mask, likeness) for path, (mask, likeness) in zip(thumbnails, found, strict=True)}


def make_square(
    image: Image.Image, size: int, crop: str, subject: np.ndarray | None = None
) -> tuple[Image.Image, list[str]]:
    """Make an RGB picture a size x size square, never squashed, and say what was done to it.

    `center` and `smart` cut the largest square; `subject` one around the mask `subject`, bool (h, w) of any resolution,
    else around what stands out (as `smart` where nothing does), but never so small that it would be enlarged: what is
    small in its photos is learned as something small; `pad` shows the whole picture and continues its borders out of
    focus: unlike bars of one colour, they hold no edge that the model would learn as part of the subject.
    """
    notes = []
    box = (
        _around(find_subject(np.asarray(image)) if subject is None else subject, image, size)
        if crop == "subject"
        else None
    )
    if box:
        image, kept = image.crop(box), (box[2] - box[0]) ** 2 / (image.width * image.height)
        notes.append(f"crop around the subject keeps {kept:.0%}")
    width, height = image.size
    short, long = sorted(image.size)
    scale = size / (long if crop == "pad" else short)
    if scale > 1:
        notes.append(f"enlarged x{scale:.2g}")
    if short == long:
        return image.resize((size, size), Image.Resampling.LANCZOS), notes
    if crop == "pad":
        return _padded(image, size), [*notes, f"padded from {width}x{height}"]
    start = (long - short) // 2 if crop == "center" else _salient_start(image)
    box = (start, 0, start + short, short) if width > height else (0, start, short, start + short)
    if long > 2 * short:
        notes.append(f"crop keeps {100 * short // long}%")
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box), notes


def _around(mask: np.ndarray | None, image: Image.Image, size: int) -> tuple[int, int, int, int] | None:
    """Find the square (left, top, right, bottom) in pixels of which what `mask` shows fills `SUBJECT_SHARE` of a side,
    if there is anything.
    """
    box = None if mask is None else Image.fromarray(mask).getbbox()
    if mask is None or box is None:
        return None
    width, height = image.size
    across, down = width / mask.shape[1], height / mask.shape[0]
    left, top, right, bottom = (round(edge * scale) for edge, scale in zip(box, (across, down) * 2, strict=True))
    side = min(max(round(max(right - left, bottom - top) / SUBJECT_SHARE), size), width, height)
    x = min(max((left + right - side) // 2, 0), width - side)
    y = min(max((top + bottom - side) // 2, 0), height - side)
    return x, y, x + side, y + side


def _salient_start(image: Image.Image) -> int:
    """Find where the square with the most edges begins along the longer side, in pixels.

    Edges are gradients of the slightly blurred picture in CIE Lab, where equal steps look equal, so that a plain
    backdrop of whatever brightness weighs nothing. Squares near the middle count a little more. In cut-outs of the
    DreamBooth paper's photos with the subject off centre it kept the subject whole in 90 of 100, the middle in 69.
    """
    short, long = min(image.size), max(image.size)
    side = 64
    steps = max(side + 1, round(side * long / short))
    lying = image if image.width > image.height else image.transpose(Image.Transpose.TRANSPOSE)
    blurred = lying.resize((steps, side), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1))
    down, along = np.gradient(lab(np.asarray(blurred)), axis=(0, 1))  # (side, steps, 3) each
    energy = np.hypot(down, along).sum((0, 2))  # (steps,)
    scores = np.convolve(energy, np.ones(side), mode="valid")  # (steps - side + 1,)
    aside = np.abs(np.linspace(-1, 1, len(scores)))
    best = int(np.argmax(scores * (1 - 0.1 * aside)))
    return round(best / (steps - side) * (long - short))


def _padded(image: Image.Image, size: int) -> Image.Image:
    if image.height > image.width:
        return _padded(image.transpose(Image.Transpose.TRANSPOSE), size).transpose(Image.Transpose.TRANSPOSE)
    height = max(1, round(size * image.height / image.width))
    fitted = image.resize((size, height), Image.Resampling.LANCZOS)
    top = (size - height) // 2
    square = Image.new("RGB", (size, size))
    for edge, start, stop in ((0, 0, top), (height - 1, top + height, size)):
        line = fitted.crop((0, edge, size, edge + 1)).filter(ImageFilter.GaussianBlur(size / 16))
        if stop > start:
            square.paste(line.resize((size, stop - start)), (0, start))
    square.paste(fitted, (0, top))
    return square


def store_photos(photos: Sequence[Photo], folder: Path) -> list[Path]:
    """Write photos as they are trained on, losslessly: `00.png` and its captions `00.txt`, fit to be given as photos
    again; returns the former.

    Raises ExistsError if `folder` already holds something.
    """
    with atomic_folder(folder) as temporary:
        for index, photo in enumerate(photos):
            image = temporary / f"{index:02d}.png"
            Image.fromarray(photo.pixels).save(image)
            image.with_suffix(".txt").write_text(
                "\n".join(photo.captions).replace("{token}", SUBJECT) + "\n", encoding="utf-8"
            )
    return [folder / f"{index:02d}.png" for index in range(len(photos))]


def restore_photos(folder: Path) -> list[Photo]:
    """Read what `store_photos` wrote: same pixels, captions and order.

    Raises PhotoError naming what is missing or damaged.
    """
    paths, others = find_pictures([folder])
    numbered = {f"{index:02d}.png" for index in range(len(paths))} - {path.name for path in paths}
    lost = [one.path for one in others if one.path.suffix == ".png"] + [folder / name for name in sorted(numbered)]
    if lost:
        raise PhotoError(f"{lost[0]}: missing or damaged", "put it back, or start a new run")
    photos = [Photo(path, np.array(read_picture(path).image), own_captions(path), ()) for path in paths]
    for photo in photos:
        if not photo.captions:
            raise PhotoError(f"{photo.path.with_suffix('.txt')}: missing or empty", "put it back, or start a new run")
    if not photos:
        raise PhotoError(f"{folder}: holds no photo", "put its photos back, or start a new run")
    return photos


def _hash(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=np.float64)


def nearly_same(first: np.ndarray, second: np.ndarray) -> bool:
    """Tell whether two 16x16 thumbnails (0 to 255) differ by less than 15 % of their contrast, as after saving again or
    scaling.

    Relative to contrast, pale pictures of different things stay different; one grey level allows for noise. Different
    photos of one subject measure 40 % and more, one drawing in several poses on white 20 %.
    """
    contrast = max(first.std((0, 1)).max(), second.std((0, 1)).max())
    return bool(np.sqrt(np.mean((first - second) ** 2)) < 0.15 * contrast + 1)


def _row(
    path: Path,
    picture: Picture | None = None,
    reason: str | None = None,
    notes: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> dict[str, Any]:
    return {
        "file": stored(path),
        "width": picture.image.width if picture else None,
        "height": picture.image.height if picture else None,
        "format": picture.format if picture else None,
        "status": "skipped" if reason else "used",
        "notes": [reason] if reason else list(notes),
        "captions": list(captions),
    }


def _print_table(rows: Sequence[dict[str, Any]], title: str = "photos") -> None:
    names = Counter(Path(row["file"]).name for row in rows)
    cells = []
    for row in rows:
        name = Path(row["file"]).name
        size = f"{row['width']}x{row['height']}" if row["width"] else ""
        cells.append(
            [
                name if names[name] == 1 else row["file"],
                size,
                row["format"] or "",
                row["status"],
                "; ".join(row["notes"]),
            ]
        )
    used = sum(row["status"] == "used" for row in rows)
    events.table(
        f"{title}: {used} used, {len(rows) - used} skipped", ["file", ">size", "format", "status", "notes"], cells
    )
