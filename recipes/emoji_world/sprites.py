"""Stage 1, sprites: the icon sets from npm, joined by name into concepts x styles, rendered once.

    python -m recipes.emoji_world.sprites [--smoke]

Writes ``sprites.npy`` (N, 96, 96, 4) uint8, straight alpha, and ``sprites.json`` to the recipe's cache folder. The
packages that were fetched stay there too: a second run without network works, and does nothing if its result is there.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from femtobooth.core.cache import cache_folder
from femtobooth.core.console import Terminal
from femtobooth.core.errors import FemtoboothError
from femtobooth.core.events import listening, note, progress
from femtobooth.core.files import atomic_file, write_json

from . import concepts as words

SIZE = 96
STYLES: dict[str, tuple[str, str]] = {
    "noto": ("@iconify-json/noto", "1.2.9"),
    "glossy": ("@iconify-json/fluent-emoji", "1.2.7"),
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "cartoon": ("@iconify-json/twemoji", "1.2.5"),
}
"""Style word in captions -> the npm package it is rendered from."""
DATA = ("emoji-datasource", "16.0.0")


def folder() -> Path:
    """Where the recipe keeps everything it makes."""
    return cache_folder() / "emoji_world"


@dataclass
class Concept:
    name: str
    """Its primary name, which no other concept shares."""
    also: list[str] = field(default_factory=list)
    """Other names that mean this concept alone."""
    kind: str = ""
    """The word for its class ("fruit"), or ""."""
    category: str = ""
    """emoji-datasource's category."""
    icon: str = ""
    """Its name in the icon sets."""
    colours: list[str] = field(default_factory=list)
    """For each style the word for the sprite's main colour, or "" where no colour dominates."""


@dataclass
class World:
    """All sprites: `pixels[concept * len(styles) + style]` is (96, 96, 4) uint8, straight alpha."""

    concepts: list[Concept]
    styles: list[str]
    pixels: np.ndarray

    def sprite(self, concept: int, style: int) -> np.ndarray:
        return self.pixels[concept * len(self.styles) + style]

    @cached_property
    def index(self) -> dict[str, int]:
        """Primary name -> number."""
        return {concept.name: number for number, concept in enumerate(self.concepts)}


def load(where: Path) -> World:
    """The world that `make` wrote. Raises FemtoboothError where it is missing."""
    if not (where / "sprites.json").is_file():
        raise FemtoboothError(f"{where}: no sprites there", "run `python -m recipes.emoji_world.sprites` first")
    listed = json.loads((where / "sprites.json").read_text(encoding="utf-8"))
    pixels = np.load(where / "sprites.npy", mmap_mode="r")
    return World([Concept(**concept) for concept in listed["concepts"]], listed["styles"], pixels)


def make(where: Path, smoke: bool = False) -> World:
    """Fetch, join and render, unless the result is there already."""
    if not (where / "sprites.json").is_file():
        packages = where.parent / "packages" if smoke else where / "packages"
        emoji = read_package(packages, *DATA, "emoji.json")
        icons = {style: read_package(packages, *package, "icons.json") for style, package in STYLES.items()}
        named = read_package(packages, *STYLES["cartoon"], "chars.json")
        found = join(emoji, named, icons)
        if smoke:
            found = found[:: len(found) // 24]
        jobs = [(concept, style) for concept in found for style in STYLES]
        pixels = np.stack([render(icons[style], concept.icon) for concept, style in progress(jobs, "rendering")])
        for concept, rows in zip(found, pixels.reshape(len(found), len(STYLES), SIZE, SIZE, 4), strict=True):
            concept.colours = [main_colour(sprite) for sprite in rows]
        with atomic_file(where / "sprites.npy") as temporary, temporary.open("wb") as file:
            np.save(file, pixels)
        sources = {style: "@".join(package) for style, package in STYLES.items()} | {"names": "@".join(DATA)}
        write_json(
            where / "sprites.json",
            {
                "styles": list(STYLES),
                "sources": sources,
                "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
                "concepts": [asdict(concept) for concept in found],
            },
        )
    return load(where)


def read_package(packages: Path, name: str, version: str, member: str) -> Any:
    """One JSON file of an npm package, which is fetched once."""
    archive = packages / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.is_file():
        if shutil.which("npm") is None:
            raise FemtoboothError("npm is not installed", "install Node.js: the icon sets are npm packages")
        note(f"fetching {name}@{version}")
        packages.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=packages) as temporary:
            command = ["npm", "pack", f"{name}@{version}", "--silent", "--pack-destination", temporary]
            if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:  # noqa: S603
                raise FemtoboothError(f"{name}@{version} could not be fetched", f"put its archive at {archive} by hand")
            (Path(temporary) / archive.name).replace(archive)
    with tarfile.open(archive) as opened:
        return json.loads(opened.extractfile(f"package/{member}").read())  # type: ignore[union-attr]


def join(emoji: list[dict[str, Any]], named: dict[str, str], icons: dict[str, Any]) -> list[Concept]:
    """Emoji that are wanted and drawn in every style, in a fixed order, each with names that are its own.

    `emoji` is emoji-datasource's list, `named` maps code points to icon names, `icons` holds an Iconify set per style.
    """
    found: list[Concept] = []
    claims: list[list[str]] = []
    for entry in sorted(emoji, key=lambda entry: entry["sort_order"]):
        code = entry["unified"].lower()
        icon = next((named[key] for key in (code, code.replace("-fe0f", "")) if key in named), "")
        wanted = icon in words.EXTRA or (entry["subcategory"] in words.KINDS and icon not in words.WITHOUT)
        if not wanted or not all(_drawn(one, icon) for one in icons.values()):
            continue
        name = words.NAMES.get(icon, icon.replace("-", " ")).replace("yo yo", "yo-yo")
        kind = words.CLASSES.get(name, words.EXTRA.get(icon, words.KINDS.get(entry["subcategory"], "")))
        found.append(Concept(name, kind=kind, category=entry["category"], icon=icon))
        short = [text.replace("_", " ") for text in entry["short_names"]]
        claims.append(
            [
                text
                for text in dict.fromkeys([*words.ALSO.get(name, ()), icon.replace("-", " "), *short])
                if _is_name(text)
            ]
        )
    taken = Counter(text for claimed in claims for text in set(claimed)) + Counter(
        {concept.name: 9 for concept in found}
    )
    kinds = {concept.kind for concept in found}
    for concept, claimed in zip(found, claims, strict=True):
        concept.also = [text for text in claimed if taken[text] == 1 and text not in kinds | words.NOT_NAMES]
    return [concept for concept in found if concept.name in words.TAUGHT]


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[a-z]{3,}( [a-z]+){0,2}|tv", text) is not None


def _drawn(icon_set: dict[str, Any], icon: str) -> bool:
    return icon in icon_set["icons"] or icon in icon_set.get("aliases", {})


def render(icon_set: dict[str, Any], icon: str) -> np.ndarray:
    """One icon as (96, 96, 4) uint8, straight alpha, filling the frame along its longer side."""
    import resvg_py  # draws the blurs and blends of Fluent's icons, which CairoSVG leaves out

    entry = icon_set["icons"].get(icon) or {
        **icon_set["icons"][icon_set["aliases"][icon]["parent"]],
        **icon_set["aliases"][icon],
    }
    left, top = entry.get("left", 0), entry.get("top", 0)
    width, height = (entry.get(side, icon_set.get(side, 16)) for side in ("width", "height"))
    head = (
        f'xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} '
        f'{height}" width="{2 * SIZE}" height="{2 * SIZE}"'
    )
    png = resvg_py.svg_to_bytes(svg_string=f"<svg {head}>{entry['body']}</svg>", skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox() or (0, 0, *image.size)
    image = image.convert("RGBa").crop(box)  # premultiplied: no dark seams where it is scaled
    scale = (SIZE - 2) / max(image.size)
    image = image.resize([max(round(side * scale), 1) for side in image.size], Image.Resampling.LANCZOS)
    square = Image.new("RGBa", (SIZE, SIZE))
    square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(square.convert("RGBA"))


def main_colour(sprite: np.ndarray) -> str:
    """The colour word that most of a sprite's opaque pixels would be called, or ""."""
    opaque = sprite[sprite[..., 3] > 128][:, :3].astype(np.float32) / 255
    if not len(opaque):
        return ""
    counted = Counter(dict(enumerate(np.bincount(_colour_numbers(opaque), minlength=len(COLOUR_WORDS)))))
    number, count = counted.most_common(1)[0]
    return COLOUR_WORDS[number] if count > 0.55 * len(opaque) else ""


COLOUR_WORDS = ("black", "grey", "white", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")


def _colour_numbers(rgb: np.ndarray) -> np.ndarray:
    """For each colour (n, 3) in 0..1 the number of its word."""
    high, low = rgb.max(axis=1), rgb.min(axis=1)
    spread = high - low
    safe = np.maximum(spread, 1e-6)
    r, g, b = rgb.T
    hue = np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4)) * 60
    saturation = spread / np.maximum(high, 1e-6)
    number = np.select(
        [hue < 14, hue < 40, hue < 68, hue < 170, hue < 255, hue < 290, hue < 345], [3, 4, 6, 7, 8, 9, 10], default=3
    )
    number = np.where((number == 4) & ((high < 0.72) | (saturation < 0.6)), 5, number)  # dark or pale orange is brown
    number = np.where((number == 3) & (high < 0.5) & (hue < 30), 5, number)
    number = np.where((number == 3) & (saturation < 0.55) & (high > 0.7), 10, number)  # pale red is pink
    number = np.where((number == 6) & (high < 0.62), np.where(hue > 52, 7, 5), number)  # dark yellow is olive or brown
    grey = (saturation < np.where(high < 0.45, 0.4, 0.2)) | (high < 0.27)
    return np.where(grey, np.select([high < 0.34, high < 0.82], [0, 1], default=2), number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="24 concepts only, in a folder of their own")
    smoke = parser.parse_args().smoke
    where = folder() / "smoke" if smoke else folder()
    world = make(where, smoke)
    note(f"{len(world.concepts)} concepts x {len(world.styles)} styles in {where}")


if __name__ == "__main__":
    with listening(Terminal()):
        main()
