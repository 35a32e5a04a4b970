"""Read what google/dreambooth's dataset says of its subjects: their classes, and prompts for objects and live ones."""

from __future__ import annotations

import re
from pathlib import Path

from ...core.errors import PhotoError

LISTS = "prompts_and_classes.txt"
PROMPT = re.compile(r"""\s*(['"])(.+)\1\.format\(unique_token, class_token\),?\s*""")
CLASS = re.compile(r"\s*([\w-]+)\s*,\s*([\w -]*\w)\s*")


def read_lists(path: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """Read the class of each subject, the prompts for objects and those for live subjects, with [V] and {class}.

    The file is that of google/dreambooth: lines `subject,class`, and two Python lists, which are read and never
    executed. Raises PhotoError where one of the three is missing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PhotoError(
            f"{path}: cannot be read ({error})",
            "it belongs to google/dreambooth, in its folder `dataset`: copy it beside the subjects",
        ) from None
    classes: dict[str, str] = {}
    lists: dict[str, list[str]] = {"object": [], "live": []}
    kind = "object"
    for line in lines:
        if "prompts" in line.lower():
            kind = "live" if "live" in line.lower() else "object"
        elif prompt := PROMPT.fullmatch(line):
            lists[kind].append(prompt[2].replace("{0}", "[V]").replace("{1}", "{class}"))
        elif (pair := CLASS.fullmatch(line)) and pair[1] != "subject_name":
            classes[pair[1]] = pair[2]
    for what, found in (
        ("class of any subject", classes),
        ("prompts for objects", lists["object"]),
        ("prompts for live subjects", lists["live"]),
    ):
        if not found:
            raise PhotoError(
                f"{path}: holds no {what}", "take the file of google/dreambooth's folder `dataset` as it is"
            )
    return classes, lists["object"], lists["live"]
