"""pictures -> labels, as a stream: to stdout as they come, or into a file that an interruption does not lose."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import streams
from ..core.claims import Output
from ..core.errors import SettingsError
from ..core.names import stored
from ..recognizer.inference import outputs
from ..recognizer.inference.engines import open_engine
from ..recognizer.inference.outputs import Parts, Row
from ..recognizer.inference.predict import Batch
from ..recognizer.inference.reading import Reading
from ..recognizer.model.engine import Engine
from ..recognizer.model.rejection import is_rejected
from ..recognizer.settings import ClassifySettings

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "json", "jsonl", "csv", "parquet")


def run(settings: ClassifySettings) -> dict[str, Any]:
    """Classify; returns counts.

    Raises InputError kinds before anything is written, PhotoError if nothing could be read.
    """
    format = _format(settings)
    out = outputs.claim(settings, "classify", outputs.holds_labels) if settings.out else None
    if not out:
        streams.stdout()
    reading = Reading(settings)
    engine = open_engine(
        settings.model, settings.engine, device=settings.device, many=reading.many, trust=settings.trust
    )
    if out:
        _into_file(settings, reading, engine, out, format)
    else:
        rows = (row for batch in reading.batches(engine) for row in rows_of(engine, batch, settings.top_k))
        streams.write(_pieces(format, rows, settings, engine))
    place = stored(settings.out) if settings.out else None
    return reading.summary({"model": settings.model, "engine": engine.name, "hash": engine.hash, "out": place})


def rows_of(engine: Engine, batch: Batch, top_k: int) -> list[Row]:
    """One row a file: path, label, synset, confidence, rejected, top (the likeliest, in order), error.

    The label is the likeliest class also where the picture is out-of-distribution, of which `rejected` tells.
    """
    labels = engine.labels
    told: Iterator[tuple[list[Row], bool]] = iter(())
    if batch.outputs:
        probabilities = labels.probabilities(batch.outputs["logits"], engine.temperature)
        rejections = (
            is_rejected(batch.outputs["embedding"], engine.rejection)
            if engine.rejection
            else [False] * len(probabilities)
        )
        tops = (
            [
                {
                    "label": labels.names[index],
                    "synset": labels.synsets[index] if labels.synsets else None,
                    "confidence": round(float(probability), 6),
                }
                for index, probability in zip(*row, strict=True)
            ]
            for row in zip(*labels.top(probabilities, top_k), strict=True)
        )
        told = zip(tops, map(bool, rejections), strict=True)
    rows = []
    for path, error in zip(batch.paths, batch.errors, strict=True):
        top, rejected = (None, None) if error else next(told)
        best = top[0] if top else {"label": None, "synset": None, "confidence": None}
        rows.append({"path": path, **best, "rejected": rejected, "top": top, "error": error})
    return rows


def _format(settings: ClassifySettings) -> str:
    ending = Path(settings.out or "").suffix[1:]
    format = settings.format or (ending if ending in FORMATS else None if settings.out else "table")
    if format is None:
        raise SettingsError(f"--out {settings.out}: its ending is none of {', '.join(FORMATS)}", "add --format")
    if format == "parquet" and not settings.out:
        raise SettingsError("--format parquet: cannot be written to stdout", "add --out FILE.parquet")
    return format


def _pieces(format: str, rows: Iterator[Row], settings: ClassifySettings, engine: Engine) -> Iterator[str]:
    if format == "table":
        wide = shutil.get_terminal_size().columns if not settings.out and sys.stdout.isatty() else 0
        return outputs.table_lines(rows, wide)
    if format == "csv":
        return outputs.csv_lines(rows, min(settings.top_k, engine.labels.main.stop), settings.csv_safe)
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
