"""The whole story on the mascot: personalize the bundled base, then show what it draws before and after."""

from __future__ import annotations

import shutil
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

from ..core import config
from ..core.errors import command
from ..core.events import note
from ..core.files import timestamp
from ..generator.settings import PersonalizeSettings
from . import personalize
from .settings import DemoSettings


def run(settings: DemoSettings) -> dict[str, Any]:
    """Teach the bundled base Femto, the mascot; returns what run.json holds. A few minutes on two CPU cores."""
    started = time.monotonic()
    photos = Path(str(resources.files("femtobooth") / "assets" / "mascot"))
    name = f"demo-{timestamp()}"
    note("Femto is a robot that the bundled base has never seen. Five pictures of it teach the base to draw it.\n")
    wanted = config.settle(
        PersonalizeSettings,
        {"photos": {"paths": [str(photos)], "class_noun": "robot"}, "runs": settings.runs, "name": name},
    )
    made = personalize.run(wanted)
    folder, sentence = made.folder, (made.verdict or {}).get("sentence", "")
    program = "femtobooth" if shutil.which("femtobooth") else sys.argv[0]  # as in .venv/bin/femtobooth
    note(
        f"\nIn {time.monotonic() - started:.0f} s. {sentence}\n\n"
        f"  look at      {folder / 'report.html'}   (all of it on one page)\n"
        f"               {folder / 'overview.png'}   (photos | the same prompts before | after)\n"
        f"  run folder   {folder}   (model, checkpoints, curves, samples, config)\n\n"
        "Next:\n"
        f"  {command('generate', folder, 'a [V] robot under water', '-n', 8, program=program)}\n"
        f"  {command('personalize', 'YOUR_PHOTOS', '--class-noun', 'dog', program=program)}\n"
        f"  {command('convert', folder, 'femto.safetensors', program=program)}\n"
        f"  {Path(program).with_name('tensorboard')} --logdir {folder / 'logs'}\n"
    )
    return made.plain()
