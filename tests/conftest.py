"""Models of both Stable Diffusion shapes and a recognizer, with the real block layout and tiny random weights."""

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
import tiny_flows
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening
from femtobooth.core.files import atomic_file
from femtobooth.generator import locate
from femtobooth.generator.families.stable_diffusion import StableDiffusion
from femtobooth.generator.families.stable_diffusion_xl import StableDiffusionXL
from femtobooth.generator.formats.folder import load_tokenizer, save_folder
from femtobooth.recognizer.exporting import graph
from femtobooth.recognizer.model import artifact
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.model.labels import Labels
from femtobooth.recognizer.model.preprocess import Preprocess

TOKENS = 77
# What `make quick` leaves out: whole commands, and the files whose tests take most of the rest of the time.
SLOW = (
    "stories/", "workflows/", "recipes/", "core/test_children", "generator/test_accumulation", "generator/test_adapt", "generator/test_base",
    "generator/test_captions_in_training", "generator/test_memory", "generator/test_model_folder", "generator/test_prior", "generator/test_sampling", "generator/test_tokens",
    "generator/test_single_file", "generator/test_stable_diffusion_", "generator/test_z_image", "generator/test_text_states", "generator/test_two_processes", "recognizer/test_engines",
    "recognizer/test_hub_config", "recognizer/test_quantize", "recognizer/test_child", "recognizer/test_predict", "recognizer/test_weights",
    "studio/test_browser", "studio/test_clients", "studio/test_described", "studio/test_pages",
    "test_api", "test_completion", "test_documentation", "test_levels", "test_portable", "test_starts", "training/test_host_reads",
)  # fmt: skip


# Begun first, so that both halves of the work end together: the files that take longest.
LONGEST = (
    "workflows/test_finetune", "stories/test_personalize", "stories/test_validation", "workflows/test_compare",
    "workflows/test_export", "recipes/test_smoke", "stories/test_resume", "generator/test_sampling",
    "recognizer/test_engines", "workflows/test_protocol", "generator/test_model_folder", "workflows/test_evaluate",
    "workflows/test_calls_home", "workflows/test_synthesize", "core/test_children", "generator/test_two_processes",
    "stories/test_several_subjects", "stories/test_stable_diffusion_xl", "studio/test_browser", "training/test_host_reads", "stories/test_ddp", "test_documentation", "stories/test_signals",
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


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _tokenizer() -> CLIPTokenizer:
    tokenizer = load_tokenizer(locate.bundled_folder() / "tokenizer")
    tokenizer.model_max_length = TOKENS
    return tokenizer


def _text_config(tokenizer: CLIPTokenizer, layers: int, open_clip: bool, width: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        hidden_act="gelu" if open_clip else "quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _vae(layers: int = 2, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=layers,
        norm_num_groups=4,
        sample_size=64,
        **more,
    ).eval()


def _tiny(folder: Path, *, second: bool, blocks: int = 4, layers: int = 2) -> Path:
    torch.manual_seed(7)
    tokenizer = _tokenizer()
    text_encoder = CLIPTextModel(_text_config(tokenizer, 3 if second else 2, second))
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64, 64)[-blocks:],
        down_block_types=("CrossAttnDownBlock2D",) * (blocks - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (blocks - 1),
        layers_per_block=layers,
        cross_attention_dim=32,
        attention_head_dim=(2, 2, 4, 4) if second else 2,
        use_linear_projection=second,
        norm_num_groups=8,
    )
    vae = _vae(layers)
    scheduler = (
        DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
        if second
        else PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    )
    model = StableDiffusion(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae,
        unet=unet.eval(),
        scheduler=scheduler,
        source=folder.name,
        hash="",
    )
    save_folder(model, folder, card="# tiny\n")
    return folder


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of Stable Diffusion XL: three levels, two text encoders of widths 32 and 48, the second
    padded with "!", six numbers of 8 each beside its projection of 40; 64x64 pixels.
    """
    folder = tmp_path_factory.mktemp("models") / "tiny-xl"
    torch.manual_seed(7)
    first, second = _tokenizer(), _tokenizer()
    second.pad_token = second.convert_ids_to_tokens(0)
    of_second = _text_config(second, 3, True, width=48)
    of_second.projection_dim = 40
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=32 + 48,
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
        norm_num_groups=8,
    )
    model = StableDiffusionXL(
        tokenizer=first,
        tokenizer_2=second,
        text_encoder=CLIPTextModel(_text_config(first, 2, False)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(of_second).eval(),
        vae=_vae(scaling_factor=0.13025),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(**SCHEDULE),
        source=folder.name,
        hash="",
    )
    save_folder(model, folder, card="# tiny\n")
    return folder


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of Stable Diffusion 3.5: three blocks, two of them with a second attention; CLIPs of widths
    32 and 48, projected to 32 and 40, a T5 of width 96; 16 latent channels in patches of 2, 64x64 pixels.
    """
    return tiny_flows.sd3(tmp_path_factory.mktemp("models") / "tiny-sd3", _tokenizer, _text_config, _vae)


@pytest.fixture(scope="session")
def tiny_sd3_without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same whose T5 was left out."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd3-without-t5"
    return tiny_flows.sd3(folder, _tokenizer, _text_config, _vae, t5=False)


@pytest.fixture(scope="session")
def tiny_z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of Z-Image: a block of each kind of width 32, a language model of width 24; 16 latent
    channels in patches of 2, 64x64 pixels.
    """
    return tiny_flows.z_image(tmp_path_factory.mktemp("models") / "tiny-z-image", _vae)


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of Stable Diffusion 1.x: epsilon, 4 latent channels, factor 8; 64x64 pixels."""
    return _tiny(tmp_path_factory.mktemp("models") / "tiny-sd1", second=False)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a third of the layers, where a story does not depend on the layout of the blocks."""
    return _tiny(tmp_path_factory.mktemp("models") / "tiny-base", second=False, blocks=2, layers=1)


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the shape of Stable Diffusion 2.x: v-prediction, linear projections; 64x64 pixels."""
    return _tiny(tmp_path_factory.mktemp("models") / "tiny-sd2", second=True)


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
    torch.manual_seed(3)
    labels = Labels(("ant", "bee", "cat", "dog", "elk"), ("n01", "n02", "n03", "n04", "n05"))
    recognizer = Recognizer.create("test_convnext", labels, Preprocess((64, 64)), depths=[1, 1, 1, 1])
    torch.nn.init.normal_(recognizer.model.head.fc.weight, std=2)
    recognizer.temperature = 2.0
    folder = tmp_path_factory.mktemp("recognizers") / "tiny"
    recognizer.freeze().save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_onnx(tiny: Path) -> Path:
    """The same, exported."""
    recognizer = Recognizer.load(tiny)
    folder = tiny.with_name("tiny-onnx")
    folder.mkdir()
    graph.write_onnx(graph.to_onnx(graph.Graph(recognizer, inside=False)), folder, recognizer.describe())
    artifact.write(recognizer.describe(), folder)
    return folder


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
