"""What commands import before they do what they are for: a process a command, on the smallest thing there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import femtobooth

TRAINING = ("lightning", "torchmetrics", "tensorboard")
GENERATOR = ("diffusers", "transformers", "peft", "accelerate")
COMPILER = ("torch._dynamo", "sympy", "triton")
OTHERS = ("sklearn", "scipy.signal", "scipy.stats", "matplotlib", "onnxscript")  # pyarrow imports pandas if it is there
NO_TORCH = ("torch", "timm", "torchvision", *TRAINING, *GENERATOR, *OTHERS)

RUN = """
import sys
from femtobooth.cli import main
try:
    main(sys.argv[2:])
except SystemExit as stop:
    assert not stop.code, stop
print("imported:", *sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""
# What was put off works as it would: the real modules are imported by whoever needs them, and used.
AFTER = """
convnext, norm, hub = (sys.modules[f"timm.{name}"] for name in ("models.convnext", "layers.norm_act", "models._builder"))
import timm, torch, torchvision.ops
assert timm.models.convnext is convnext and timm.layers.norm_act is norm and timm.models._builder is hub
assert torchvision.ops.misc.FrozenBatchNorm2d is norm.FrozenBatchNorm2d is torchvision.ops.FrozenBatchNorm2d
assert timm.data.constants.IMAGENET_DEFAULT_MEAN is timm.data.IMAGENET_DEFAULT_MEAN and len(timm.list_models()) > 900
assert timm.models.convnext_femto is convnext.convnext_femto and not timm.is_model("convnext_none")
part = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten())
assert list(timm.layers.create_feature_extractor(part, ["0"])(torch.ones(1, 2))) == ["0"]
assert hub.has_hf_hub(False) is timm.models._hub.has_hf_hub(False) is True
from timm.models.naflexvit import NaFlexRopeIterator
boxes = torch.tensor([[0.0, 0, 0, 4, 4]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), boxes, 2).tolist() == [[[[1, 1], [1, 1]]]]
assert "torch._dynamo" not in sys.modules
rope = object.__new__(NaFlexRopeIterator)
rope._depth_idx = rope.depth = 0
assert next(rope, "end") == "end"
assert sys.modules["torch._dynamo"].__file__
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") is True
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2

import scipy, torchmetrics
from diffusers import EulerDiscreteScheduler
assert not {"scipy.stats", "scipy.signal"} & set(sys.modules)
noise = EulerDiscreteScheduler(use_beta_sigmas=True)
noise.set_timesteps(4)
assert sys.modules["scipy.stats"].beta and noise.sigmas.isfinite().all()
assert scipy.signal.hamming(3).tolist() == scipy.signal.windows.hamming(3).tolist()
"""


def imported(absent: tuple[str, ...], *arguments: object, after: str = "") -> str:
    """Give the names of `absent` that a command imports."""
    words = [sys.executable, "-c", RUN + after, ",".join(absent), *map(str, arguments)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return next(line for line in ended.stdout.splitlines() if line.startswith("imported:")).split(":")[1].strip()


def test_exported_models_classify_without_torch(tiny_onnx: Path, photos: Path) -> None:
    assert imported(NO_TORCH, "classify", photos, "--model", tiny_onnx, "--engine", "ort") == ""


def test_exported_models_embed_by_openvino_without_torch(tiny_onnx: Path, photos: Path, tmp_path: Path) -> None:
    given = ("--model", tiny_onnx, "--engine", "openvino", "--out", tmp_path / "e.npz")
    absent = tuple(name for name in NO_TORCH if name != "pandas")  # which pyarrow imports where it is there
    assert imported(absent, "embed", photos, *given) == ""


@pytest.mark.parametrize("command", ["runs", "models"])
def test_lists_are_made_without_torch(command: str, tmp_path: Path) -> None:
    assert imported(NO_TORCH, command, "--runs", tmp_path) == ""


def test_a_report_is_made_without_torch(tiny_base: Path, photo_folder: Path, tmp_path: Path) -> None:
    quick = {"training": {"steps": 1, "trackers": ["csv"]}, "prior": {"images": 1, "sampling": {"steps": 1}}}
    shown = {"samples": {"images": 1, "sampling": {"steps": 1}}, "validation": {"every": 0}}
    run = femtobooth.personalize([photo_folder], "cube", base=tiny_base, runs=tmp_path, **quick, **shown)
    assert imported(NO_TORCH, "report", run.run.folder) == ""


def test_weights_classify_without_torchs_compiler(photos: Path) -> None:
    """And without what trains and generates, and timm's other architectures; all are there afterwards for whoever wants
    them.
    """
    absent = (*TRAINING, *GENERATOR, *COMPILER, *OTHERS, "timm", "timm.models.resnet", "torchvision", "huggingface_hub")
    photo = min(photos.rglob("*.jpg"))
    assert imported(absent, "classify", photo, "--model", "bundled", "--engine", "torch", after=AFTER) == ""
