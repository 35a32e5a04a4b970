"""What all tests share: tiny models, photos, and what is slow. Heavy libraries are imported where they are used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from femtobooth.core import later
from femtobooth.core.console import Terminal
from femtobooth.core.events import listening
from femtobooth.core.files import atomic_file

later.keep()  # looking for garbage among what was imported would take a tenth of the tests' time

# What `make quick` leaves out: whole commands, and the files whose tests take most of the rest of the time.
SLOW = (
    "stories/", "workflows/", "recipes/", "core/test_children", "generator/test_accumulation", "generator/test_adapt", "generator/test_base", "generator/test_buckets", "generator/test_frozen",
    "generator/test_captions_in_training", "generator/test_memory", "generator/test_model_folder", "generator/test_prior", "generator/test_sampling", "generator/test_tokens",
    "generator/test_single_file", "generator/test_stable_diffusion_", "generator/test_z_image", "generator/test_text_states", "generator/test_two_processes", "recognizer/test_engines",
    "recognizer/test_hub_config", "recognizer/test_quantize", "recognizer/test_child", "recognizer/test_predict", "recognizer/test_weights",
    "studio/test_browser", "studio/test_clients", "studio/test_described", "studio/test_pages",
    "test_api", "test_completion", "test_documentation", "test_levels", "test_portable", "test_starts", "training/test_host_reads",
)  # fmt: skip


# Begun first, so that both halves of the work end together: the files that take longest.
LONGEST = (
    "workflows/test_finetune", "studio/test_browser", "workflows/test_generate_lora", "stories/test_flows", "stories/test_personalize", "stories/test_validation", "workflows/test_compare",
    "workflows/test_export", "recipes/test_smoke", "stories/test_resume", "generator/test_sampling",
    "recognizer/test_engines", "workflows/test_protocol", "workflows/test_train_many", "generator/test_model_folder", "workflows/test_evaluate",
    "workflows/test_calls_home", "workflows/test_synthesize", "core/test_children", "generator/test_two_processes",
    "stories/test_several_subjects", "stories/test_stable_diffusion_xl", "studio/test_pages", "workflows/test_plan", "training/test_host_reads", "stories/test_ddp", "test_documentation", "stories/test_signals",
)  # fmt: skip


def _slow(path: Path) -> bool:
    """Tell whether `make quick` leaves this file out, or all of this folder."""
    place = path.relative_to(Path(__file__).parent)
    return (f"{place.as_posix()}/" if path.is_dir() else place.with_suffix("").as_posix()).startswith(SLOW)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what `make quick` leaves out."""
    return True if config.option.markexpr == "not slow" and _slow(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `SLOW`, and put the longest files first."""
    places = {item: item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix() for item in items}
    for item in items:
        if _slow(item.path):
            item.add_marker(pytest.mark.slow)
    order = {place: number for number, place in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(places[item], len(order)))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("FEMTOBOOTH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """What tests write need not outlive the machine; a process that is killed loses nothing by it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _each_graph_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tracing a network takes torch five seconds: the same weights with the same description are traced once, by one
    of the processes that test; and torch's table of operators is made once.
    """
    from femtobooth.recognizer.exporting import graph

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    trace = graph.to_onnx

    def to_onnx(one: graph.Graph) -> Any:
        try:
            import onnx
            import onnxscript  # noqa: F401
        except ImportError:
            return trace(one)
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        described = one.recognizer.describe()
        key = (described.hash, json.dumps(graph.metadata(described)), one.inside, one.dtype)
        file = shared / f"graph-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.onnx"
        if not file.exists():
            if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
                patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
            with atomic_file(file) as temporary:
                temporary.write_bytes(trace(one).SerializeToString())
        return onnx.load_model_from_string(file.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "to_onnx", to_onnx)
        yield


@pytest.fixture
def terminal() -> Iterator[None]:
    """What is told goes to stderr, as the command line has it, where a test calls what stands below that."""
    with listening(Terminal()):
        yield


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of Stable Diffusion XL: three levels, two text encoders of widths 32 and 48, the second
    padded with "!", six numbers of 8 each beside its projection of 40; 64x64 pixels.
    """
    from tiny_models import stable_diffusion_xl

    return stable_diffusion_xl(tmp_path_factory.mktemp("models") / "tiny-xl")


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of Stable Diffusion 3.5: three blocks, two of them with a second attention; CLIPs of widths
    32 and 48, projected to 32 and 40, a T5 of width 96; 16 latent channels in patches of 2, 64x64 pixels.
    """
    from tiny_flows import sd3

    return sd3(tmp_path_factory.mktemp("models") / "tiny-sd3")


@pytest.fixture(scope="session")
def tiny_sd3_without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same whose T5 was left out."""
    from tiny_flows import sd3

    return sd3(tmp_path_factory.mktemp("models") / "tiny-sd3-without-t5", t5=False)


@pytest.fixture(scope="session")
def tiny_z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of Z-Image: a block of each kind of width 32, a language model of width 24; 16 latent
    channels in patches of 2, 64x64 pixels.
    """
    from tiny_flows import z_image

    return z_image(tmp_path_factory.mktemp("models") / "tiny-z-image")


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of FLUX.1-dev: two blocks of each kind of width 32, a CLIP of the same, a T5 of width 24; 16
    latent channels in patches of 2, 64x64 pixels.
    """
    from tiny_flows import flux

    return flux(tmp_path_factory.mktemp("models") / "tiny-flux")


@pytest.fixture(scope="session")
def tiny_flux_schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the shape of FLUX.1-schnell, which is told no guidance."""
    from tiny_flows import flux

    return flux(tmp_path_factory.mktemp("models") / "tiny-flux-schnell", guided=False)


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of Stable Diffusion 1.x: epsilon, 4 latent channels, factor 8; 64x64 pixels."""
    from tiny_models import stable_diffusion

    return stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-sd1", second=False)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a third of the layers, where a story does not depend on the layout of the blocks."""
    from tiny_models import stable_diffusion

    return stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-base", second=False, blocks=2, layers=1)


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of Stable Diffusion 2.x: v-prediction, linear projections; 64x64 pixels."""
    from tiny_models import stable_diffusion

    return stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-sd2", second=True)


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Four different 96x96 pictures: coloured shapes on noise."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(4):
        random = np.random.default_rng(index)
        pixels = random.integers(0, 60, (96, 96, 3)) + np.array([180, 90, 40]) * (index + 1) // 5
        pixels[20 + 8 * index : 60, 20:70] = (250, 40 * index, 30)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"photo{index}.png")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact folder of a ConvNeXt of 5 classes that reads 64x64 pixels, its weights random but not nearly 0."""
    from tiny_models import recognizer

    return recognizer(tmp_path_factory.mktemp("recognizers") / "tiny")


@pytest.fixture(scope="session")
def tiny_onnx(tiny: Path) -> Path:
    """The same, exported."""
    from tiny_models import exported

    return exported(tiny, tiny.with_name("tiny-onnx"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty different JPEGs of 120x90 pixels in two folders."""
    for index in range(20):
        random = np.random.default_rng(index)
        blocks = random.integers(0, 256, (3, 4, 3), np.uint8).repeat(30, axis=0).repeat(30, axis=1)
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks).save(path, quality=90)
    return tmp_path / "photos"
