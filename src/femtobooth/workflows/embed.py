"""pictures -> embeddings, pre-logits and stage maps in one forward pass, in a file that an interruption does not
lose.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import SettingsError
from ..core.events import stage
from ..core.names import stored
from ..recognizer.inference import index, outputs
from ..recognizer.inference.engines import open_engine
from ..recognizer.inference.outputs import Parts
from ..recognizer.inference.predict import Batch
from ..recognizer.inference.reading import Reading
from ..recognizer.model.engine import Engine
from ..recognizer.settings import EmbedSettings

STAGES = ("0", "1", "2", "3")


def run(settings: EmbedSettings) -> dict[str, Any]:
    """Embed pictures; returns counts.

    Raises InputError kinds before anything is written, PhotoError if nothing could be read.
    """
    if not settings.out:
        raise SettingsError(
            "`out`: where shall the embeddings go?", f"give a file ending in .{', .'.join(index.FORMATS)}"
        )
    format = settings.format or Path(settings.out).suffix[1:]
    if format not in index.FORMATS:
        raise SettingsError(f"`out={settings.out}`: its ending is none of {', '.join(index.FORMATS)}", "add `format`")
    wrong = [stage for stage in settings.stages if stage not in STAGES]
    if wrong:
        raise SettingsError(f"`stages={','.join(wrong)}`: stages are 0, 1, 2 and 3", "for example `stages=0,3`")
    out = outputs.claim(settings, "embed", index.is_index)
    reading = Reading(settings)
    stages = sorted({int(stage) for stage in settings.stages})
    extra: list[str | int] = [*(["prelogits"] if settings.prelogits else []), *stages]
    with stage("opening the model"):
        engine = open_engine(
            settings.model,
            settings.engine,
            device=settings.device,
            extra=extra,
            many=reading.many,
            trust=settings.trust,
        )
    facts = {
        "model": settings.model,
        "model_hash": engine.hash,
        "preprocess_hash": engine.preprocess.hash,
        "engine": engine.name,
        "decode": settings.decode,
    }
    names = {
        "embedding": "embedding",
        **{str(name): f"stage_{name}" if isinstance(name, int) else name for name in extra},
    }
    made = index.schema({names[name]: shape for name, shape in _shapes(engine).items() if name in names}, facts)
    same = {name: facts[name] for name in ("model_hash", "preprocess_hash", "decode")}
    with Parts.open(out, same | {"command": "embed", "extra": extra, "shard": settings.shard}, made) as parts:
        parts.fill((index.rows(_renamed(batch, names), made), batch.stamps) for batch in reading.batches(engine, parts))
        if format == "parquet":
            parts.finish(lambda path: outputs.write_parquet(path, parts.tables(), made))
        else:
            parts.finish(lambda path: index.write(path, format, parts.tables, made))
    return reading.summary(facts | {"out": stored(settings.out)})


def _renamed(batch: Batch, names: dict[str, str]) -> Batch:
    """Return the batch with only the outputs that are kept, under the names of their columns."""
    return replace(batch, outputs={names[name]: values for name, values in batch.outputs.items() if name in names})


def _shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Tell the shapes of one picture's outputs."""
    blank = engine.run(np.zeros((1, *engine.preprocess.size, 3), np.uint8))
    if "embedding" not in blank:
        raise SettingsError(
            f"`engine={engine.name}`: this artifact gives no embeddings", "export it again, or use `engine=torch`"
        )
    return {name: values.shape[1:] for name, values in blank.items()}
