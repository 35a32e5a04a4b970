"""query pictures -> the nearest pictures of an index, by cosine similarity of their embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ModelError, PhotoError
from ..core.events import note, table, warn
from ..recognizer.inference import sources
from ..recognizer.inference.engines import open_engine
from ..recognizer.inference.nearest import opened
from ..recognizer.inference.predict import predict, workers_for
from ..recognizer.settings import SearchSettings


def run(settings: SearchSettings) -> dict[str, Any]:
    """Search an index; returns the nearest pictures of each query.

    Raises ModelError for an index of another model or preprocessing.
    """
    searcher = opened(Path(settings.index))
    index = searcher.index
    sources.check(settings.query, None)
    model = settings.model or index.metadata.get("model", "")
    note(f"opening {model}")
    engine = open_engine(model, settings.engine, device=settings.device, trust=settings.trust)
    for name, own in {"model_hash": engine.hash, "preprocess_hash": engine.preprocess.hash}.items():
        if index.metadata[name] != own:
            what = "model" if name == "model_hash" else "preprocessing"
            raise ModelError(
                (
                    f"{settings.index}: was made by another {what} ({index.metadata[name][:12]}) "
                    f"than that of {model} ({own[:12]})"
                ),
                "give its own as `model`, or make the index again with `femtobooth embed`",
            )
    found: list[dict[str, Any]] = []
    fast = index.metadata.get("decode") == "fast"
    for batch in predict(engine, sources.find(settings.query), 16, workers_for(), fast):
        for path, error in zip(batch.paths, batch.errors, strict=True):
            if error:
                warn(f"{path}: {error}")
        read = [path for path, error in zip(batch.paths, batch.errors, strict=True) if error is None]
        if read:
            near = searcher.nearest(np.asarray(batch.outputs["embedding"]), settings.top_k)
            found += [
                {"query": path, "nearest": [{"path": other, "similarity": round(score, 6)} for other, score in row]}
                for path, row in zip(read, near, strict=True)
            ]
    if not found:
        raise PhotoError("no query could be read", "give a JPEG, PNG, WebP or another common picture")
    for query in found:
        lines = [(rank, f"{hit['similarity']:.4f}", hit["path"]) for rank, hit in enumerate(query["nearest"], 1)]
        table(f"nearest to {query['query']}", [">", ">cosine", "picture"], lines, result=True)
    return {"index": settings.index, "model_hash": engine.hash, "results": found}
