"""A recognizer as an sklearn transformer: pictures in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin

from ...pictures.images import read_picture
from .backbone import Recognizer


class EmbeddingTransformer(TransformerMixin, BaseEstimator):
    """`make_pipeline(EmbeddingTransformer(recognizer), LogisticRegression())`; nothing is learned by `fit`."""

    def __init__(self, recognizer: Recognizer, batch_size: int = 32) -> None:
        self.recognizer = recognizer
        self.batch_size = batch_size

    def fit(self, X: Sequence[Any], y: Any = None) -> EmbeddingTransformer:
        """Learn nothing. Returns self."""
        return self

    def transform(self, X: Sequence[str | Path | Image.Image]) -> np.ndarray:
        """Compute embeddings, float32 (N, D), of files or pictures of mode RGB.

        Raises PhotoError for a file that cannot be read.
        """
        was_training = self.recognizer.training
        self.recognizer.eval()
        parts = []
        with torch.inference_mode():
            for start in range(0, len(X), self.batch_size):
                images = [
                    item if isinstance(item, Image.Image) else read_picture(Path(item)).image
                    for item in X[start : start + self.batch_size]
                ]
                parts.append(self.recognizer.embed(self.recognizer.batch(images)).cpu().numpy())
        self.recognizer.train(was_training)
        return np.concatenate(parts)

    def __sklearn_is_fitted__(self) -> bool:
        return True
