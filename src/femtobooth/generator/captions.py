"""Captions: where a photo's own ones lie, what stands in for them, and how they fit what a text encoder reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core import events
from ..core.errors import PhotoError
from .metadata import FILES as METADATA
from .metadata import metadata_files, named, read_metadata
from .prompts import SUBJECT, Reader, filled, with_subject

ENDINGS = (".txt", ".caption")
"""Of caption files: `photo.txt` or `photo.jpg.txt`, in either case."""
MAX_NAMED_PHOTOS = 3  # photos that one warning names

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
STYLES = {"plain": ("a {token} {class}",), "photo": ("a photo of a {token} {class}",), "varied": _VARIED}


def caption_files(photo: Path) -> list[Path]:
    """List the files that hold a photo's own captions, one a line; the first is read."""
    found: list[Path] = []
    for ending in ENDINGS:
        for path in (
            photo.with_suffix(ending),
            photo.with_suffix(ending.upper()),
            photo.with_name(photo.name + ending),
        ):
            if path != photo and path.is_file() and not any(path.samefile(other) for other in found):
                found.append(path)
    return found


def own_captions(photo: Path) -> tuple[str, ...]:
    """Read a photo's own captions as templates, {token} for the subject; () where it has none. Raises PhotoError."""
    texts = {file: _lines(file) for file in caption_files(photo)}
    if len(set(texts.values())) > 1:
        first, *others = texts
        events.warn(
            f"{photo.name} has several captions: {first.name} is used, "
            f"{', '.join(other.name for other in others)} is not"
        )
    return next(iter(texts.values()), ())


def _lines(file: Path) -> tuple[str, ...]:
    try:
        lines = [" ".join(line.split()) for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PhotoError(
            f"{file}: the caption cannot be read ({error})", "save it as UTF-8 text, or remove it"
        ) from None
    return tuple(with_subject(line, "{token}") for line in lines if line)


@dataclass(frozen=True)
class Captions:
    """The own captions of some pictures."""

    texts: dict[Path, tuple[str, ...]]
    """Templates, {token} for the subject; () where a picture has none."""
    sources: dict[Path, Path]
    """The file that they stand in, of the pictures that have some."""
    files: set[Path]
    """Every file that holds captions, read or not."""
    problems: list[str]
    """What a person should know of them."""

    def note(self, picture: Path) -> list[str]:
        """Say where a picture's captions are from, if it has some."""
        if not self.texts[picture]:
            return []
        source = self.sources[picture].name
        where = f"caption from {source}" if source in METADATA else "own caption"
        return [where if all("{token}" in text for text in self.texts[picture]) else f"{where}, without {SUBJECT}"]


def captions_of(pictures: Sequence[Path]) -> Captions:
    """Read the own captions of pictures: in files beside them, else in the `metadata.jsonl` or `metadata.csv` of their
    folder. A file beside a picture, which a person writes for that picture alone, wins. Raises PhotoError.
    """
    texts: dict[Path, tuple[str, ...]] = {}
    sources: dict[Path, Path] = {}
    folders = {folder: read_metadata(folder) for folder in dict.fromkeys(picture.parent for picture in pictures)}
    beaten: dict[Path, list[str]] = {}
    without: dict[Path, list[str]] = {}
    for picture in pictures:
        texts[picture], metadata = own_captions(picture), folders[picture.parent]
        said = metadata.texts.get(picture, "") if metadata else ""
        listed = (with_subject(said, "{token}"),) if said else ()
        if texts[picture]:
            sources[picture] = caption_files(picture)[0]
            if metadata and listed and listed != texts[picture]:
                beaten.setdefault(metadata.file, []).append(picture.name)
        elif metadata and listed:
            texts[picture], sources[picture] = listed, metadata.file
        elif metadata:
            without.setdefault(metadata.file, []).append(picture.name)
    problems = [
        *(
            f"{one.file} names pictures that are not there: {named(one.missing)}"
            for one in folders.values()
            if one and one.missing
        ),
        *(f"{file} has no caption of {named(names)}" for file, names in without.items()),
        *(
            f"{file} says otherwise than the caption beside {named(names)}, which is used"
            for file, names in beaten.items()
        ),
    ]
    files = {file for picture in pictures for file in caption_files(picture)}
    return Captions(texts, sources, files | {file for folder in folders for file in metadata_files(folder)}, problems)


def class_captions(pictures: Sequence[Path]) -> Captions:
    """Read the own captions of class images. Raises PhotoError where one names the subject, which no class image
    shows.
    """
    found = captions_of(pictures)
    for picture, texts in found.texts.items():
        if any("{token}" in caption for caption in texts):
            raise PhotoError(
                f"{found.sources[picture]}: names {SUBJECT}, but class images show others of its class",
                "write the class noun alone",
            )
    return found


def fitted(
    captions: Sequence[tuple[Path, Sequence[str]]], reader: Reader, token: str, noun: str
) -> list[tuple[str, ...]]:
    """Fit captions of photos so that the identifier is among what the text encoder reads, which cuts long ones off.

    Warns of what is not read, naming the photos, and where no caption names the subject at all.
    """
    pieces, limit = _counting(reader, token, noun), reader.limit
    fitting, cut = [], []
    for path, templates in captions:
        ours = tuple(_fit(template, pieces, limit) for template in templates)
        long = next((template for template in templates if pieces(template.split()) > limit), None)
        if long is not None:
            cut.append(f"{path.name} ({_unread(long, _fit(long, pieces, limit), pieces, limit)})")
        fitting.append(ours)
    if cut:
        more = f" and of {len(cut) - MAX_NAMED_PHOTOS} more" if len(cut) > MAX_NAMED_PHOTOS else ""
        named = "; ".join(cut[:MAX_NAMED_PHOTOS])
        events.warn(f"captions are longer than the {limit} words or word pieces this base reads: {named}{more}")
    names = re.compile(rf"\{{token\}}|(?<!\w){re.escape(token)}(?!\w)", re.IGNORECASE)
    if fitting and not any(names.search(text) for texts in fitting for text in texts):
        events.warn(
            f"no caption names the subject, so that '{token}' learns nothing; write {SUBJECT} where a caption means it"
        )
    return fitting


def refitted(template: str, reader: Reader, token: str, noun: str) -> str:
    """Fit one more order of a caption as `fitted` does, without a word."""
    return _fit(template, _counting(reader, token, noun), reader.limit)


def _counting(reader: Reader, token: str, noun: str) -> Callable[[Iterable[str]], int]:
    """Give what counts the word pieces of a template's words."""
    return lambda words: len(reader.pieces(filled(" ".join(words), token, noun)))


def of_class(
    captions: Sequence[tuple[Path, Sequence[str]]], reader: Reader, token: str, noun: str
) -> list[tuple[str, ...]]:
    """Say captions of photos as captions of their class: the identifier goes where the noun follows it, else the noun
    takes its place.

    Raises PhotoError, naming photo and caption, where that leaves the text encoder the same words, or the identifier
    among them: what is asked of the class would contradict what is taught.
    """
    word = re.compile(rf"(?<!\w){re.escape(token)}(?!\w)", re.IGNORECASE)
    before = re.compile(rf"{word.pattern}\s+(?={re.escape(noun)}(?:e?s)?(?!\w))", re.IGNORECASE)

    def read(text: str) -> list[int]:
        return reader.pieces(text)[: reader.limit]

    found = []
    for path, templates in captions:
        ours = []
        for text in (filled(template, token, noun) for template in templates):
            plain = word.sub(lambda _: noun, before.sub("", text))
            if read(plain) == read(text) or word.search(plain):
                why = f"'{token}' stays in it" if word.search(plain) else f"{SUBJECT} is not among what is read of it"
                raise PhotoError(
                    f"{path.name}: its caption '{text}' cannot be said of any {noun}, which "
                    f"`prior.target=photos` needs: {why}",
                    f"write {SUBJECT} where the caption means the subject, or use `prior.target=base`",
                )
            ours.append(plain)
        found.append(tuple(ours))
    return found


def _fit(template: str, pieces: Callable[[Iterable[str]], int], limit: int) -> str:
    """Cut a caption so that its identifier is read: where it would be cut off, words before it go, and what comes after
    it.
    """
    words = template.split()
    at = next((number for number, word in enumerate(words) if "{token}" in word), None)
    if at is None or pieces(words[: at + 2]) <= limit:
        return template
    head, subject = words[:at], words[at : at + 2]  # with the noun
    while head and pieces(head + subject) > limit:
        head.pop()
    return " ".join(head + subject)


def _unread(template: str, kept: str, pieces: Callable[[Iterable[str]], int], limit: int) -> str:
    """Give what of a caption the text encoder will not read."""
    if kept != template:
        return f"shortened to end in {SUBJECT}: '{kept.replace('{token}', SUBJECT)}'"
    words = template.split()
    seen = len(words)
    while pieces(words[:seen]) > limit:
        seen -= 1
    return f"not read: '{' '.join(words[seen:])}'"
