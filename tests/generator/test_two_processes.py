"""Two processes that fill one cache at the same time: it is whole, and what both get is what one alone gets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import quick_start
import torch

from femtobooth.core import cache
from femtobooth.core.files import TEMPORARY
from femtobooth.pictures import records

FILL = """
import sys, time
from pathlib import Path
import numpy as np
from femtobooth.core import cache
from femtobooth.core.events import progress_bar
from femtobooth.generator import image_cache, load, prior
from femtobooth.generator.loss_settings import PriorSettings
from femtobooth.generator.sampling_settings import SamplingSettings
from femtobooth.recognizer.inference import cache as exports

def fill(base, recognizer, wait=lambda: None):
    model, sampling = load.load(str(base)), SamplingSettings(steps=1)
    jobs = [(prompt, seed) for prompt in ("a dog", "a cat") for seed in range(4)]
    wait()
    images = prior.class_images(model, "a dog", PriorSettings(images=7, sampling_batch=2, sampling=sampling), (64, 64))
    with progress_bar("pictures", len(jobs)) as bar:
        folder = cache.cache_folder() / "pictures"
        pictures, _ = image_cache.generate_missing(model, folder, jobs, sampling, 2, 64, bar)
    made = exports.make(recognizer)
    assert cache.whole(made), made
    return {"images": images, "pictures": pictures, "graph": np.frombuffer((made / "model.onnx").read_bytes(), np.uint8)}
"""
CHILD = """
base, recognizer, out, gate = map(Path, sys.argv[1:])

def wait():
    out.with_suffix(".ready").touch()
    while not gate.exists():
        time.sleep(0.01)

np.savez(out, **fill(base, recognizer, wait))
"""


def _by_two(folder: Path, base: Path, recognizer: Path) -> list[dict[str, np.ndarray]]:
    """Let two processes fill the cache in `folder` from the same moment on; what each of them got."""
    folder.mkdir()
    gate, outs = folder / "gate", [folder / "0.npz", folder / "1.npz"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "FEMTOBOOTH_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, "-c", FILL + CHILD, base, recognizer]
    running = [
        quick_start.start([*command, out, gate], env=environment, stderr=subprocess.PIPE, text=True) for out in outs
    ]
    try:
        while not all(out.with_suffix(".ready").exists() for out in outs):
            assert all(one.poll() is None for one in running), [one.communicate()[1] for one in running]
            time.sleep(0.05)
        gate.touch()
        for one in running:
            _, told = one.communicate(timeout=300)
            assert one.returncode == 0, told
    finally:
        for one in running:
            one.kill()
    return [dict(np.load(out)) for out in outs]


def test_two_processes_fill_one_cache(
    tiny_base: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(one / "cache"))
    namespace: dict[str, object] = {}
    exec(FILL, namespace)  # noqa: S102  (what the two run, here in this process alone)
    alone = namespace["fill"](tiny_base, tiny)  # type: ignore[operator]
    for got in _by_two(two, tiny_base, tiny):
        for name in ("images", "pictures", "graph"):
            assert np.array_equal(got[name], alone[name]), name
    files = {place: sorted(path.relative_to(place) for path in (place / "cache").rglob("*")) for place in (one, two)}
    assert files[one] == files[two]
    assert not [path for path in files[two] if path.name.startswith(TEMPORARY)]
    pictures = [path for path in files[two] if path.suffix == ".png"]
    assert len(pictures) == 7 + 8
    for path in pictures:
        assert cache.read(two / path) is not None
        assert records.read(two / path) is not None
        assert (two / path).read_bytes() == (one / path).read_bytes()
