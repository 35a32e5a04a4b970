"""Subject photos: checked, cropped to squares or to aspect-ratio buckets, captioned; and those kept out of training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core import events
from ..core.errors import PhotoError
from ..core.names import shown
from ..pictures.crops import Placement, Shape, placement
from ..pictures.framing import Framing
from ..pictures.images import Picture, Skipped, decode, find_pictures
from ..pictures.masks import HALF, is_mask_folder, without_masks
from .captions import STYLES, captions_of, class_captions
from .kohya_folders import read_layout
from .mask_model import MaskModel
from .photo_masks import covered, doubtful_masks, mask_of, unused_masks
from .preflight import file_row, print_table
from .subject_crops import MIN_SIDE_PIXELS, doubtful_crops, subjects_of
from .subject_settings import PhotoSettings

MIN_PHOTOS = 3  # below, there is a warning


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo as it is trained on."""

    path: Path
    pixels: np.ndarray
    """(height, width, 3), uint8 sRGB; both the size, but in buckets."""
    captions: tuple[str, ...]
    """Templates, one of which is drawn at each visit: `{token}` and `{class}` are still to be filled in."""
    notes: tuple[str, ...]
    """What was done to the picture, in words."""
    own: bool = False
    """Whether the captions are its own: beside it, or in its folder's metadata file."""
    repeats: int = 1
    """How often it is seen in one pass over all photos."""
    mask: np.ndarray | None = None
    """(height, width), uint8: 255 where all of it counts; None where nothing but the photo was given."""
    framing: Framing | None = None
    """How it was framed; None where that is not known."""

    @property
    def shape(self) -> Shape:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def load_photos(
    settings: PhotoSettings, size: int, shapes: Sequence[Shape] = (), title: str = "photos"
) -> tuple[list[Photo], list[dict[str, Any]]]:
    """Find, check, crop and caption the subject's photos, and print the preflight table under this title.

    They become squares of `size` pixels, or each the one of `shapes` in which its crop loses least.

    Returns the photos and the table as data, a row for each file found: file, width, height, format, status (`used`
    or `skipped`), notes (with the reason), captions. Exact duplicates are skipped; near-duplicates stay, with a
    warning, since a burst may be meant. Fewer than three photos warn, and masks that cover next to nothing or leave
    next to nothing out. Raises PhotoError for none at all, for a path that does not exist, for captions that cannot be
    read, and for a mask that does not fit its photo.
    """
    repeats = read_layout(settings.paths).repeats()
    found, skipped = find_pictures(repeats)
    paths = without_masks(found)
    masker = MaskModel(settings.mask_model) if settings.mask_model else None
    photos: list[Photo] = []
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    same: dict[str, Path] = {}
    thumbnails: dict[Path, np.ndarray] = {}
    captions = captions_of(paths)
    styles = STYLES[settings.captions]
    subjects = subjects_of(paths) if settings.crop == "subject" else {}
    for path in paths:
        picture = decode(path)
        if isinstance(picture, Skipped):
            rows.append(file_row(path, reason=picture.reason))
            continue
        image, pixels = picture.image, _hash(picture.image)
        if min(image.size) < MIN_SIDE_PIXELS:
            rows.append(file_row(path, picture, reason=f"too small: needs {MIN_SIDE_PIXELS} px each way"))
            continue
        if pixels in same:
            rows.append(file_row(path, picture, reason=f"same pixels as {shown(same[pixels].name)}"))
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
        subject = subjects[path].mask if path in subjects else None
        square, mask, framing, done = _placed(picture, settings, shapes or size, masker, subject)
        notes += done
        own = captions.texts[path]
        notes += captions.note(path)
        often = repeats.get(path.parent, 1)
        photos.append(Photo(path, square, own or styles, tuple(notes), bool(own), often, mask, framing))
        rows.append(file_row(path, picture, notes=notes, captions=own or styles))
    rows += unused_masks(paths, set(found) - set(paths), settings)
    others = [left for left in skipped if left.path not in captions.files and not is_mask_folder(left.path)]
    rows += [file_row(left.path, reason=left.reason) for left in others]
    print_table(rows, title)
    if not photos:
        where = ", ".join(map(shown, settings.paths))
        raise PhotoError(f"no usable photo in {where}", "give 3 to 5 JPEG, PNG or WebP photos of the subject")
    warnings += _doubts(photos, size)
    found_crops = [photo.path for photo in photos if photo.mask is None]
    for warning in [*captions.problems, *warnings, *doubtful_crops(found_crops, subjects)]:
        events.warn(warning)
    return photos, rows


def _placed(
    picture: Picture,
    settings: PhotoSettings,
    size: int | Sequence[Shape],
    masker: MaskModel | None,
    subject: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None, Framing, list[str]]:
    """Crop a photo and its mask, and say how and what was done; `subject` is what was found, where it has no mask."""
    mask, source = mask_of(picture, settings, masker) or (None, "")
    place = placement(picture.image, size, settings.crop, subject if mask is None else mask >= HALF)
    pixels = np.array(place.picture(picture.image))
    notes = [*([] if isinstance(size, int) else [_bucket(place, picture.image)]), *place.notes]
    framing = Framing.of(picture.image.size, place)
    if mask is None:
        return pixels, None, framing, notes
    placed = place.mask(mask)
    return pixels, placed, framing, [*notes, f"{source}, {covered(placed):.0%}"]


def _bucket(place: Placement, image: Image.Image) -> str:
    """Say which bucket a picture is in, and what that keeps of it, unless a crop around the subject says so."""
    width, height = place.shape
    return f"bucket {width}x{height}" + ("" if place.cut else f" keeps {place.kept(image):.0%}")


def _doubts(photos: Sequence[Photo], size: int) -> list[str]:
    """List warnings of photos that are few or small, and of their masks."""
    warnings = []
    enlarged = [shown(photo.path.name) for photo in photos if any(note.startswith("enlarged") for note in photo.notes)]
    if enlarged:
        what = f"{size} px" if all(photo.shape == (size, size) for photo in photos) else "their bucket"
        warnings.append(f"smaller than {what} and enlarged, which blurs them: {', '.join(enlarged)}")
    if len(photos) < MIN_PHOTOS:
        count = "1 usable photo" if len(photos) == 1 else f"{len(photos)} usable photos"
        warnings.append(f"only {count}; 3 to 5 varied ones keep the subject apart from its background")
    return warnings + doubtful_masks([(photo.path, photo.mask) for photo in photos if photo.mask is not None])


def load_class_images(folder: str, size: int | Mapping[Shape, int]) -> list[Photo]:
    """Load one's own class images, as `load_photos` but for what is asked of photos of a subject.

    Where `size` is counts of shapes, they are cropped to those, in that proportion, and each shape has one at least.
    Raises PhotoError.
    """
    pictures, skipped = find_pictures([folder])
    paths = without_masks(pictures)
    captions = class_captions(paths)
    found, rows = [], [file_row(left.path, reason=left.reason) for left in skipped if left.path not in captions.files]
    shapes = {} if isinstance(size, int) else _shapes_in_proportion(folder, paths, size)
    for path in paths:
        picture = decode(path)
        if isinstance(picture, Skipped):
            rows.append(file_row(path, reason=picture.reason))
            continue
        place = placement(picture.image, size if isinstance(size, int) else [shapes[path]], "center")
        bucket = [] if isinstance(size, int) else [_bucket(place, picture.image)]
        own = captions.texts[path]
        notes = [*picture.notes, *bucket, *place.notes, *["own caption"] * bool(own)]
        pixels, framing = np.array(place.picture(picture.image)), Framing.of(picture.image.size, place)
        found.append(Photo(path, pixels, own, tuple(notes), bool(own), framing=framing))
        rows.append(file_row(path, picture, notes=notes, captions=own))
    print_table(rows, "class images")
    for problem in captions.problems:
        events.warn(problem)
    if not found:
        raise PhotoError(
            f"`prior.folder={folder}`: no usable picture in it", "leave it out to have class images generated"
        )
    return found


def _shapes_in_proportion(folder: str, paths: Sequence[Path], counts: Mapping[Shape, int]) -> dict[Path, Shape]:
    """Give each picture a shape, so that shapes are as common as in `counts`, and crops lose as little as that allows:
    the widest pictures have the widest shapes.

    Raises PhotoError for fewer pictures than shapes.
    """
    decoded = ((path, decode(path)) for path in paths)
    aspects = {path: one.image.width / one.image.height for path, one in decoded if isinstance(one, Picture)}
    if len(aspects) < len(counts):
        raise PhotoError(
            f"`prior.folder={folder}`: {len(aspects)} pictures for the {len(counts)} shapes that the photos have",
            f"put {len(counts)} there at least, or leave out `photos.shapes`",
        )
    often = in_proportion(counts, len(aspects))
    wide = sorted(counts, key=lambda shape: shape[0] / shape[1])
    return dict(
        zip(
            sorted(aspects, key=aspects.__getitem__),
            (shape for shape in wide for _ in range(often[shape])),
            strict=True,
        )
    )


def in_proportion(counts: Mapping[Shape, int], total: int) -> dict[Shape, int]:
    """Share out `total` things among shapes in the proportion of `counts`: one each, then each next one to the shape
    that has the least for its count.
    """
    found = dict.fromkeys(counts, 1)
    for _ in range(total - len(counts)):
        found[min(counts, key=lambda shape: found[shape] / counts[shape])] += 1
    return found


def shape_counts(photos: Sequence[Photo]) -> dict[Shape, int]:
    """Count the visits to photos of each shape in one pass over all photos; in the same order, whatever theirs."""
    return {
        shape: sum(photo.repeats for photo in photos if photo.shape == shape)
        for shape in sorted({photo.shape for photo in photos})
    }


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
