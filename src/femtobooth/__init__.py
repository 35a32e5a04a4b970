"""femtobooth: 3-5 photos of one subject in; a generator that draws it anywhere out."""

import os
import sys
from typing import Any

__version__ = "0.1.0"

# Nothing calls home: usage statistics of the libraries are off before any of them is imported (docs/promises.md). A
# value that a user has set stands. Hub downloads that a command was asked for are not touched by this.
for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_SAFETENSORS_CONVERSION"):
    os.environ.setdefault(_name, "1")
_modules: dict[str, Any] = sys.modules
_modules.setdefault(
    "openvino_telemetry", None
)  # OpenVINO sends when this can be imported, and has no setting that says no
