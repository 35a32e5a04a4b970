"""femtobooth: 3-5 photos of one subject in; a generator that draws it anywhere out."""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core import later

if TYPE_CHECKING:
    from .api import (
        Generator,
        Recognizer,
        classify,
        embed,
        export,
        finetune,
        open_run,
        personalize,
        plan,
        showing_progress,
    )
    from .core.errors import FemtoboothError
    from .generator.run import PersonalizedRun
    from .recognizer.finetuning.run import FinetunedRun
    from .recognizer.inference.units import Classifier, Embedder
    from .results import Classification, Embeddings, Export, Guess
    from .workflows.generate import Drawer

__version__ = "0.1.0"
__all__ = [
    "Classification", "Classifier", "Drawer", "Embedder", "Embeddings", "Export", "FemtoboothError", "FinetunedRun",
    "Generator", "Guess", "PersonalizedRun", "Recognizer", "__version__", "classify", "embed", "export", "finetune",
    "open_run", "personalize", "plan", "showing_progress",
]  # fmt: skip
_ELSEWHERE = {
    "Classifier": "recognizer.inference.units",
    "Drawer": "workflows.generate",
    "Embedder": "recognizer.inference.units",
    "FemtoboothError": "core.errors",
    "FinetunedRun": "recognizer.finetuning.run",
    "PersonalizedRun": "generator.run",
}

# Nothing calls home: usage statistics of the libraries are off before any of them is imported (docs/promises.md). A
# value that a user has set stands. Hub downloads that a command was asked for are not touched by this.
for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_SAFETENSORS_CONVERSION"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
_modules: dict[str, Any] = sys.modules
_modules.setdefault(
    "openvino_telemetry", None
)  # OpenVINO sends when this can be imported, and has no setting that says no

later.install()


if not TYPE_CHECKING:  # a type checker that saw this would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """Import what is public when it is first asked for: `import femtobooth` itself imports nothing heavy."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'api')}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
