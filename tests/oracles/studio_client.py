"""What a client of the studio needs: where it is, pictures to send, and sending them."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

ADDRESS = "http://localhost:8765"


def png(side: int = 24, seed: int = 0, **save: Any) -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", **save)
    return file.getvalue()


def upload(client: TestClient, body: bytes, name: str = "photo.png") -> str:
    """Send a picture; gives its reference."""
    answer = client.post("/api/v1/uploads", files={"files": (name, body)})
    assert answer.status_code == 201, answer.text
    reference: str = answer.json()["uploads"][0]["reference"]
    return reference
