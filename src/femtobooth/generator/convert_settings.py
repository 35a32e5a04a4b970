"""Settings of `convert`. The text under each field is its help on the command line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..core.config import Settings
from ..core.fields import Argument, Flag
from ..core.machine import WeightPrecision
from .lora_reference import Loras


class ConvertSettings(Settings):
    source: Annotated[str, Argument("?", names="model", needed=True)] = Field(min_length=1)
    """A run, a model folder, a single file, a hub id, or `bundled`."""
    target: Annotated[str, Argument("?", names="path", needed=True)] = Field(min_length=1)
    """FILE.safetensors, or a folder for diffusers' layout."""
    form: Annotated[Literal["model", "lora"], Flag("--as", common=True)] = "model"
    """What to write: a whole model, with any adapter merged into it, or a LoRA: that of a run, of another file, or
    extracted from a tuned model.
    """
    loras: Annotated[Loras, Flag("--lora", common=True, names="path")] = []
    """A LoRA to merge into the model, and how strongly: FILE:0.8, or 1 without a number."""
    base: Annotated[str | None, Flag("--base", common=True, names="base")] = None
    """The base that a LoRA is for, or that a tuned model was tuned from; a run knows its own."""
    rank: Annotated[int, Flag("--rank", common=True, unit="rank")] = Field(32, ge=1)
    """Rank of a LoRA that is extracted."""
    pictures: Annotated[int, Flag("--pictures", unit="pictures")] = Field(3, ge=0, le=3)
    """Pictures that a tuned model and what was extracted from it both generate, to see how far apart they are."""
    precision: Annotated[WeightPrecision, Flag("--precision")] = "fp32"
    """Number format of the weights; fp16 halves the file."""
    tokenizer: Annotated[str | None, Flag("--tokenizer", names="path")] = None
    """Tokenizer folder or hub id, for a single file without one."""
    overwrite: Annotated[bool, Flag("--overwrite", group="output")] = False
    """Replace a target that convert wrote, and nothing else."""

    def without_effect(self) -> dict[str, str]:
        """Name what only LoRAs, or only whole models, are made by."""
        if self.form == "lora":
            return dict.fromkeys({"loras"} & self.model_fields_set, "as lora, which merges nothing")
        idle = sorted({"base", "rank", "pictures"} & self.model_fields_set)
        return dict.fromkeys(idle, "without `form=lora`, which it belongs to")
