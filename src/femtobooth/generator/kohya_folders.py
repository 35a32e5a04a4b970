"""kohya's training folders: `10_sks dog/` inside the given folder holds photos of a dog called sks, each seen 10 times.

Repeats weigh photos against each other; how long training takes is up to `training.steps`. A folder that is named like
the class alone (`1_dog`, here or in `reg/` beside) holds class images, which are never trained on as photos.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import PhotoError, SettingsError, command, shortened
from ..core.paths import expanded
from ..pictures.images import find_pictures, natural_order

NAME = re.compile(r"(\d{1,4})_(\s*\S.*)")
CLASS_IMAGES = "reg"  # kohya's name of the folder beside, in which folders of class images are


@dataclass(frozen=True)
class Folder:
    """One folder of kohya's, as its name says."""

    path: Path
    repeats: int
    words: str

    @property
    def identifier(self) -> str | None:
        """The first word of several; of one nobody knows what it is."""
        first, _, rest = self.words.partition(" ")
        return first if rest else None

    @property
    def class_noun(self) -> str | None:
        """The words after the identifier."""
        return self.words.partition(" ")[2].strip() or None


@dataclass(frozen=True)
class Layout:
    """What of the given paths is kohya's."""

    paths: list[Path]
    """Where photos are: each path as it was given, or the folders inside it."""
    folders: list[Folder]
    """Those folders."""
    class_images: list[Folder]
    """Folders that look like class images of the same class, which are left out."""

    @property
    def identifier(self) -> str | None:
        return self.folders[0].identifier if self.folders else None

    @property
    def class_noun(self) -> str | None:
        return self.folders[0].class_noun if self.folders else None

    def repeats(self) -> dict[Path, int]:
        """Say how often each photo of a path is seen in one pass, in the smallest numbers."""
        given = {folder.path: folder.repeats for folder in self.folders}
        found = {path: given.get(path, 1) for path in self.paths}
        return {path: count // math.gcd(*found.values()) for path, count in found.items()}


def read_layout(paths: Iterable[str]) -> Layout:
    """Look for kohya's folders in the given ones that hold no picture of their own.

    Raises PhotoError where they name several subjects, which `several` cannot tell apart.
    """
    found = _layout(paths)
    subjects = _subjects(found)
    if len(subjects) > 1:
        names = [some[0].path.name for some in subjects.values()]
        one = command("personalize", "--subject", f"NAME={found.folders[0].path}:NOUN", "--subject", "...")
        raise PhotoError(
            f"{found.folders[0].path.parent}: {shortened(', '.join(map(repr, names)))} are of several subjects, "
            "which their names do not tell apart",
            f"name each: {one}",
        )
    return found


def _subjects(layout: Layout) -> dict[tuple[str | None, str | None], list[Folder]]:
    found: dict[tuple[str | None, str | None], list[Folder]] = {}
    for folder in layout.folders:
        found.setdefault((folder.identifier, folder.class_noun), []).append(folder)
    return found


def several(paths: Sequence[str]) -> dict[str, Any]:
    """Give `subjects` as the names of folders say them, each called by its identifier; {} where there is one, or where
    they do not tell identifier, class noun and repeats of each.
    """
    layout = _layout(map(str, paths))
    subjects = _subjects(layout)
    plain = len(layout.folders) == len(layout.paths) and all(
        identifier and noun and len({folder.repeats for folder in some}) == 1
        for (identifier, noun), some in subjects.items()
    )
    words = [str(identifier).casefold() for identifier, _ in subjects]
    if len(subjects) < 2 or not plain or len(set(words)) < len(words):
        return {}
    most = math.gcd(*(folder.repeats for folder in layout.folders))
    return {
        str(identifier): {
            "paths": [str(folder.path) for folder in some],
            "class_noun": noun,
            "token": identifier,
            "repeats": some[0].repeats // most,
        }
        for (identifier, noun), some in subjects.items()
    }


def _layout(paths: Iterable[str]) -> Layout:
    found = Layout([], [], [])
    for path in map(expanded, paths):
        inside = _inside(path)
        classes = {folder.class_noun for folder in inside}
        ours = [folder for folder in inside if folder.words not in classes]
        found.paths.extend([folder.path for folder in ours] or [path])
        found.folders.extend(ours)
        found.class_images.extend(folder for folder in inside if folder.words in classes)
        beside = path.resolve().parent / CLASS_IMAGES
        if ours and beside != path.resolve():
            found.class_images.extend(folder for folder in _inside(beside) if folder.words in classes)
    return found


def implied(paths: Sequence[str], token: object, class_noun: object) -> dict[str, str]:
    """Give identifier and class noun (`token`, `class_noun`) that names of folders say and nothing else does.

    Raises SettingsError where they say another than the one given.
    """
    layout, given = read_layout(paths), {"token": token, "class_noun": class_noun}
    said = {"token": layout.identifier, "class_noun": layout.class_noun}
    for name, setting in (("token", "identifier.token"), ("class_noun", "photos.class_noun")):
        if said[name] is not None and given[name] not in (None, said[name]):
            raise SettingsError(
                f"`{setting}={shortened(str(given[name]))}`: the folder {layout.folders[0].path} says {said[name]}",
                "leave it out, or give that folder itself, whose name is then not read",
            )
    return {name: text for name, text in said.items() if text is not None and given[name] is None}


def told(paths: Sequence[str], class_folder: str | None) -> list[str]:
    """Say what was read of kohya's folders, a line each; nothing where there is none."""
    layout = read_layout(paths)
    lines = []
    if layout.folders:
        shares = layout.repeats()
        each = [f"{folder.path.name} x{shares[folder.path]}" for folder in layout.folders]
        whose = f"{layout.identifier}, a {layout.class_noun}" if layout.identifier else "no identifier in the name"
        lines.append(
            f"kohya's folders: {', '.join(each)} ({whose}); repeats weigh photos, `training.steps` counts steps"
        )
    for folder in [] if class_folder else layout.class_images:
        lines.append(
            f"{folder.path}: named like class images, so not trained on as photos; "
            f"`prior.folder={folder.path}` takes them in place of generated ones"
        )
    return lines


def _inside(folder: Path) -> list[Folder]:
    """List kohya's folders in a folder, if that holds no picture of its own."""
    try:
        names = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=natural_order)
    except OSError:  # no folder, or none that can be listed, which who reads photos reports
        return []
    found = [
        Folder(folder / name, int(match[1]), " ".join(match[2].split()))
        for name in names
        if (match := NAME.fullmatch(name)) and int(match[1])
    ]
    return found if found and not find_pictures([folder])[0] else []
