"""A segmentation model that cuts subjects out: one ONNX file, picture in, mask out, such as U2-Net or BiRefNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import ModelError, needs

MEAN, DEVIATION = np.array([(0.485, 0.456, 0.406), (0.229, 0.224, 0.225)], np.float32)  # of ImageNet
SIDE = 320  # pixels that a model reads whose file leaves it open: U2-Net's


class MaskModel:
    """Makes masks of pictures by an ONNX file: input (1, 3, H, W), normalized as for ImageNet; output (1, 1, h, w), in
    0..1 or before its sigmoid.

    Raises ModelError where onnxruntime is not installed, or the file is no such model.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        try:
            import onnxruntime
        except ImportError:
            raise ModelError(f"`photos.mask_model={path}`: needs onnxruntime", needs("onnx")) from None
        try:
            self._session: Any = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has an exception of its own for each kind of fault
            raise ModelError(f"`photos.mask_model={path}`: not a usable ONNX model ({_short(error)})") from None
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
            raise ModelError(f"`photos.mask_model={path}`: reads {[one.shape for one in inputs]}, not one picture")
        self._name = inputs[0].name
        self._height, self._width = (side if isinstance(side, int) else SIDE for side in shape[2:])

    def mask(self, image: Image.Image) -> np.ndarray:
        """Make the mask of an RGB picture, uint8 (H, W), 255 where the model is sure of a subject."""
        small = np.asarray(image.resize((self._width, self._height), Image.Resampling.LANCZOS), np.float32)
        values = ((small / max(small.max(), 1.0) - MEAN) / DEVIATION).transpose(2, 0, 1)[None]
        try:
            found = np.asarray(self._session.run(None, {self._name: values})[0], np.float32)
        except Exception as error:
            raise ModelError(f"`photos.mask_model={self.path}`: fails on a picture ({_short(error)})") from None
        if found.ndim != 4 or found.shape[:2] != (1, 1) or not np.isfinite(found).all():
            raise ModelError(f"`photos.mask_model={self.path}`: gives {found.shape}, not one finite mask (1, 1, h, w)")
        if found.min() < 0 or found.max() > 1:
            found = 1 / (1 + np.exp(-found.clip(-30, 30)))
        mask = Image.fromarray(np.rint(found[0, 0] * 255).astype(np.uint8))
        return np.asarray(mask.resize(image.size, Image.Resampling.BILINEAR))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
