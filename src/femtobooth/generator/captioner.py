"""A captioner in a folder on this machine: BLIP, GIT or Florence-2, as transformers reads them. What it says is for a
person to correct; training never asks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from ..core.errors import ModelError, first_line, shortened

KINDS = {"blip": "", "git": "", "florence2": "<CAPTION>"}
"""Model types that caption a picture by themselves, and what each is told where nothing is given."""
TAKE = "give the folder of a BLIP, GIT or Florence-2 captioner as save_pretrained writes it, with safetensors"


@dataclass(frozen=True)
class Captioner:
    """A model in memory that says what a picture shows."""

    model: Any
    processor: Any
    prompt: str
    """What BLIP and GIT go on from, and which task Florence-2 is given."""

    @classmethod
    def load(cls, folder: Path, device: torch.device, prompt: str | None = None) -> Captioner:
        """Load a captioner from a folder; no hub is asked, no code in it runs, and no pickle is read.

        Raises ModelError for another kind of model, and for one whose weights are missing or incomplete.
        """
        here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            kind = AutoConfig.from_pretrained(folder, **here).model_type
            if kind not in KINDS:
                raise ModelError(f"{folder}: {shortened(str(kind))} is no captioner that is known here", TAKE)
            processor = AutoProcessor.from_pretrained(folder, **here)
            model, found = AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **here
            )
        except ModelError:
            raise
        except Exception as error:  # transformers raises nearly everything on a folder of another kind
            raise ModelError(f"{folder}: cannot be loaded as a captioner ({first_line(error)})", TAKE) from None
        if missing := sorted(found["missing_keys"]):
            raise ModelError(f"{folder}: {len(missing)} of its weights are missing, such as {missing[0]}", TAKE)
        return cls(model.eval().to(device), processor, KINDS[kind] if prompt is None else prompt)

    @torch.inference_mode()
    def caption(self, image: Image.Image, tokens: int) -> str:
        """Say in one line what an RGB picture shows, in at most so many tokens; the likeliest word at each place."""
        asked = {"text": self.prompt} if self.prompt else {}
        inputs = self.processor(images=image, return_tensors="pt", **asked).to(self.model.device)
        inputs.pop("token_type_ids", None)  # of BERT's tokenizer, which no captioner reads
        ids = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, num_beams=1)
        return " ".join(self.processor.batch_decode(ids, skip_special_tokens=True)[0].split())
