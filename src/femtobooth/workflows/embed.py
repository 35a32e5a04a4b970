"""pictures -> embeddings, pre-logits and stage maps in one forward pass, in a file that an interruption does not
lose.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import SettingsError
from ..core.events import stage
from ..core.names import stored
from ..recognizer.inference import index, outputs, shared
from ..recognizer.inference.outputs import Parts
from ..recognizer.inference.reading import Reading
from ..recognizer.inference.units import STAGES, Embedder
from ..recognizer.settings import EmbedSettings


def run(settings: EmbedSettings) -> dict[str, Any]:
    """Embed pictures; returns counts. With `executor=ray`, into a folder of Parquet parts.

    Raises InputError kinds before anything is written, PhotoError if nothing could be read.
    """
    wrong = [stage for stage in settings.stages if stage not in STAGES]
    if wrong:
        raise SettingsError(f"`stages={','.join(wrong)}`: stages are 0, 1, 2 and 3", "for example `stages=0,3`")
    chosen: dict[str, Any] = {
        "prelogits": settings.prelogits,
        "stages": sorted({int(stage) for stage in settings.stages}),
    }
    if settings.executor == "ray":
        return shared.run(settings, "embed", Embedder, chosen, _made_with)
    if not settings.out:
        raise SettingsError(
            "`out`: where shall the embeddings go?", f"give a file ending in .{', .'.join(index.FORMATS)}"
        )
    format = settings.format or Path(settings.out).suffix[1:]
    if format not in index.FORMATS:
        raise SettingsError(f"`out={settings.out}`: its ending is none of {', '.join(index.FORMATS)}", "add `format`")
    out = outputs.claim(settings, "embed", index.is_index)
    reading = Reading(settings)
    with stage("opening the model"):
        embedder = Embedder(many=reading.many, **shared.options(settings), **chosen)
    made = embedder.schema
    with Parts.open(out, _made_with(settings, embedder), made) as parts:
        parts.fill((embedder.table(batch), batch.stamps) for batch in reading.batches(embedder.engine, parts))
        if format == "parquet":
            parts.finish(lambda path: outputs.write_parquet(path, parts.tables(), made))
        else:
            parts.finish(lambda path: index.write(path, format, parts.tables, made))
    return reading.summary(embedder.facts | {"out": stored(settings.out)})


def _made_with(settings: EmbedSettings, embedder: Embedder) -> dict[str, Any]:
    """Say what rows depend on: those of other settings are not mixed in."""
    same = {name: embedder.facts[name] for name in ("model_hash", "preprocess_hash", "decode")}
    return same | {"command": "embed", "extra": embedder.extra, "shard": settings.shard}
