"""Subject photos: checked, cropped to squares, captioned; and the table that says what became of each file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..core import console
from ..core.errors import PhotoError
from ..core.images import Picture, Skipped, decode, find_pictures, read_picture, shown
from ..core.runs import atomic_file, write_json
from ..core.runs import atomic_folder
from .settings import PhotoSettings

LEAST_SIDE = 64  # pixels; below, there is nothing to learn a subject from
FEW = 3
SUBJECT = "[V]"  # stands for the token in captions and prompts

# True of any photo of the subject: nothing about light, framing or style that a given photo may not show.
_VARIED = (
    "a photo of a {token} {class}",
    "a {token} {class}",
    "a picture of a {token} {class}",
    "an image of a {token} {class}",
    "a photograph of a {token} {class}",
    "a photo of the {token} {class}",
    "a photo of one {token} {class}",
    "a photo of my {token} {class}",
    "a photo of this {token} {class}",
    "a snapshot of a {token} {class}",
    "the {token} {class}",
    "my {token} {class}",
    "one {token} {class}",
    "this is a {token} {class}",
    "a picture of the {token} {class}",
    "a picture of my {token} {class}",
    "a picture of one {token} {class}",
    "an image of the {token} {class}",
    "a photo showing a {token} {class}",
    "a picture showing the {token} {class}",
)
CAPTIONS = {"plain": ("a {token} {class}",), "photo": ("a photo of a {token} {class}",), "varied": _VARIED}


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo as it is trained on."""

    path: Path
    pixels: np.ndarray
    """(size, size, 3), uint8 sRGB."""
    caption: str
    """A template: `{token}` and `{class}` are still to be filled in (`fill_caption`)."""
    notes: tuple[str, ...]
    """What was done to the picture, in words."""


def fill_caption(template: str, token: str, class_noun: str) -> str:
    """A caption template with the subject's word and class; other braces stay as they are."""
    return template.replace("{token}", token).replace("{class}", class_noun)


def load_photos(settings: PhotoSettings, size: int) -> tuple[list[Photo], list[dict[str, Any]]]:
    """Find, check, crop and caption the subject's photos, and print the preflight table.

    Returns the photos and the table as data, a row for each file found: file, width, height, format, status (`used`
    or `skipped`), notes (with the reason), caption. Exact duplicates are skipped; near-duplicates stay, with a
    warning, since a burst may be meant. Fewer than three photos warn. Raises PhotoError for none at all, for a
    path that does not exist, and for a caption that is not UTF-8.
    """
    paths, skipped = find_pictures(settings.paths)
    photos: list[Photo] = []
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    same: dict[str, Path] = {}
    thumbnails: dict[Path, np.ndarray] = {}
    captioned = {caption_file(path) for path in paths}
    styles = CAPTIONS[settings.captions]
    for path in paths:
        picture = decode(path)
        if isinstance(picture, Skipped):
            rows.append(_row(path, reason=picture.reason))
            continue
        image, pixels = picture.image, _hash(picture.image)
        if min(image.size) < LEAST_SIDE:
            rows.append(_row(path, picture, reason=f"too small: needs {LEAST_SIDE} px each way"))
            continue
        if pixels in same:
            rows.append(_row(path, picture, reason=f"same pixels as {shown(same[pixels].name)}"))
            continue
        same[pixels] = path
        notes = [*picture.notes]
        thumbnail = _thumbnail(image)
        twins = [other for other, known in thumbnails.items() if nearly_same(thumbnail, known)]
        thumbnails[path] = thumbnail
        if twins:
            notes.append(f"nearly the same as {shown(twins[0].name)}")
            warnings.append(f"{shown(path.name)} is nearly the same as {shown(twins[0].name)}; varied photos teach more")
        square, done = make_square(image, size, settings.crop)
        notes += done
        caption = _own_caption(path)
        if caption:
            notes.append("own caption" if "{token}" in caption else f"own caption, without {SUBJECT}")
        caption = caption or styles[len(photos) % len(styles)]
        photos.append(Photo(path, np.asarray(square), caption, tuple(notes)))
        rows.append(_row(path, picture, notes=notes, caption=caption))
    rows += [_row(left.path, reason=left.reason) for left in skipped if left.path not in captioned]
    _print_table(rows)
    if not photos:
        where = ", ".join(map(shown, settings.paths))
        raise PhotoError(f"no usable photo in {where}", "give 3 to 5 JPEG, PNG or WebP photos of the subject")
    enlarged = [shown(photo.path.name) for photo in photos if any(note.startswith("enlarged") for note in photo.notes)]
    if enlarged:
        warnings.append(f"smaller than {size} px and enlarged, which blurs them: {', '.join(enlarged)}")
    if len(photos) < FEW:
        count = "1 usable photo" if len(photos) == 1 else f"{len(photos)} usable photos"
        warnings.append(f"only {count}; 3 to 5 varied ones keep the subject apart from its background")
    for warning in warnings:
        console.warn(warning)
    return photos, rows


def make_square(image: Image.Image, size: int, crop: str) -> tuple[Image.Image, list[str]]:
    """An RGB picture as a size x size square, never squashed, and what was done to it.

    `center` and `smart` cut the largest square; `pad` shows the whole picture and continues its borders out of
    focus: unlike bars of one colour, they hold no edge that the model would learn as part of the subject.
    """
    width, height = image.size
    short, long = sorted(image.size)
    scale = size / (long if crop == "pad" else short)
    notes = [f"enlarged x{scale:.2g}"] if scale > 1 else []
    if short == long:
        return image.resize((size, size), Image.Resampling.LANCZOS), notes
    if crop == "pad":
        return _padded(image, size), [*notes, f"padded from {width}x{height}"]
    start = _salient_start(image) if crop == "smart" else (long - short) // 2
    box = (start, 0, start + short, short) if width > height else (0, start, short, start + short)
    if long > 2 * short:
        notes.append(f"crop keeps {100 * short // long}%")
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box), notes


def _salient_start(image: Image.Image) -> int:
    """Where the most salient square begins along the longer side, in pixels.

    Saliency is the distance of a blurred pixel from the mean colour in Lab (Achanta et al. 2009, Frequency-tuned
    Salient Region Detection, eq. 4) times local contrast, so that neither an even sky nor fine texture wins alone.
    Energy counts most in the middle of the window, so that the subject is centred in it and not just inside it.
    """
    short, long = min(image.size), max(image.size)
    side = 64
    steps = max(side + 1, round(side * long / short))
    wide = image if image.width > image.height else image.transpose(Image.Transpose.TRANSPOSE)
    small = wide.resize((steps, side), Image.Resampling.BOX)
    lab = _lab(small.filter(ImageFilter.GaussianBlur(1)))  # (side, steps, 3)
    colour = np.linalg.norm(lab - lab.mean((0, 1)), axis=2)
    contrast = np.linalg.norm(lab - _lab(small.filter(ImageFilter.GaussianBlur(6))), axis=2)
    energy = (colour * contrast).sum(0)  # (steps,)
    offset = (np.arange(side) + 0.5) / side * 2 - 1
    scores = np.correlate(energy, 1 - offset**2, mode="valid")  # (steps - side + 1,)
    middle = np.abs(np.linspace(-1, 1, len(scores)))
    best = int(np.argmax(scores * (1 - 0.15 * middle) - 1e-9 * middle))  # photographers centre; ties go there
    return round(best / (steps - side) * (long - short))


def _lab(image: Image.Image) -> np.ndarray:
    """RGB to CIE Lab (D65, float)."""
    rgb = np.asarray(image, dtype=np.float64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ (to_xyz / to_xyz.sum(1, keepdims=True)).T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _padded(image: Image.Image, size: int) -> Image.Image:
    long = max(image.size)
    width, height = (max(1, round(side * size / long)) for side in image.size)
    fitted = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (size - width) // 2, (size - height) // 2
    border = ((top, size - height - top), (left, size - width - left), (0, 0))
    square = Image.fromarray(np.pad(np.asarray(fitted), border, mode="edge")).filter(ImageFilter.GaussianBlur(size / 32))
    square.paste(fitted, (left, top))
    return square


def caption_file(path: Path) -> Path:
    """Where a photo's own caption lies: `name.txt` beside `name.jpg`."""
    return path.with_suffix(".txt")


def store_photos(photos: Sequence[Photo], folder: Path) -> None:
    """Write photos as they are trained on, losslessly: `00.png` and its caption `00.txt`, fit to be given as photos again.

    Raises ExistsError if `folder` already holds something.
    """
    with atomic_folder(folder) as temporary:
        for index, photo in enumerate(photos):
            image = temporary / f"{index:02d}.png"
            Image.fromarray(photo.pixels).save(image)
            caption_file(image).write_text(photo.caption.replace("{token}", SUBJECT) + "\n", encoding="utf-8")


def restore_photos(folder: Path) -> list[Photo]:
    """What `store_photos` wrote: same pixels, captions and order. Raises PhotoError naming what is missing or damaged."""
    paths, _ = find_pictures([folder])
    photos = [Photo(path, np.asarray(read_picture(path).image), _own_caption(path) or "", ()) for path in paths]
    for photo in photos:
        if not photo.caption:
            raise PhotoError(f"{shown(caption_file(photo.path))}: missing or empty", "put it back, or start a new run")
    if not photos:
        raise PhotoError(f"{shown(folder)}: holds no photo", "put its photos back, or start a new run")
    return photos


def _own_caption(path: Path) -> str | None:
    file = caption_file(path)
    if not file.is_file():
        return None
    try:
        text = " ".join(file.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise PhotoError(f"{shown(file)}: the caption cannot be read ({error})", "save it as UTF-8 text, or remove it") from None
    return text.replace(SUBJECT, "{token}") or None


def _hash(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=np.float64)


def nearly_same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two 16x16 thumbnails (0 to 255) differ by less than a quarter of their contrast.

    Relative to contrast, two pale pictures of different things stay different; and one grey level for noise.
    """
    contrast = max(first.std((0, 1)).max(), second.std((0, 1)).max())
    return bool(np.sqrt(np.mean((first - second) ** 2)) < 0.25 * contrast + 1)


def _row(
    path: Path, picture: Picture | None = None, reason: str | None = None, notes: Sequence[str] = (), caption: str | None = None
) -> dict[str, Any]:
    return {
        "file": shown(path),
        "width": picture.image.width if picture else None,
        "height": picture.image.height if picture else None,
        "format": picture.format if picture else None,
        "status": "skipped" if reason else "used",
        "notes": [reason] if reason else list(notes),
        "caption": caption,
    }


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    names = Counter(Path(row["file"]).name for row in rows)
    cells = []
    for row in rows:
        name = Path(row["file"]).name
        size = f"{row['width']}x{row['height']}" if row["width"] else ""
        cells.append([name if names[name] == 1 else row["file"], size, row["format"] or "", row["status"], "; ".join(row["notes"])])
    used = sum(row["status"] == "used" for row in rows)
    console.table(f"photos: {used} used, {len(rows) - used} skipped", ["file", ">size", "format", "status", "notes"], cells)


def store_photos(photos: Sequence[Photo], folder: Path) -> None:
    """Keep the photos as they are trained on, losslessly, so that a run can go on without the originals."""
    listed = []
    for index, photo in enumerate(photos):
        name = f"{index:02d}.png"
        with atomic_file(folder / name) as temporary:
            Image.fromarray(photo.image).save(temporary, format="PNG")
        listed.append({"file": name, "path": shown(photo.path), "captions": list(photo.captions)})
    write_json(folder / "photos.json", listed)


def restore_photos(folder: Path) -> list[Photo]:
    """The photos that `store_photos` kept. Raises PhotoError where something is missing or damaged."""
    try:
        listed = json.loads((folder / "photos.json").read_text(encoding="utf-8"))
        return [Photo(Path(one["path"]), np.asarray(Image.open(folder / one["file"])), tuple(one["captions"])) for one in listed]
    except (OSError, ValueError, KeyError) as error:
        raise PhotoError(f"{folder}: the run's photos cannot be read ({error})", "start a new run from the original photos") from None
