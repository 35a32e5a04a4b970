"""Files to outputs: in order, equal to timm's own way, whatever the batch and the workers, in constant memory."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from femtobooth.recognizer.inference.engines import open_engine
from femtobooth.recognizer.inference.predict import least_side, predict
from femtobooth.recognizer.inference.sources import Source, find
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.engine import Outputs


def test_equals_the_ordinary_way(tiny: Path, photos: Path) -> None:
    recognizer = Recognizer.load(tiny)
    transform = timm.data.create_transform(**recognizer.preprocess.to_timm())
    for batch in predict(open_engine(tiny, "torch"), find([str(photos)]), batch_size=1, workers=1):
        x = transform(Image.open(batch.paths[0]).convert("RGB"))[None]
        with torch.inference_mode():
            np.testing.assert_array_equal(batch.outputs["logits"], recognizer(x).numpy())


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 2), (7, 4), (64, 2)])
def test_order_and_values_do_not_depend_on_batches_and_workers(
    tiny_onnx: Path, photos: Path, batch_size: int, workers: int
) -> None:
    engine = open_engine(tiny_onnx)
    (photos / "a" / "3.jpg").write_bytes(b"")
    alone = {
        path: b.outputs["logits"][0]
        for b in predict(engine, find([str(photos)]), 1, 1)
        for path in b.paths
        if not b.errors[0]
    }
    batches = list(predict(engine, find([str(photos)]), batch_size, workers))
    assert [path for batch in batches for path in batch.paths] == [source.path for source in find([str(photos)])]
    found = {}
    for batch in batches:
        read = [path for path, error in zip(batch.paths, batch.errors, strict=True) if error is None]
        found |= dict(zip(read, batch.outputs.get("logits", ()), strict=True))
    assert found.keys() == alone.keys()
    for path, logits in alone.items():
        np.testing.assert_allclose(found[path], logits, rtol=1e-4, atol=1e-5)


def test_left_before_its_end_it_waits_for_nothing(tiny: Path, photos: Path) -> None:
    """The garbage collector may end it in a thread that holds what others need to end: such a wait has no end."""
    engine, going_on, begun = open_engine(tiny, "torch"), threading.Event(), threading.Event()

    def run(pixels: np.ndarray) -> Outputs:
        if begun.is_set():
            assert going_on.wait(60)
        begun.set()
        return engine.run(pixels)

    batches = predict(replace(engine, run=run), find([str(photos)]), batch_size=1, workers=1)
    next(batches)
    start = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 30
    assert not going_on.is_set()
    going_on.set()


def test_files_are_asked_for_only_as_they_are_needed(tiny_onnx: Path, photos: Path) -> None:
    asked = 0

    def endless() -> Iterator[Source]:
        nonlocal asked
        for source in itertools.cycle(find([str(photos)])):
            asked += 1
            yield source

    stream = predict(open_engine(tiny_onnx), endless(), batch_size=4, workers=2)
    for _ in range(10):
        next(stream)
    stream.close()
    assert asked <= (10 + 4) * 4


def test_fast_decoding_leaves_at_least_twice_what_is_read(tiny_onnx: Path, tmp_path: Path) -> None:
    engine = open_engine(tiny_onnx)
    random = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(random).resize((2400, 1800), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=92)
    assert least_side(engine.preprocess) >= 2 * 64
    (exact,), (fast,) = (list(predict(engine, find([str(tmp_path)]), 4, 1, fast)) for fast in (False, True))
    assert not np.array_equal(exact.outputs["logits"], fast.outputs["logits"])  # it was decoded smaller
    np.testing.assert_allclose(fast.outputs["logits"], exact.outputs["logits"], atol=0.3)


def test_numbers_that_are_not_finite_are_errors(tiny_onnx: Path, photos: Path) -> None:
    engine = open_engine(tiny_onnx)

    def broken(pixels: np.ndarray) -> dict[str, np.ndarray]:
        outputs = engine.run(pixels)
        outputs["logits"][1] = np.nan
        return outputs

    first, *_ = predict(type(engine)("broken", engine.description, broken), find([str(photos)]), 4, 1)
    assert first.errors == (None, "the model gave no finite numbers", None, None)
    assert len(first.outputs["logits"]) == len(first.outputs["embedding"]) == 3
