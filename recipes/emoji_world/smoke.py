"""The whole recipe in its smallest size, from the sprites to the packaged and measured model: does every stage still
run?

    python -m recipes.emoji_world.smoke

Everything but the sprites is made anew, in smoke/ of the recipe's cache. Takes about a minute and a half of one core.
"""

from __future__ import annotations

import shutil
import sys
import time
from importlib import import_module

from femtobooth.core.console import Terminal
from femtobooth.core.events import listening, note

from . import sprites

STAGES = (
    ("sprites",),
    ("tokenizer",),
    ("autoencoder",),
    ("diffusion",),
    ("recognizer",),
    ("recognizer", "--judge"),
    ("package",),
    ("evaluate",),
    ("evaluate", "--dreambooth", "."),
    ("package",),  # again: the card now holds figures
)


def main() -> None:
    root = sprites.folder() / "smoke"
    for path in root.glob("*") if root.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("sprites."):
            path.unlink()
    given = sys.argv
    for stage, *options in STAGES:
        began = time.perf_counter()
        sys.argv = [stage, "--smoke", *options]
        try:
            import_module(f"{__package__}.{stage}").main()
        finally:
            sys.argv = given
        note(f"{' '.join((stage, *options))}: {time.perf_counter() - began:.0f} s\n")


if __name__ == "__main__":
    with listening(Terminal()):
        main()
