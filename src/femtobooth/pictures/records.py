"""Write and read the record that a generated picture carries in its PNG: what it is, and how it was made.

A PNG that any command writes has three text chunks:

    femtobooth             JSON: kind, key, prompt, seed, model, settings; the other two are made of it
    parameters             the same as AUTOMATIC1111's web UI writes it, which many viewers show
    XML:com.adobe.xmp      IPTC's digital source type, by which archives and search engines know a generated picture

A picture with such a record only ever trains; that no generated picture validates rests on this file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import __version__
from ..core.files import atomic_file
from ..core.paths import existing
from . import archive_paths

Kind = Literal["generated", "class image", "cached", "synthesized"]
"""What a picture was made for: by `generate`, to keep a class as it is, to be scored (from the picture cache), or by
`synthesize`.
"""
CHUNK = "femtobooth"
PARAMETERS = "parameters"
XMP = "XML:com.adobe.xmp"
CHOSEN = "synthesized"
"""The part of a record that says who chose the picture, and from which photos its model learned."""
OLDER_CHUNKS: dict[str, Kind] = {"femtobooth-class-image": "class image", "femtobooth-evaluation": "cached"}
"""Chunks of versions before 2026-12, which held the key alone, and the kind that they stand for."""
SAMPLERS = {
    "ddim": "DDIM",
    "plms": "PLMS",
    "euler": "Euler",
    "euler-a": "Euler a",
    "dpmpp-2m": "DPM++ 2M",
    "unipc": "UniPC",
}
"""Names of the solvers in AUTOMATIC1111's web UI."""
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def record(
    kind: Kind,
    prompt: str,
    seed: int,
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
    key: str = "",
    more: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Make the record of one picture, JSON values only.

    `model` holds `hash` and, where it is known, `source`; `settings` holds `width`, `height` (pixels), `sampling` and,
    for a picture that started from another, `strength` (0 to 1). `key` tells a cache which picture this is. `more` is
    what the kind adds: `batch`, `init_image`, `mask`, `loras`, `synthesized`.
    """
    found = {CHUNK: __version__, "kind": kind, "prompt": prompt, "seed": seed, "model": dict(model)}
    return found | {"settings": dict(settings)} | ({"key": key} if key else {}) | dict(more)


def encode(picture: np.ndarray, found: Mapping[str, Any]) -> bytes:
    """Write a picture uint8 (H, W, 3) and its record as the bytes of a PNG; the same picture gives the same bytes."""
    chunks = PngInfo()
    chunks.add_text(PARAMETERS, parameters(found))
    chunks.add_text(CHUNK, json.dumps(found))
    chunks.add_itxt(XMP, _xmp(found))
    file = BytesIO()
    Image.fromarray(picture).save(file, format="PNG", pnginfo=chunks)
    return file.getvalue()


def save(picture: np.ndarray, path: Path, found: Mapping[str, Any]) -> None:
    """Write a picture uint8 (H, W, 3) and its record as a PNG file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(encode(picture, found))


def of_text(text: Mapping[str, str]) -> dict[str, Any] | None:
    """Find the record in a PNG's text chunks, of an older version too; None where there is none.

    A record is a stranger's: nothing in it is checked but that it is a mapping. Where even that cannot be read, the
    chunk still tells that the picture is generated, and the record is empty.
    """
    if CHUNK in text:
        try:
            found = json.loads(text[CHUNK])
        except (ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        found.setdefault("kind", "synthesized" if CHOSEN in found else "generated")  # older ones do not say it
        return found
    for chunk, kind in OLDER_CHUNKS.items():
        if chunk in text:
            return {"kind": kind, "key": text[chunk]}
    return None


def read(path: Path) -> dict[str, Any] | None:
    """Read the record of a picture file; None for one without, for no PNG, and for one that cannot be read."""
    try:
        with archive_paths.opened(path) as file, Image.open(file, formats=["PNG"]) as image:
            return of_text(getattr(image, "text", {}))
    except Exception:  # damaged in one of many ways, which who decodes it reports
        return None


def decode(png: bytes | None, kind: Kind, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Read the picture uint8 (H, W, 3) of a PNG of this shape (W, H) whose record is of this kind and key; None for any
    other.
    """
    if png is None:
        return None
    try:
        with Image.open(BytesIO(png)) as image:
            image.load()
            found = of_text(getattr(image, "text", {})) or {}
            sound = image.size == shape and image.mode == "RGB"
            return np.asarray(image) if sound and (found.get("kind"), found.get("key")) == (kind, key) else None
    except (OSError, SyntaxError, ValueError):
        return None


def parameters(found: Mapping[str, Any]) -> str:
    """Tell a record as the AUTOMATIC1111 web UI does, which reads it back ("PNG Info").

    A hash can be looked up only where the model is one file: sites know models by the SHA-256 of that.
    """
    how, sampling = found["settings"], found["settings"]["sampling"]
    source = found["model"].get("source")
    file = existing(source) if source else None
    single = file is not None and file.is_file()
    facts = {
        "Steps": sampling["steps"],
        "Sampler": SAMPLERS[sampling["sampler"]],
        "CFG scale": f"{sampling['guidance']:g}",
        "CFG rescale": f"{sampling['guidance_rescale']:g}" if sampling["guidance_rescale"] else None,
        "Seed": found["seed"],
        "Size": f"{how['width']}x{how['height']}",
        "Model hash": found["model"]["hash"][:10] if single else None,
        "Model": (Path(source).stem if single else Path(source).name) if source else None,
        "Denoising strength": f"{how['strength']:g}" if "init_image" in found else None,
        "Lora hashes": ", ".join(f"{one['name']}: {one['tensors_sha256'][:12]}" for one in found.get("loras", []))
        or None,
        "Version": f"femtobooth {found[CHUNK]}",
    }
    tags = [f"<lora:{one['name']}:{one['strength']:g}>" for one in found.get("loras", [])]
    lines = [" ".join([found["prompt"], *tags])] + (
        [f"Negative prompt: {sampling['negative']}"] if sampling["negative"] else []
    )
    return "\n".join(
        [*lines, ", ".join(f"{key}: {_quoted(value)}" for key, value in facts.items() if value is not None)]
    )


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search("[,:\n]", text) else text


def _xmp(found: Mapping[str, Any]) -> str:
    """Tell IPTC's digital source type: made by a trained model, or a photo in which such a model filled a part."""
    kind = "compositeWithTrainedAlgorithmicMedia" if found.get("mask") else "trainedAlgorithmicMedia"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPES}{kind}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
