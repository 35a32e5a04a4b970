"""The script beside an export that labels photos without femtobooth, in some thirty lines that anyone can copy from."""

from __future__ import annotations

from ..model.artifact import Description
from ..model.preprocess import Preprocess

NAME = "run.py"

_RUNTIMES = {
    "onnx": (
        "onnxruntime",
        'session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])',
        'session.run(["logits"], {"pixels": x})[0]',
    ),
    "openvino": (
        "openvino",
        'model = openvino.Core().compile_model(here / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
        'model(x)["logits"]',
    ),
    "torchscript": ("torch", 'model = torch.jit.load(str(here / "model.pt"))', "model(torch.from_numpy(x))[0].numpy()"),
    "pt2": (
        "torch",
        'model = torch.export.load(here / "model.pt2").module()',
        "model(torch.from_numpy(x))[0].detach().numpy()",
    ),
    "litert": (
        "ai_edge_litert.interpreter",
        'runner = ai_edge_litert.interpreter.Interpreter(str(here / "model.tflite")).get_signature_runner()\n'
        "name = next(iter(runner.get_input_details()))",
        'runner(**{name: x})["output_0"]',
    ),
    "coreml": (
        "coremltools",
        'model = coremltools.models.MLModel(str(here / "model.mlpackage"))',
        'model.predict({"pixels": x.astype(np.float32)})["logits"]',
    ),
    "executorch": (
        "torch",
        "from executorch.runtime import Runtime\n\n"
        'method = Runtime.get().load_program(here / "model.pte").load_method("forward")',
        "method.execute([torch.from_numpy(x)])[0].numpy()",
    ),
    "ncnn": (
        "ncnn",
        """net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param(str(here / "model.ncnn.param"))
net.load_model(str(here / "model.ncnn.bin"))


def run(x):
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(x[0]).clone())
    return np.array(extractor.extract("out0")[1])[None]

""",
        "run(x)",
    ),
}
_NAMED = {"litert": "ai-edge-litert", "executorch": "executorch"}
"""Packages that have another name than what is imported first."""
_RUNTIMES["tensorrt"] = _RUNTIMES["onnx"]

_TEXT = '''"""Labels of photos without femtobooth: python run.py PHOTO ... (needs numpy, pillow and {needs})."""

import json
import sys
from math import floor
from pathlib import Path

import numpy as np
import {package}
from PIL import Image, ImageOps

here = Path(__file__).parent
told = json.loads((here / "recognizer.json").read_text(encoding="utf-8"))
how, labels = told["preprocess"], told["labels"]
{load}

for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")  # colour profiles are not applied here
    height, width = how["size"]
    tall, wide = (floor(side / how["crop_pct"]) for side in how["size"])
{resize}
    image = image.resize(size, Image.Resampling[how["interpolation"].upper()])
{crop}
    x = np.array(image)[None]  # uint8 (1, H, W, 3)
{normalize}    logits = {run}[0] / told["temperature"]
    logits = logits * np.array(labels.get("scales", 1)) + np.array(labels.get("offsets", 0))
    for group, (start, end) in labels["groups"].items():
        z = logits[start:end]
        if labels.get("activation", {{}}).get(group) == "sigmoid":  # any number of labels
            p = 1 / (1 + np.exp(-z))
            shown = np.flatnonzero(p >= labels["thresholds"][start:end])
        else:  # one of the group
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            shown = np.argsort(-p)[:5]
        for i in shown:
            print(path, labels["names"][start + i], f"{{p[i]:.4f}}", sep="\\t")
'''
_SQUARE = """    longer = int(tall * max(image.size) / min(image.size))
    size = (tall, longer) if image.width <= image.height else (longer, tall)"""
_RATIO = """    ratio = {least}(image.height / tall, image.width / wide)
    size = max(round(image.width / ratio), 1), max(round(image.height / ratio), 1)"""
_SQUASH = "    size = wide, tall"
_CROP = """    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))"""
_PADDED = """    canvas = Image.new("RGB", (width, height), tuple(round(255 * value) for value in how["mean"]))
    left, top = ((want - have) // 2 if have < want else -round((have - want) / 2)
                 for have, want in ((image.width, width), (image.height, height)))
    canvas.paste(image, (left, top))
    image = canvas"""
_NORMALIZE = """    x = (x.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    mean, std = (np.array(how[name], np.float32).reshape(3, 1, 1) for name in ("mean", "std"))
    x = np.ascontiguousarray((x - mean) / std)
"""


def text(format: str, described: Description, normalizes: bool) -> str:
    """Write the script for an export."""
    package, load, run = _RUNTIMES[format]
    preprocess = described.preprocess
    return _TEXT.format(
        package=package,
        needs=_NAMED.get(format, package),
        load=load,
        run=run,
        resize=_resize(preprocess),
        crop=_PADDED if preprocess.crop_mode == "border" else _CROP,
        normalize="" if normalizes else _NORMALIZE,
    )


def _resize(preprocess: Preprocess) -> str:
    height, width = preprocess.size
    if preprocess.crop_mode == "squash":
        return _SQUASH
    if preprocess.crop_mode == "center" and height == width:
        return _SQUARE
    return _RATIO.format(least="max" if preprocess.crop_mode == "border" else "min")
