"""Between logged steps training never waits for an accelerator.

Both halves train for real on torch's meta device, which has no values: whoever asks a tensor there for a number, for
its truth or for a copy raises. A dispatch mode also counts copies to the device that the host would wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from femtobooth.core import config
from femtobooth.generator.dreambooth import DreamBooth
from femtobooth.generator.latents import LatentSet
from femtobooth.generator.load import load
from femtobooth.generator.settings import PersonalizeSettings
from femtobooth.recognizer.finetuning.finetuner import Finetuner
from femtobooth.recognizer.model.backbone import Recognizer
from femtobooth.recognizer.settings import FinetuneSettings
from femtobooth.training import averages, trainer

META = torch.device("meta")
STEPS = 2


class Waits(TorchDispatchMode):
    """Counts by name the operations after which the host waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {one.device.type for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        if func is torch.ops.aten._local_scalar_dense.default and "meta" in given:
            self.found.append(str(func))
        made = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and not kwargs.get("non_blocking"):
            devices = {args[0].device.type, made.device.type}
            self.found += [f"{func} {args[0].device} -> {made.device}"] if len(devices) > 1 else []
        if func is torch.ops.aten.copy_.default and not (args[2:] or [kwargs.get("non_blocking")])[0]:
            self.found += [str(func)] if args[0].device.type != args[1].device.type else []
        return made


class Watched(Callback):
    """Counts from the second micro-step on, when everything is where it stays; ends after `STEPS` optimizer steps."""

    def __init__(self) -> None:
        self.waits, self.micro_steps = Waits(), 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.waits.__enter__()
        self.micro_steps += batch_idx > 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == STEPS and not trainer.should_stop:
            self.waits.__exit__(None, None, None)
            trainer.should_stop = True


class Meta(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Nothing to do for a device that is none."""


class OnMeta(SingleDeviceStrategy):
    def teardown(self) -> None:
        """Leave everything there; from this device there is no way back."""


class Prepared(DreamBooth):
    """The module, whose pictures are encoded already."""

    def setup(self, stage: str) -> None:
        self.instance, self.prior = self.prepare(self.trainer)
        if self.teacher:
            for network in self.teacher.trainable.values():
                network.to(META)


def training(**changes: Any) -> dict[str, Any]:
    return {"steps": 100, "log_every": 100, "batch_size": 2, "accumulate": 2, "trackers": [], **changes}


def pictures(model: Any, caption: str, taught: bool) -> LatentSet:
    mean = torch.randn(3, 1, 4, 8, 8)
    return LatentSet(mean, mean - 9, model.tokenize([caption] * 3)[:, None], taught=torch.tensor(taught))


def personalizing(tiny_base: Path, log_every: int = 100) -> Any:
    given = {
        "photos": {"paths": ["x"], "class_noun": "robot"},
        "prior": {"target": "base"},
        "loss": {"snr_gamma": 5.0},
        "train": {"parts": ["attention", "text_encoder"]},
        "training": training(log_every=log_every),
    }
    settings = config.resolve(PersonalizeSettings, given)
    model = load(str(tiny_base))
    sets = pictures(model, "a sks robot", taught=False), pictures(model, "a robot", taught=True)
    return Prepared(model, settings, "sks", lambda _: sets)


def finetuning(tiny: Path, photos: Path, log_every: int = 100) -> Any:
    given = {
        "data": "x",
        "augment": {"mixup": 0.2, "cutmix": 0.2, "magnitude": 0},
        "class_weights": "balanced",
        "freeze": 0,
        "training": training(log_every=log_every),
    }
    settings = config.resolve(FinetuneSettings, given)
    paths = sorted(photos.iterdir())
    return Finetuner(Recognizer.load(tiny), settings, paths, np.arange(len(paths)) % 5)


def fit(module: Any, folder: Path) -> Watched:
    watched, average = Watched(), averages.MovingAverage(0.9)
    Trainer(
        default_root_dir=folder,
        strategy=OnMeta(META, accelerator=Meta()),
        max_steps=module.regime.steps,
        accumulate_grad_batches=module.regime.accumulate,
        gradient_clip_val=module.regime.clip,
        callbacks=[average, watched, trainer.StepBar()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module)
    assert watched.micro_steps == STEPS * 2 - 1
    assert average.average and all(value.device == META for value in average.average.values())
    return watched


@pytest.fixture
def module(request: pytest.FixtureRequest, tiny_base: Path, tiny: Path, photo_folder: Path) -> Callable[..., Any]:
    made: dict[str, Callable[..., Any]] = {
        "personalize": lambda **how: personalizing(tiny_base, **how),
        "finetune": lambda **how: finetuning(tiny, photo_folder, **how),
    }
    return made[request.param]


@pytest.mark.parametrize("module", ["personalize", "finetune"], indirect=True)
def test_no_micro_step_waits_for_the_device(module: Callable[..., Any], tmp_path: Path) -> None:
    assert fit(module(), tmp_path).waits.found == []


@pytest.mark.parametrize("module", ["personalize", "finetune"], indirect=True)
def test_a_logged_step_does(module: Callable[..., Any], tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        fit(module(log_every=2), tmp_path)


def test_a_copy_that_is_waited_for_counts() -> None:
    with Waits() as waits:
        torch.ones(2).to(META, non_blocking=True)
        torch.ones(2, device=META) + 1
        assert waits.found == []
        torch.ones(2).to(META)
        torch.ones(2, device=META).copy_(torch.ones(2))
    assert len(waits.found) == 2
