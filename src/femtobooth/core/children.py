"""Processes of our own: an interpreter that runs one module of this femtobooth, and nothing that lies in the current
folder.

`python -m` puts the current folder first on the path, where a `torch.py` beside somebody's photos would be run. So the
interpreter is started with `-P`, femtobooth is taken from where the parent's lies, and of the user's PYTHON* variables
only those pass that say how Python works, not what it runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any

PACKAGE = Path(__file__).parents[1]
PASS = (
    "PYTHONHOME",
    "PYTHONUSERBASE",
    "PYTHONNOUSERSITE",
    "PYTHONUTF8",
    "PYTHONIOENCODING",
    "PYTHONHASHSEED",
    "PYTHONDONTWRITEBYTECODE",
)
_START = """\
import importlib.util, runpy, sys
folder, module = sys.argv[1:3]
spec = importlib.util.spec_from_file_location(
    "femtobooth", folder + "/__init__.py", submodule_search_locations=[folder]
)
sys.modules["femtobooth"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["femtobooth"])
sys.argv = sys.argv[2:]
runpy.run_module(module, run_name="__main__")
"""


def command(module: str, *arguments: str, python: str | None = None) -> list[str]:
    """Make the command that runs a module of this femtobooth, in another interpreter (>= 3.11) where one is given."""
    return [python or sys.executable, "-P", "-c", _START, str(PACKAGE), module, *arguments]


def own_stdout(mode: str) -> IO[Any]:
    """Take stdout for answers alone, in a process of ours: what libraries print goes to stderr from now on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), mode)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def last_line(stderr: bytes, otherwise: str = "no message") -> str:
    """Take what a process said last, at most 300 characters of it; `otherwise` where it said nothing."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return (lines or [otherwise])[-1][:300]


def environment(python: str | None = None, **more: str) -> dict[str, str]:
    """Make the environment for such a command, with `more` variables.

    PYTHONPATH goes to this interpreter only, and only its absolute folders.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") or name in PASS}
    folders = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(part).is_absolute()]
    if folders and python is None:
        kept["PYTHONPATH"] = os.pathsep.join(folders)
    return kept | more
