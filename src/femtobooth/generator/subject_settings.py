"""Settings of `personalize` that say what the subjects are: photos, their captions, the words that stand for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..core.config import Settings
from ..core.errors import PhotoError, SettingsError, shortened
from ..core.fields import Argument, Flag
from ..core.paths import existing, expanded
from .prompts import ONLY

AUTO = "auto"
"""In place of an identifier: the base chooses."""


class PhotoSettings(Settings):
    paths: Annotated[list[str], Argument("*", names="file", needed=True, unless="subjects")]
    """Photo files or folders of the subject; 3 to 5 pictures are best."""
    class_noun: Annotated[str, Flag("--class-noun", common=True)]
    """What the subject is, in one or two words: dog, toy, backpack."""
    crop: Annotated[Literal["center", "smart", "pad", "subject"], Flag("--crop")] = "smart"
    """How a picture becomes square, or what its bucket asks for: its middle, its most detailed part, whole with padded
    borders, or close around the subject.
    """
    shapes: Annotated[Literal["square", "buckets"], Flag("--shapes")] = "square"
    """What photos become: square, or each the aspect-ratio bucket that keeps most of it, of at most the square's area.
    """
    max_aspect: Annotated[float, Flag("--max-aspect", unit="ratio")] = Field(2.0, gt=1, le=4)
    """The longest bucket: longer over shorter side; what is longer is cropped."""
    mask: Annotated[Literal["auto", "alpha", "files", "none"], Flag("--mask")] = "auto"
    """What says which part of a photo counts: files is name.mask.png beside it or masks/name.png, alpha its
    transparency, auto whichever there is, files first.
    """
    mask_model: Annotated[str | None, Flag("--mask-model", names="file")] = None
    """ONNX file of a segmentation model (U2-Net, BiRefNet and the like) that makes the masks of photos without any."""
    flip: Annotated[bool, Flag("--flip")] = False
    """Also train on mirrored photos; leave off for subjects with text."""
    captions: Annotated[Literal["plain", "photo", "varied"], Flag("--captions")] = "photo"
    """Caption of a photo without its own beside it (photo.txt, photo.caption or photo.jpg.txt): plain is "a [V] dog",
    photo is "a photo of a [V] dog", varied is one of twenty.
    """
    caption_dropout: Annotated[float, Flag("--caption-dropout", unit="share")] = Field(0.0, ge=0, lt=1)
    """Share of the times that a photo is seen without its caption, as guidance draws without a prompt; 0.05 to 0.1 is
    usual.
    """
    shuffle_tags: Annotated[bool, Flag("--shuffle-tags")] = False
    """Show the tags of a caption, which commas separate, in another order each time."""
    keep_tags: Annotated[int, Flag("--keep-tags", unit="tags")] = Field(1, ge=0)
    """Tags at the beginning of a caption that keep their place."""
    hold_out: Annotated[int, Flag("--hold-out", unit="photos")] = Field(0, ge=0)
    """Photos kept out of training to score against: the last ones by name, passing over near-copies of another photo.
    """

    def without_effect(self) -> dict[str, str]:
        """Name the tags to keep, where none moves, and the model that makes masks, where none are made."""
        idle = {} if self.shuffle_tags else dict.fromkeys({"keep_tags"} & self.model_fields_set, "without shuffle_tags")
        if self.shapes == "square":
            idle |= dict.fromkeys({"max_aspect"} & self.model_fields_set, "without shapes=buckets")
        if self.mask_model and self.mask != "auto":
            idle["mask_model"] = f"with `photos.mask={self.mask}`"
        return idle


class IdentifierSettings(Settings):
    token: Annotated[str, Flag("--token")] = Field("sks")
    """Rare word that will stand for the subject, such as sks, or `auto` to let the base choose one."""

    @field_validator("token")
    @classmethod
    def _one_word(cls, token: str) -> str:
        return one_word(token)


def one_word(token: str) -> str:
    """Give back what can be an identifier. Raises ValueError."""
    if not token.strip() or re.search(r"[\s\[\]{}]", token):
        raise ValueError(f"{shortened(repr(token))} is not one word without spaces or brackets")
    return token


class SubjectSettings(Settings):
    """One of several subjects: in a file also as the text PATH:NOUN."""

    paths: Annotated[list[str], Flag(names="file")] = Field(min_length=1)
    """Photo files or folders of this subject."""
    class_noun: str = Field(min_length=1)
    """What it is, in one or two words."""
    token: str = AUTO
    """Rare word that will stand for it; `auto` lets the base choose one far from those of the others."""
    repeats: int = Field(1, ge=1)
    """How often each of its photos is seen, where others are seen once."""

    @classmethod
    def of_text(cls, text: str) -> dict[str, Any]:
        """Read PATH:NOUN. Raises SettingsError where there is no noun."""
        path, colon, noun = text.rpartition(":")
        if not colon or not path.strip() or not noun.strip() or re.search(r"[/\\]", noun):
            raise SettingsError(
                f"`subjects`: {shortened(repr(text))} does not say what the subject is",
                "PATH:NOUN, such as rex=photos/rex:dog",
            )
        return {"paths": [path], "class_noun": noun.strip()}

    @model_validator(mode="before")
    @classmethod
    def _as_text(cls, given: Any) -> Any:
        try:
            return cls.of_text(given) if isinstance(given, str) else given
        except SettingsError as error:
            raise ValueError(f"{error.problem.removeprefix('`subjects`: ')}: {error.way_out}") from None

    @field_validator("token")
    @classmethod
    def _one_word(cls, token: str) -> str:
        return one_word(token)


def empty_faults(photos: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the faults of photos of one subject that are given as none, and of a noun without letters."""
    short = {"field_type": "List", "min_length": 1, "actual_length": 0}
    none = {"type": "too_short", "loc": ("paths",), "input": [], "ctx": short}
    unnamed = {"type": "string_too_short", "loc": ("class_noun",), "input": "", "ctx": {"min_length": 1}}
    return [*([none] if photos.get("paths") == [] else []), *([unnamed] if photos.get("class_noun") == "" else [])]


def without_parents(photos: Mapping[str, Any], subjects: Any) -> dict[str, Any]:
    """Give photos without paths of folders that hold those of all subjects, as kohya's do."""
    paths = photos.get("paths")
    if not isinstance(paths, list) or not isinstance(subjects, Mapping):
        return dict(photos)
    inside = [one.get("paths") for one in subjects.values() if isinstance(one, Mapping)]
    parents = {str(Path(path).parent) for some in inside if isinstance(some, list) for path in map(str, some)}
    whole = paths and {str(expanded(str(path))) for path in paths} == parents
    return {name: value for name, value in photos.items() if name != "paths" or not whole}


def plain_names(subjects: Mapping[str, SubjectSettings]) -> None:
    """Raise ValueError for names of subjects that are no plain words or that prompts could not tell apart, and for
    equal identifiers.
    """
    for name in subjects:
        if not re.fullmatch(r"[^\W\d_][\w-]{0,31}", name) or name.casefold() == ONLY.casefold():
            raise ValueError(
                f"{shortened(repr(name))} is no name: a word of letters, digits, _ and - that begins with a letter"
                + (", other than V" if len(name) == 1 else "")
            )
    for what, given in (("name", list(subjects)), ("token", [one.token for one in subjects.values()])):
        words = [word.casefold() for word in given if (what, word) != ("token", AUTO)]
        if twice := next((word for word in words if words.count(word) > 1), None):
            raise ValueError(f"two subjects with the {what} {shortened(twice)}")


def refuse_missing_photos(subjects: Mapping[str, SubjectSettings]) -> None:
    """Raise PhotoError for a path of a subject that is not there."""
    for name, one in subjects.items():
        for path in one.paths:
            if not existing(path):
                raise PhotoError(f"{shortened(path, 200)}: no such file or folder", f"check the path of {name}")


def implied_by_folders(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the settings that kohya's folders say in their names and `given` does not.

    Raises SettingsError where that is not what is given.
    """
    photos, identifier = given.get("photos"), given.get("identifier", {})
    if not isinstance(photos, Mapping) or not isinstance(identifier, Mapping):  # which validation names
        return {}
    paths = photos.get("paths")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        return {}
    from . import kohya_folders

    if not given.get("subjects") and (subjects := kohya_folders.several(paths)):
        return {"subjects": subjects}
    found = kohya_folders.implied(paths, identifier.get("token"), photos.get("class_noun"))
    token = {"identifier": {"token": found["token"]}} if "token" in found else {}
    return token | ({"photos": {"class_noun": found["class_noun"]}} if "class_noun" in found else {})
