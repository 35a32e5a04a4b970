"""CSV files that list pictures and their classes, as spreadsheets, scripts and people write them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import PhotoError
from ...core.names import restored
from ...core.paths import expanded
from ...core.text_encoding import wide_encoding
from ...pictures.archive_paths import is_file, is_folder, opened

PATHS = (
    "path file filename file_name filepath file_path image image_path image_file "
    "image_name image_filename img img_path img_name picture"
    " photo photo_path uri datei dateiname dateipfad pfad bild fichier "
    "chemin archivo ruta imagen nome_file percorso name"
)
LABELS = (
    "label labels class class_name classname category category_name target tag "
    "species wnid synset label_name class_index class_id y"
    " klasse kategorie etiquette classe categorie etiqueta clase categoria etichetta"
)
SPLITS = "split subset partition set usage phase"
PREDICTIONS = {"path", "label", "confidence", "error"}
"""Columns of what `classify` writes, which are guesses and no labels."""
SEPARATORS = ",;\t|"
BETWEEN = "|;,"
"""What stands between the labels of one cell: the first of these that any cell of the column has."""
GROUP = "group:"
"""How the header of a column begins whose labels exclude each other, such as `group:weather`."""
MARKS = {
    "0": False,
    "0.0": False,
    "false": False,
    "no": False,
    "": False,
    "1": True,
    "1.0": True,
    "true": True,
    "yes": True,
}


@dataclass(frozen=True)
class Row:
    """One line of a list."""

    line: int
    path: str
    label: str
    split: str
    """As written; empty where the file has no such column."""
    labels: tuple[str, ...] = ()
    """All labels, where a picture may have several; those of a group as `group=label`."""


@dataclass(frozen=True)
class Listing:
    """What a CSV file lists."""

    rows: list[Row]
    encoding: str
    predicted: bool
    """Whether it is what `classify` wrote."""
    groups: tuple[str, ...] = ()
    """Names of the groups whose labels exclude each other."""


def read(file: Path, multi_label: bool = False) -> Listing:
    """Read a list: UTF-8, UTF-16 or Windows-1252; separated by comma, semicolon, tab or bar. Raises PhotoError.

    Without a header, the two columns of a file whose first line names an existing picture are path and label.
    `multi_label` reads several labels from a cell, columns `group:NAME` beside it, and, where there is no column of
    labels, a column of 0 and 1 for each label.
    """
    try:
        with opened(file) as raw:
            text, encoding = _decoded(raw.read())
        lines = _lines(text)
    except (OSError, csv.Error) as error:
        raise PhotoError(f"{file}: cannot be read as CSV ({error})", "save it as CSV in UTF-8") from None
    header = [_key(cell) for cell in lines[0][1]] if lines else []
    columns = {name: place for place, name in reversed(list(enumerate(header))) if name}
    path, label = (
        next((columns[name] for name in names if name in columns), None) for names in (PATHS.split(), LABELS.split())
    )
    first = [cell.strip() for cell in lines[0][1]] if lines else []
    if path is None and label is None and len(first) == 2:
        place = next((place for place, cell in enumerate(first) if cell and is_file(resolved(file, cell))), None)
        if place is not None:
            plain = [_row(line, cells, place, 1 - place, None) for line, cells in lines]
            return Listing(_several(plain, [], {}, {}) if multi_label else plain, encoding, False)
    split = next((columns[name] for name in SPLITS.split() if name in columns), None)
    if multi_label and path is not None:
        groups = {cell[len(GROUP) :].strip(): i for i, cell in enumerate(first) if cell.lower().startswith(GROUP)}
        taken = {path, split, *groups.values()}
        marks = {} if label is not None else _marked(first, [cells for _, cells in lines[1:]], taken)
        if groups or marks or label is not None:
            rows = [_row(line, cells, path, label, split) for line, cells in lines[1:]]
            rows = _several(rows, [cells for _, cells in lines[1:]], groups, marks)
            return Listing(rows, encoding, columns.keys() >= PREDICTIONS, tuple(groups))
    if path is None or label is None or path == label:
        raise PhotoError(
            (
                f"{file}: no column of {'paths' if path is None else 'labels'} (it "
                f"has {', '.join(filter(None, header)) or 'none'})"
            ),
            "name the columns `path` and `label` (and `split`) in its first line",
        )
    rows = [_row(line, cells, path, label, split) for line, cells in lines[1:]]
    return Listing(rows, encoding, columns.keys() >= PREDICTIONS)


def resolved(file: Path, name: str) -> Path:
    """Find the file that a cell names: from the list's folder; Windows' separators and escaped bytes are understood."""
    ways = [file.parent / expanded(way) for way in dict.fromkeys((name, restored(name), name.replace("\\", "/")))]
    return next((path for path in ways if is_file(path) or is_folder(path)), ways[0])


def _decoded(raw: bytes) -> tuple[str, str]:
    wide, mark = wide_encoding(raw)
    if wide or mark:
        encoding = wide or "utf-8"
        return raw.removeprefix(mark).decode(encoding, "replace"), encoding
    try:
        return raw.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace"), "cp1252"


def _lines(text: str) -> list[tuple[int, list[str]]]:
    """Number the lines that are not empty, cut by the separator whose first line has a path and a label, or else most
    columns.
    """
    start, _, rest = text.partition("\n")
    skipped = 0
    if start.strip().lower() in {f"sep={one}" for one in SEPARATORS}:  # a line for Excel
        text, skipped = rest, 1

    def worth(separator: str) -> tuple[bool, int]:
        first = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
        names = {_key(cell) for cell in first}
        return bool(names & {*PATHS.split()}) and bool(names & {*LABELS.split()}), len(first)

    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(SEPARATORS, key=worth))
    return [(reader.line_num + skipped, row) for row in reader if any(cell.strip() for cell in row)]


def _key(cell: str) -> str:
    return "_".join(cell.replace("-", " ").replace("_", " ").casefold().split())


def _marked(header: Sequence[str], lines: Sequence[Sequence[str]], taken: set[int | None]) -> dict[str, int]:
    """Find the columns of 0 and 1, by the label that they are of."""
    return {
        name: place
        for place, name in enumerate(header)
        if name and place not in taken and {_cell(cells, place).lower() for cells in lines} <= MARKS.keys()
    }


def _several(
    rows: Sequence[Row], lines: Sequence[Sequence[str]], groups: dict[str, int], marks: dict[str, int]
) -> list[Row]:
    """Give rows all their labels: of one cell, of columns of 0 and 1, and of groups."""
    between = next((sign for sign in BETWEEN if any(sign in row.label for row in rows)), None)
    result = []
    for index, row in enumerate(rows):
        own = [part.strip() for part in (row.label.split(between) if between else [row.label])]
        own += [name for name, place in marks.items() if MARKS[_cell(lines[index], place).lower()]]
        own += [f"{name}={cell}" for name, place in groups.items() if (cell := _cell(lines[index], place))]
        result.append(replace(row, labels=tuple(dict.fromkeys(filter(None, own)))))
    return result


def _cell(cells: Sequence[str], place: int | None) -> str:
    return cells[place].strip() if place is not None and place < len(cells) else ""


def _row(line: int, cells: Sequence[str], path: int, label: int | None, split: int | None) -> Row:
    return Row(line, _cell(cells, path), _cell(cells, label), _cell(cells, split))
