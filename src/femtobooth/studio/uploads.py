"""What is sent here: pictures, decoded and written anew as PNG, and weights; under names made up here.

uploads/ID.png            the picture as it is used; ID.txt is its caption, ID.mask.png its mask
    ID.whole.png          before it was cropped
    ID.safetensors        weights
    ID.json               what is known of it, its sender's name for it among that
sets/ID/pictures.csv      paths and labels of several
    pictures/             the same as files, a folder for each label
"""

from __future__ import annotations

import csv
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel

from ..core.errors import first_line
from ..core.files import atomic_file, read_object, sha256_of, write_json, write_text
from ..core.names import shown
from ..pictures import formats, images, records
from .refusals import Missing, Refusal

MOST_BYTES = 32 * 2**20
"""Bytes of a picture's file."""
MOST_PIXELS = 50 * 10**6
LEAST_SIDE = 16
"""Pixels of a crop."""
COMMON = "give a JPEG, PNG, WebP or another common picture"
_ID = re.compile(r"[0-9a-f]{16}")


class Upload(BaseModel):
    """A picture or a file that was sent."""

    id: str
    kind: Literal["picture", "model"] = "picture"
    name: str
    """What its sender calls it; for people, no part of an address."""
    size: int
    """Bytes, as it came."""
    sha256: str
    """Of the bytes as they came."""
    width: int = 0
    height: int = 0
    format: str = ""
    """As it came, such as `JPEG CMYK`."""
    notes: list[str] = []
    """What was done to it."""
    generated: bool = False
    """Whether it says of itself that a model drew it."""
    caption: str | None = None
    mask: bool = False
    crop: tuple[int, int, int, int] | None = None
    """Left, top, width and height of what is used of it, in pixels; null for all."""
    added: datetime

    def in_settings(self) -> str:
        """Give what stands for it in settings."""
        return f"upload:{self.id}"


class PictureSet(BaseModel):
    """Several pictures, with labels or without."""

    id: str
    count: int
    labels: list[str]


class Uploads:
    """The folder of what was sent."""

    def __init__(self, private: Path) -> None:
        self.folder, self.sets, self.trash = private / "uploads", private / "sets", private / "trash"
        self._decoding = threading.Lock()  # so that many large pictures at once do not fill the memory
        for folder in (self.folder, self.sets, self.trash):
            folder.mkdir(parents=True, exist_ok=True)

    def listed(self) -> list[Upload]:
        """List what is here, the oldest first."""
        found = (self.get(path.stem) for path in self.folder.glob("*.json"))
        return sorted((one for one in found if one), key=lambda one: one.added)

    def get(self, upload_id: str) -> Upload | None:
        """Find one by its id."""
        if not _ID.fullmatch(upload_id):
            return None
        facts = read_object(self.folder / f"{upload_id}.json")
        if not facts:
            return None
        written = self.folder / f"{upload_id}.txt"  # by somebody here, or by a captioner
        caption = written.read_text(encoding="utf-8").strip() if written.is_file() else None
        return Upload.model_validate({**facts, "caption": caption or None})

    def found(self, upload_id: str) -> Upload:
        """Find one by its id. Raises Missing."""
        one = self.get(upload_id)
        if one is None:
            raise Missing("upload")
        return one

    def path(self, upload: Upload) -> Path:
        """Say where its file lies."""
        return self.folder / f"{upload.id}.{'png' if upload.kind == 'picture' else 'safetensors'}"

    def add_picture(self, file: Path, name: str) -> Upload:
        """Take a picture from a file: by its content, within limits, written anew. Raises Refusal."""
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise Refusal(f"larger than {MOST_BYTES >> 20} MiB", "save it smaller", 413)
        refuse_many_pixels(file)
        with self._decoding:
            found = images.decode(file)
            if isinstance(found, images.Skipped):
                raise Refusal(found.reason, COMMON, 422)
            if found.image.width * found.image.height > MOST_PIXELS:
                raise Refusal(_too_many(found.image.size), "save it smaller", 413)
            upload = Upload(
                id=secrets.token_hex(8),
                name=display_name(name),
                size=size,
                sha256=sha256_of(file),
                width=found.image.width,
                height=found.image.height,
                format=found.format,
                notes=[note for note in found.notes if not note.endswith("by content")],
                mask=found.alpha is not None,
                added=datetime.now(UTC),
            )
            record = records.read(file)
            upload.generated = record is not None
            chunks = PngInfo()
            if record is not None:  # what a model drew stays known as that
                chunks.add_text(records.CHUNK, json.dumps(record))
            with atomic_file(self.path(upload)) as temporary:
                found.image.save(temporary, format="PNG", pnginfo=chunks)
            if found.alpha is not None:
                with atomic_file(self._mask(upload)) as temporary:
                    found.alpha.save(temporary, format="PNG")
        return self._kept(upload)

    def add_model(self, file: Path, name: str) -> Upload:
        """Take the weights of a .safetensors file, which is moved here. Raises Refusal for any other kind."""
        import safetensors

        try:
            with safetensors.safe_open(file, "numpy") as opened:
                count = len(list(opened.keys()))
        except Exception as error:
            why = f"no .safetensors file ({first_line(error)})"
            raise Refusal(why, "give weights in that format; no pickle is read", 422) from None
        upload = Upload(
            id=secrets.token_hex(8),
            kind="model",
            name=display_name(name),
            size=file.stat().st_size,
            sha256=sha256_of(file),
            notes=[f"{count} tensors"],
            added=datetime.now(UTC),
        )
        os.replace(file, self.path(upload))
        return self._kept(upload)

    def caption(self, upload: Upload, text: str | None) -> Upload:
        """Set the caption of a picture; none where there is no text."""
        path = self.folder / f"{upload.id}.txt"
        text = " ".join((text or "").split()) or None
        if text:
            write_text(path, text + "\n")
        else:
            path.unlink(missing_ok=True)
        return self._kept(upload.model_copy(update={"caption": text}))

    def mask(self, upload: Upload, file: Path | None) -> Upload:
        """Set the mask of a picture, white where the subject is, or take it away. Raises Refusal."""
        if file is None:
            self._mask(upload).unlink(missing_ok=True)
            return self._kept(upload.model_copy(update={"mask": False}))
        refuse_many_pixels(file)
        with self._decoding:
            found = images.decode(file)
            if isinstance(found, images.Skipped):
                raise Refusal(found.reason, "give the mask as a PNG", 422)
            if found.image.size != (upload.width, upload.height):
                wanted = f"{upload.width}x{upload.height}"
                raise Refusal(
                    f"the mask has {found.image.width}x{found.image.height} pixels", f"its picture has {wanted}", 422
                )
            with atomic_file(self._mask(upload)) as temporary:
                (found.alpha or found.image.convert("L")).save(temporary, format="PNG")
        return self._kept(upload.model_copy(update={"mask": True}))

    def crop(self, upload: Upload, box: tuple[int, int, int, int] | None) -> Upload:
        """Use a part of a picture (left, top, width, height) in pixels of the whole, or all of it. Raises Refusal."""
        path, whole = self.path(upload), self.folder / f"{upload.id}.whole.png"
        mask, whole_mask = self._mask(upload), self.folder / f"{upload.id}.whole.mask.png"
        for part, kept in ((path, whole), (mask, whole_mask)):
            if part.exists() and not kept.exists():
                shutil.copyfile(part, kept)
        with self._decoding, Image.open(whole, formats=["PNG"]) as image:
            left, top, width, height = box or (0, 0, *image.size)
            beyond = left + width > image.width or top + height > image.height
            if min(left, top) < 0 or min(width, height) < LEAST_SIDE or beyond:
                raise Refusal(
                    f"the part is not inside {image.width}x{image.height} pixels", f"at least {LEAST_SIDE} a side", 422
                )
            area = (left, top, left + width, top + height)
            for kept, part in ((whole, path), (whole_mask, mask)):
                if kept.exists():
                    chunks = PngInfo()
                    with Image.open(kept, formats=["PNG"]) as one, atomic_file(part) as temporary:
                        if record := getattr(one, "text", {}).get(records.CHUNK):
                            chunks.add_text(records.CHUNK, record)
                        one.crop(area).save(temporary, format="PNG", pnginfo=chunks)
        return self._kept(upload.model_copy(update={"crop": box, "width": width, "height": height}))

    def remove(self, upload: Upload, for_good: bool = False) -> None:
        """Move it to the trash, or take it away where it was only passing through."""
        for path in sorted(self.folder.glob(f"{upload.id}.*"), key=lambda path: path.suffix != ".json"):
            if for_good:
                path.unlink()
            else:
                path.rename(self.trash / path.name)

    # --- sets

    def add_set(self, items: Sequence[tuple[Upload, str | None]]) -> PictureSet:
        """Put pictures together, each with its label or none."""
        made = secrets.token_hex(8)
        folder = self.sets / made
        labels = list(dict.fromkeys(label for _, label in items if label))
        lines = []
        for number, (upload, label) in enumerate(items):
            inside = folder / "pictures" / (f"{labels.index(label):03d}" if label else "")
            inside.mkdir(parents=True, exist_ok=True)
            place = inside / f"{number:05d}.png"
            shutil.copyfile(self.path(upload), place)
            lines.append((place.relative_to(folder).as_posix(), label or ""))
        text = StringIO()
        csv.writer(text).writerows([("path", "label"), *lines])
        write_text(folder / "pictures.csv", text.getvalue())
        write_json(folder / "set.json", {"count": len(items), "labels": labels})
        return PictureSet(id=made, count=len(items), labels=labels)

    def set_path(self, set_id: str, setting: str) -> Path | None:
        """Say where a set lies: the list with labels for a setting that takes one, else its folder."""
        folder = self.sets / set_id
        if not _ID.fullmatch(set_id) or not folder.is_dir():
            return None
        labelled = bool(read_object(folder / "set.json").get("labels"))
        return folder / ("pictures.csv" if labelled and setting == "data" else "pictures")

    def _mask(self, upload: Upload) -> Path:
        return self.folder / f"{upload.id}.mask.png"

    def _kept(self, upload: Upload) -> Upload:
        write_json(self.folder / f"{upload.id}.json", upload.model_dump(mode="json"))
        return upload


def display_name(name: str) -> str:
    """Make what a person sees of a name that came over a network: its last part, short, of one line."""
    return shown(re.split(r"[/\\]", name)[-1].strip())[:120] or "picture"


def refuse_many_pixels(file: Path) -> None:
    """Raise Refusal for a file whose header promises more pixels than are taken, before any is decoded."""
    with file.open("rb") as opened:
        start = opened.read(formats.START)
    try:
        kind = formats.identify(start, ".png")
        with Image.open(file, formats=[kind, *(["MPO"] if kind == "JPEG" else [])]) as image:
            size = image.size
    except formats.Unusable as reason:
        raise Refusal(str(reason).removesuffix(", though named .png"), COMMON, 422) from None
    except Image.DecompressionBombError:
        raise Refusal("far too many pixels", "save it smaller", 413) from None
    except Exception:  # its decoder will say what is wrong, or read it in another way
        return
    if size[0] * size[1] > MOST_PIXELS:
        raise Refusal(_too_many(size), "save it smaller", 413)


def _too_many(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels are more than {MOST_PIXELS // 10**6} million"


def described(upload: Upload) -> dict[str, Any]:
    """Tell what is known of it, with what stands for it in settings and where it is shown."""
    known = upload.model_dump(mode="json")
    return {**known, "reference": upload.in_settings(), "url": f"/api/v1/uploads/{upload.id}/file"}
