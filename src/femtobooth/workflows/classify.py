"""pictures -> labels, as a stream: rows as they come, or into a file that an interruption does not lose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.claims import Output
from ..core.errors import SettingsError
from ..core.events import stage
from ..core.names import stored
from ..core.streams import Text
from ..recognizer.inference import outputs
from ..recognizer.inference.engines import open_engine
from ..recognizer.inference.outputs import Guess, Parts, Row
from ..recognizer.inference.predict import Batch
from ..recognizer.inference.reading import Reading
from ..recognizer.model.engine import Engine
from ..recognizer.model.rejection import is_rejected
from ..recognizer.settings import ClassifySettings

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "json", "jsonl", "csv", "parquet")


def run(settings: ClassifySettings) -> dict[str, Any] | Text:
    """Classify pictures into a file and return counts; without `out`, return the rows as text in the format.

    Raises InputError kinds before anything is written, PhotoError if nothing could be read.
    """
    format = _format(settings)
    out = outputs.claim(settings, "classify", outputs.holds_labels) if settings.out else None
    reading, engine = _open(settings)
    if not out:
        rows = _rows(settings, reading, engine)
        return Text(lambda wide: _pieces(format, rows, settings, engine, wide))
    _into_file(settings, reading, engine, out, format)
    return reading.summary(_facts(settings, engine) | {"out": stored(settings.out or "")})


def rows(settings: ClassifySettings) -> Iterator[Row]:
    """Classify pictures, and give a row a file as they come.

    Raises InputError kinds before the first, PhotoError after the last if nothing could be read.
    """
    return _rows(settings, *_open(settings))


def _open(settings: ClassifySettings) -> tuple[Reading, Engine]:
    reading = Reading(settings)
    with stage("opening the model"):
        engine = open_engine(
            settings.model, settings.engine, device=settings.device, many=reading.many, trust=settings.trust
        )
    return reading, engine


def _rows(settings: ClassifySettings, reading: Reading, engine: Engine) -> Iterator[Row]:
    for batch in reading.batches(engine):
        yield from rows_of(engine, batch, settings.top_k)
    reading.summary(_facts(settings, engine))


def _facts(settings: ClassifySettings, engine: Engine) -> dict[str, Any]:
    return {"model": settings.model, "engine": engine.name, "hash": engine.hash}


def rows_of(engine: Engine, batch: Batch, top_k: int) -> list[Row]:
    """Make one row a file: path, label, synset, confidence, rejected, top (the likeliest, in order), error.

    The label is the likeliest class also where the picture is out-of-distribution, of which `rejected` tells. Of a
    multi-label model, `top` are all labels over their thresholds; where there are none, label and confidence are None.
    """
    labels = engine.labels
    told: Iterator[tuple[list[Guess], bool]] = iter(())
    if batch.outputs:
        probabilities = labels.probabilities(batch.outputs["logits"], engine.temperature)
        rejections = (
            is_rejected(batch.outputs["embedding"], engine.rejection)
            if engine.rejection
            else [False] * len(probabilities)
        )
        tops = (
            [
                Guess(
                    label=labels.names[index],
                    synset=labels.synsets[index] if labels.synsets else None,
                    confidence=round(float(probability), 6),
                )
                for index, probability in row
            ]
            for row in labels.said(probabilities, top_k)
        )
        told = zip(tops, map(bool, rejections), strict=True)
    rows: list[Row] = []
    for path, error in zip(batch.paths, batch.errors, strict=True):
        if error:
            rows.append(Row(path=path, label=None, synset=None, confidence=None, rejected=None, top=None, error=error))
        else:
            top, rejected = next(told)
            best: Guess | dict[str, None] = top[0] if top else dict.fromkeys(("label", "synset", "confidence"))
            rows.append({"path": path, **best, "rejected": rejected, "top": top, "error": error})  # type: ignore
    return rows


def _format(settings: ClassifySettings) -> str:
    ending = Path(settings.out or "").suffix[1:]
    format = settings.format or (ending if ending in FORMATS else None if settings.out else "table")
    if format is None:
        raise SettingsError(f"`out={settings.out}`: its ending is none of {', '.join(FORMATS)}", "add `format`")
    if format == "parquet" and not settings.out:
        raise SettingsError("`format=parquet`: cannot be written to stdout", "add `out=FILE.parquet`")
    return format


def _pieces(
    format: str, rows: Iterator[Row], settings: ClassifySettings, engine: Engine, wide: int = 0
) -> Iterator[str]:
    if format == "table":
        return outputs.table_lines(rows, wide)
    if format == "csv":
        labels = engine.labels
        return outputs.csv_lines(rows, min(settings.top_k, labels.main.stop), settings.csv_safe, bool(labels.free))
    return outputs.json_lines(rows) if format == "json" else outputs.jsonl_lines(rows)


def _into_file(settings: ClassifySettings, reading: Reading, engine: Engine, out: Output, format: str) -> None:
    import pyarrow as pa

    schema = _schema(settings, engine)
    made_with: dict[str, Any] = {
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
    with Parts.open(out, made_with, schema) as parts:
        batches = reading.batches(engine, parts)
        parts.fill(
            (pa.Table.from_pylist(rows_of(engine, batch, settings.top_k), schema=schema), batch.stamps)
            for batch in batches
        )
        if format == "parquet":
            parts.finish(lambda path: outputs.write_parquet(path, parts.tables(), schema))
        else:
            rows = (row for table in parts.tables() for row in table.to_pylist())
            parts.finish(lambda path: outputs.write_text(path, _pieces(format, rows, settings, engine)))


def _schema(settings: ClassifySettings, engine: Engine) -> pa.Schema:
    import pyarrow as pa

    guess = [("label", pa.string()), ("synset", pa.string()), ("confidence", pa.float64())]
    fields = [
        ("path", pa.string()),
        *guess,
        ("rejected", pa.bool_()),
        ("top", pa.list_(pa.struct(guess))),
        ("error", pa.string()),
    ]
    metadata = {
        "model": settings.model,
        "model_hash": engine.hash,
        "preprocess_hash": engine.preprocess.hash,
        "engine": engine.name,
    }
    return pa.schema(fields, metadata=metadata)
