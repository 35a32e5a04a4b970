"""What maps pictures to rows, in this process or in an actor of Ray: opened once, then called with batches.

    ray.data.from_items([{"path": path} for path in paths]).map_batches(femtobooth.Classifier, batch_size=64)

`classify` and `embed` use the same classes, so that a row is the same whoever computes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.bulk.parts import digest
from ...core.errors import SettingsError
from ...core.names import restored, stored
from ..model.engine import Engine
from ..model.rejection import is_rejected
from ..settings import DEFAULT
from . import index
from .engines import open_engine
from .outputs import Guess, Row
from .predict import Batch, predict, readable
from .sources import Source, stamped

if TYPE_CHECKING:
    import pyarrow as pa


class _OfPictures(ABC):
    """Opens a recognizer, and makes a table's rows of pictures, `batch_size` at a time on `workers` threads."""

    schema: pa.Schema

    def __init__(
        self,
        model: str = DEFAULT,
        *,
        engine: str = "auto",
        device: str = "auto",
        trust: bool = False,
        many: bool = True,
        decode: str = "exact",
        batch_size: int = 8,
        workers: int = 1,
        extra: Sequence[str | int] = (),
    ) -> None:
        self.engine: Engine = open_engine(model, engine, device=device, extra=extra, many=many, trust=trust)
        self.batch_size, self.workers, self.fast = batch_size, workers, decode == "fast"
        self.facts = {
            "model": model,
            "model_hash": self.engine.hash,
            "preprocess_hash": self.engine.preprocess.hash,
            "engine": self.engine.name,
        }

    @abstractmethod
    def table(self, batch: Batch) -> pa.Table:
        """Make the rows of what the engine said of a batch."""

    def __call__(self, batch: Mapping[str, Sequence[Any] | np.ndarray]) -> pa.Table:
        """Map the files that `path` names to rows, one each, in order; what cannot be read says so in `error`."""
        import pyarrow as pa

        sources = tuple(Source(restored(str(path)), str(path), found=False) for path in batch["path"])
        return pa.concat_tables([self.schema.empty_table(), *self.tables(sources)])

    def tables(self, items: Sequence[Source]) -> Iterator[pa.Table]:
        """Make rows a batch at a time, in order; files found in folders that are no pictures have none."""
        return map(self.table, predict(self.engine, items, self.batch_size, self.workers, self.fast))

    def stamp(self, items: Sequence[Source]) -> str:
        """Hash names, sizes and times of files as they are now."""
        return digest(f"{one.path}\0{one.stamp}" for one in map(stamped, items))

    def still_fails(self, items: Sequence[Source], failed: Sequence[str]) -> bool:
        """Tell whether files that could not be read, by their rows' paths, still cannot."""
        again = set(failed)
        return not any(readable(one, self.engine.preprocess) for one in items if stored(one.path) in again)


class Classifier(_OfPictures):
    """Maps pictures to labels: path, label, synset, confidence, rejected, top (a list of them), error.

    `top_k` likeliest labels are in `top`. Further arguments are `femtobooth classify`'s settings of the same names.
    Raises ModelError, SettingsError, UnsafeFileError.
    """

    def __init__(self, model: str = DEFAULT, *, top_k: int = 5, **options: Any) -> None:
        import pyarrow as pa

        super().__init__(model, **options)
        self.top_k = top_k
        guess = [("label", pa.string()), ("synset", pa.string()), ("confidence", pa.float64())]
        fields = [
            ("path", pa.string()),
            *guess,
            ("rejected", pa.bool_()),
            ("top", pa.list_(pa.struct(guess))),
            ("error", pa.string()),
        ]
        self.schema = pa.schema(fields, metadata=self.facts)

    def rows(self, batch: Batch) -> list[Row]:
        """Make one row a file."""
        return rows_of(self.engine, batch, self.top_k)

    def table(self, batch: Batch) -> pa.Table:
        """Make one row a file, as a table."""
        import pyarrow as pa

        return pa.Table.from_pylist(self.rows(batch), schema=self.schema)


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


STAGES = ("0", "1", "2", "3")


class Embedder(_OfPictures):
    """Maps pictures to embeddings: path, embedding (float32, fixed length), error.

    `prelogits` adds what the last linear layer reads, `stages` the maps of these stages (0 to 3), flattened; their
    shapes are in the schema's metadata. Further arguments are `femtobooth embed`'s settings of the same names.
    Raises ModelError, SettingsError, UnsafeFileError.
    """

    def __init__(
        self, model: str = DEFAULT, *, prelogits: bool = False, stages: Sequence[int] = (), **options: Any
    ) -> None:
        self.extra: list[str | int] = [*(["prelogits"] if prelogits else []), *sorted(stages)]
        super().__init__(model, extra=self.extra, **options)
        self.facts["decode"] = "fast" if self.fast else "exact"
        self._names = {
            "embedding": "embedding",
            **{str(name): f"stage_{name}" if isinstance(name, int) else name for name in self.extra},
        }
        shapes = {self._names[name]: shape for name, shape in _shapes(self.engine).items() if name in self._names}
        self.schema = index.schema(shapes, self.facts)

    def table(self, batch: Batch) -> pa.Table:
        """Make one row a file, of the outputs that are kept, under the names of their columns."""
        names = self._names
        kept = {names[name]: values for name, values in batch.outputs.items() if name in names}
        return index.rows(replace(batch, outputs=kept), self.schema)


def _shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Tell the shapes of one picture's outputs."""
    blank = engine.run(np.zeros((1, *engine.preprocess.size, 3), np.uint8))
    if "embedding" not in blank:
        raise SettingsError(
            f"`engine={engine.name}`: this artifact gives no embeddings", "export it again, or use `engine=torch`"
        )
    return {name: values.shape[1:] for name, values in blank.items()}
