"""Captions from `metadata.jsonl` or `metadata.csv` of a Hugging Face imagefolder: `file_name` and `text` of each.

A stranger's file: a name in it only ever names a picture of its own folder, and nothing is read from where it points.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.errors import PhotoError, shortened

NAME, TEXT = "file_name", "text"
FILES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Metadata:
    """What a folder's metadata file says."""

    file: Path
    texts: dict[Path, str]
    """The caption of each picture that it names, there or not; "" where it has none."""

    @property
    def missing(self) -> list[str]:
        """Names of pictures that are not there."""
        return [path.relative_to(self.file.parent).as_posix() for path in self.texts if not path.is_file()]


def metadata_files(folder: Path) -> list[Path]:
    """List the metadata files of a folder."""
    return [folder / name for name in FILES if (folder / name).is_file()]


def read_metadata(folder: Path) -> Metadata | None:
    """Read the metadata file of a folder; None where there is none.

    Raises PhotoError, naming the line, for two files, a row without `file_name` or `text`, two rows of one picture, and
    names that lead out of the folder.
    """
    files = metadata_files(folder)
    if not files:
        return None
    if len(files) > 1:
        raise PhotoError(f"{folder}: both {' and '.join(FILES)} are there", "keep one of them")
    (file,) = files
    texts: dict[Path, str] = {}
    lines: dict[Path, int] = {}
    for line, row in _rows(file):
        path = folder / _name(row, f"{file}, line {line}")
        if path in lines:
            raise PhotoError(
                f"{file}, line {line}: {shortened(row[NAME])} has an entry already, in line {lines[path]}",
                "keep one of the two; several captions of one photo go into a .txt file beside it, one a line",
            )
        lines[path], texts[path] = line, _text(row, f"{file}, line {line}")
    return Metadata(file, texts)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give the rows of a file, each with the number of its line."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PhotoError(f"{file}: cannot be read ({error})", "save it as UTF-8 text, or remove it") from None
    yield from (_csv_rows if file.suffix == ".csv" else _json_rows)(file, content)


def _csv_rows(file: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(StringIO(content, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise PhotoError(f"{file}, line {reader.line_num}: no CSV ({error})", "mend or remove it") from None


def _json_rows(file: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(content.split("\n"), start=1):
        if not text.strip():
            continue
        row = None
        with suppress(ValueError, RecursionError):
            row = json.loads(text)
        if not isinstance(row, dict):
            raise PhotoError(
                f"{file}, line {line}: no JSON object ({shortened(text.strip())})",
                f'such as {{"{NAME}": "photo.jpg", "{TEXT}": "a [V] dog on a sofa"}}',
            )
        yield line, row


def _name(row: dict[str, Any], where: str) -> PurePosixPath:
    """Give the name of a row's picture, relative to the folder."""
    name = row.get(NAME)
    if not isinstance(name, str) or not name.strip():
        raise PhotoError(f"{where}: no `{NAME}` ({_columns(row)})", "each line names one picture of the folder")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name or not path.parts:
        raise PhotoError(f"{where}: {shortened(name)} leads out of the folder", "name pictures beside the file")
    return path


def _text(row: dict[str, Any], where: str) -> str:
    """Give the caption of a row, in one line."""
    if TEXT not in row:
        raise PhotoError(f"{where}: no `{TEXT}` ({_columns(row)})", f"name the captions `{TEXT}`, or remove the file")
    text = row[TEXT]
    if text is None:
        return ""
    if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
        raise PhotoError(f"{where}: `{TEXT}` is no text ({shortened(repr(text))})", "write a caption between quotes")
    return " ".join(text.split())


def _columns(row: dict[str, Any]) -> str:
    return f"it has {shortened(', '.join(map(str, row)))}" if row else "it is empty"


def named(names: Sequence[str], most: int = 3) -> str:
    """List a few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
