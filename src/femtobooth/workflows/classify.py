"""pictures -> labels, as a stream: rows as they come, or into a file that an interruption does not lose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.claims import Output
from ..core.errors import SettingsError
from ..core.events import stage
from ..core.names import stored
from ..core.streams import Text
from ..recognizer.inference import outputs, shared
from ..recognizer.inference.outputs import Parts, Row
from ..recognizer.inference.reading import Reading
from ..recognizer.inference.units import Classifier
from ..recognizer.settings import ClassifySettings

FORMATS = ("table", "json", "jsonl", "csv", "parquet")


def run(settings: ClassifySettings) -> dict[str, Any] | Text:
    """Classify pictures into a file and return counts; without `out`, return the rows as text in the format.

    With `executor=ray`, into a folder of Parquet parts. Raises InputError kinds before anything is written, PhotoError
    if nothing could be read.
    """
    if settings.executor == "ray":
        return shared.run(settings, "classify", Classifier, _options(settings), _made_with)
    format = _format(settings)
    out = outputs.claim(settings, "classify", outputs.holds_labels) if settings.out else None
    reading, classifier = _open(settings)
    if not out:
        rows = _rows(reading, classifier)
        return Text(lambda wide: _pieces(format, rows, settings, classifier, wide))
    _into_file(settings, reading, classifier, out, format)
    return reading.summary(_facts(classifier) | {"out": stored(settings.out or "")})


def rows(settings: ClassifySettings) -> Iterator[Row]:
    """Classify pictures, and give a row a file as they come.

    Raises InputError kinds before the first, PhotoError after the last if nothing could be read.
    """
    return _rows(*_open(settings))


def _options(settings: ClassifySettings) -> dict[str, Any]:
    return {"top_k": settings.top_k}


def _open(settings: ClassifySettings) -> tuple[Reading, Classifier]:
    reading = Reading(settings)
    with stage("opening the model"):
        return reading, Classifier(many=reading.many, **shared.options(settings), **_options(settings))


def _rows(reading: Reading, classifier: Classifier) -> Iterator[Row]:
    for batch in reading.batches(classifier.engine):
        yield from classifier.rows(batch)
    reading.summary(_facts(classifier))


def _facts(classifier: Classifier) -> dict[str, Any]:
    return {"model": classifier.facts["model"], "engine": classifier.engine.name, "hash": classifier.engine.hash}


def _format(settings: ClassifySettings) -> str:
    ending = Path(settings.out or "").suffix[1:]
    format = settings.format or (ending if ending in FORMATS else None if settings.out else "table")
    if format is None:
        raise SettingsError(f"`out={settings.out}`: its ending is none of {', '.join(FORMATS)}", "add `format`")
    if format == "parquet" and not settings.out:
        raise SettingsError("`format=parquet`: cannot be written to stdout", "add `out=FILE.parquet`")
    return format


def _pieces(
    format: str, rows: Iterator[Row], settings: ClassifySettings, classifier: Classifier, wide: int = 0
) -> Iterator[str]:
    if format == "table":
        return outputs.table_lines(rows, wide)
    if format == "csv":
        labels = classifier.engine.labels
        return outputs.csv_lines(rows, min(settings.top_k, labels.main.stop), settings.csv_safe, bool(labels.free))
    return outputs.json_lines(rows) if format == "json" else outputs.jsonl_lines(rows)


def _into_file(settings: ClassifySettings, reading: Reading, classifier: Classifier, out: Output, format: str) -> None:
    with Parts.open(out, _made_with(settings, classifier), classifier.schema) as parts:
        batches = reading.batches(classifier.engine, parts)
        parts.fill((classifier.table(batch), batch.stamps) for batch in batches)
        if format == "parquet":
            parts.finish(lambda path: outputs.write_parquet(path, parts.tables(), classifier.schema))
        else:
            rows = (row for table in parts.tables() for row in table.to_pylist())
            parts.finish(lambda path: outputs.write_text(path, _pieces(format, rows, settings, classifier)))


def _made_with(settings: ClassifySettings, classifier: Classifier) -> dict[str, Any]:
    """Say what rows depend on: those of other settings are not mixed in."""
    engine = classifier.engine
    return {
        "command": "classify",
        "model": engine.hash,
        "preprocessing": engine.preprocess.hash,
        "labels": engine.labels.to_dict(),
        "temperature": engine.temperature,
        "rejection": (engine.rejection or {}).get("threshold"),
        "top_k": settings.top_k,
        "decode": settings.decode,
        "shard": settings.shard,
    }
