"""The real command line, whose processes write down what they saw. Lightning starts this file again for every further
rank.

Each writes $STORY_LOG/rank0.jsonl, rank1.jsonl: the noise of its micro-steps, the class images it drew, and what it
holds after training.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from femtobooth import cli
from femtobooth.core.processes import rank
from femtobooth.generator import dreambooth, prior
from femtobooth.generator.latents import LatentSet

_micro_batch, _write = LatentSet.micro_batch, prior._write


def note(kind: str, **facts: Any) -> None:
    with (Path(os.environ["STORY_LOG"]) / f"rank{rank()}.jsonl").open("a") as file:
        file.write(json.dumps({"kind": kind, **facts}) + "\n")


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def micro_batch(pictures: Any, model: Any, purpose: str, seed: int, micro_step: int, *arguments: Any) -> Any:
    drawn = _micro_batch(pictures, model, purpose, seed, micro_step, *arguments)
    parts = {name: digest(getattr(drawn, name)) for name in ("noise", "timesteps", "latents")}
    note("draw", purpose=purpose, micro_step=micro_step, **parts)
    return drawn


def write(folder: Path, index: int, *arguments: Any) -> None:
    note("class image", index=index)
    _write(folder, index, *arguments)


def on_train_end(module: dreambooth.DreamBooth) -> None:
    trained = {name: digest(value) for name, value in module.named_parameters() if value.requires_grad}
    note("trained", count=len(trained), sha256=hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest())


if __name__ == "__main__":
    LatentSet.micro_batch, prior._write = micro_batch, write  # type: ignore[method-assign]
    dreambooth.DreamBooth.on_train_end = on_train_end  # type: ignore[method-assign]
    cli.main()
