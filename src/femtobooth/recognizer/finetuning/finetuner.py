"""Fine-tuning: the module that trains a recognizer, its layer-wise learning rates, and early stopping.

Layers are frozen by learning rates of 0 until their first step, not by `requires_grad`: the optimizer's groups and
DDP's buckets stay the same, and the schedule, which a checkpoint restores, is all there is to know. BatchNorm keeps
the statistics it was trained with, which a handful of photos could only spoil.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from timm.models import group_parameters
from timm.optim import auto_group_layers
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.utils.data import DataLoader

from ...core.errors import ModelError, NotFiniteError
from ...core.events import note
from ...core.metrics import negative_log_likelihood, softmax
from ...pictures.images import read_picture
from ...training import averages, optimizers
from ...training import trainer as loop
from ...training.module import NumberedSteps
from .. import multilabel
from ..model.backbone import Recognizer
from ..model.labels import Labels
from ..model.preprocess import Preprocess
from ..settings import FinetuneSettings
from . import losses
from .augmentation import TrainingPictures, blend, blend_multi_label, seeded
from .probe import Head


def with_classes(source: Recognizer, labels: Labels, head: Head) -> Recognizer:
    """Build a recognizer of other classes on the network of `source`, which it takes over; its last layer is the
    probe's.

    Training thus starts where the probe ends (linear probing then fine-tuning: Kumar et al. 2022, arXiv 2202.10054),
    with the layer softened.
    Raises ModelError where the network does not end in one linear layer.
    """
    model = source.model
    model.reset_classifier(len(labels))
    model_args = {name: value for name, value in source.model_args.items() if name != "num_classes"}
    recognizer = Recognizer(model, source.architecture, source.preprocess, labels, model_args)
    set_head(recognizer, head)
    return recognizer


def set_head(recognizer: Recognizer, head: Head) -> None:
    """Put the probe's layer in the place of the last one. Raises ModelError where that is not one linear layer."""
    layer = recognizer.model.get_classifier()
    if not isinstance(layer, (nn.Linear, nn.Conv2d)) or layer.weight.numel() != head.weight.size or layer.bias is None:
        raise ModelError(f"{recognizer.architecture}: does not end in one linear layer", "fine-tune another model")
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight).reshape(layer.weight.shape))
        layer.bias.copy_(torch.from_numpy(head.bias))


def layer_groups(model: nn.Module, settings: FinetuneSettings) -> list[dict[str, Any]]:
    """Make optimizer groups, from the last layer to the first: name, params, lr, weight_decay, and the step each
    starts at.

    A layer d before the last learns at learning_rate * layer_decay^d (Clark et al. 2020, ELECTRA; Bao et al. 2021,
    BEiT), from step freeze + (d - 1) * unfreeze_every on. Biases and norms have no weight decay.
    """
    matcher = getattr(model, "group_matcher", None)
    layer_of = group_parameters(model, matcher(coarse=False), reverse=True) if matcher else auto_group_layers(model)
    last = max(layer_of.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        depth, decays = last - layer_of.get(name, last), parameter.ndim > 1
        group = groups.setdefault(
            (depth, not decays),
            {
                "name": f"{'head' if depth == 0 else f'layer -{depth}'}{'' if decays else ', biases and norms'}",
                "params": [],
                "lr": settings.learning_rate * settings.layer_decay**depth,
                "weight_decay": settings.training.weight_decay if decays else 0.0,
                "starts": settings.freeze + (depth - 1) * settings.unfreeze_every if depth else 0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def class_weights(labels: np.ndarray, classes: int, balanced: bool) -> Tensor:
    """Compute weights (C,) of the loss: 1, or N / (C * pictures of the class), whose mean over the pictures is 1."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * counts) if balanced else np.ones(classes), dtype=torch.float32)


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Average over (B, C) logits - sum_c weights_c targets_c log p_c, in float32; targets (B, C), weights (C,)."""
    return -(targets * weights * log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


class Finetuner(NumberedSteps):
    """Trains all of a recognizer on labelled files; labels are 0 to C-1 (N,), or `truth` (N, C) of several."""

    LOSSES: ClassVar[Sequence[str]] = ("train",)
    """Names in the log of what a micro-step appends to `_losses`, float (parts,)."""

    def __init__(
        self, recognizer: Recognizer, settings: FinetuneSettings, paths: Sequence[Path], labels: np.ndarray
    ) -> None:
        super().__init__(settings.training)
        self.recognizer, self.settings, self.paths, self.labels = recognizer, settings, paths, labels
        self.weights: Tensor
        balanced = settings.class_weights == "balanced"
        weights = (
            losses.label_weights(recognizer.labels, labels, balanced)
            if recognizer.labels.free
            else class_weights(labels, len(recognizer.labels), balanced)
        )
        self.register_buffer("weights", weights)
        self._losses: list[Tensor] = []
        self._logged_at = (0, time.monotonic())
        recognizer.unfreeze()
        if settings.training.gradient_checkpointing:
            recognizer.model.set_grad_checkpointing(True)

    def optimizer_groups(self) -> list[dict[str, Any]]:
        return layer_groups(self.recognizer.model, self.settings)

    def configure_optimizers(self) -> Any:
        optimizer = optimizers.make(self.settings.training, self.optimizer_groups())
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [self._factor(group["starts"]) for group in optimizer.param_groups]
        )
        return self.scheduled(optimizer, schedule)

    def _factor(self, starts: int) -> Callable[[int], float]:
        """Compute the shared schedule, and 0 before a group starts; a group that starts later has a warm-up of
        its own.
        """
        training = self.settings.training
        alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        shared = loop.learning_rate_schedule(training, alone).lr_lambdas[0]

        def factor(step: int) -> float:
            if step < starts:
                return 0.0
            return shared(step) * (min((step - starts + 1) / max(training.warmup, 1), 1.0) if starts else 1.0)

        return factor

    def pictures(self, paths: Sequence[Path], labels: Sequence[Any], **more: Any) -> TrainingPictures:
        """Make this process's stream of pictures, from the step on at which training goes on."""
        training = self.settings.training
        return TrainingPictures(
            paths,
            labels,
            self.recognizer.preprocess,
            self.settings.augment,
            training.batch_size,
            training.seed,
            first=self.first_micro_step,
            rank=self.global_rank,
            world=self.trainer.world_size,
            **more,
        )

    def train_dataloader(self) -> Any:
        pictures = self.pictures(self.paths, self.labels.tolist())
        return DataLoader(pictures, batch_size=None, num_workers=self.settings.workers)

    def on_train_start(self) -> None:
        self.recognizer.train()
        keep_statistics(self.recognizer)

    def training_step(self, batch: Any) -> Tensor:
        micro_step, pixels, labels = batch
        images = self.recognizer.preprocess.normalize(pixels)
        with self.drawing(micro_step):
            images, targets, known = self.blended(images, labels)
            logits = self.recognizer(images)
        loss = self.label_loss(logits, targets, known)
        self._losses.append(loss.detach()[None])
        return loss

    def drawing(self, micro_step: int) -> AbstractContextManager[None]:
        """Seed what draws in a step: blending, and dropout and stochastic depth in the forward pass."""
        return seeded(self.settings.training.seed, "step", micro_step, self.global_rank)

    def blended(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Blend images (B, 3, H, W), and soft targets (B, C) with them, and what is known of these (B, C)."""
        settings = self.settings
        if self.recognizer.labels.free:
            targets, known = losses.smoothed(self.recognizer.labels, labels, settings.smoothing)
            return blend_multi_label(images, targets, known, settings.augment)
        images, targets = blend(images, labels, settings.augment, settings.smoothing, len(self.weights))
        return images, targets, targets

    def label_loss(self, logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Compute how far logits (B, C) are from soft targets (B, C)."""
        if self.recognizer.labels.free:
            kind = self.settings.loss
            return losses.multi_label(self.recognizer.labels, kind, logits, targets, known, self.weights)
        return soft_cross_entropy(logits, targets, self.weights)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave frozen layers out: they take no part: neither in the gradient's norm nor in the optimizer's
        averages.
        """
        for group in optimizer.param_groups:
            if group["lr"] == 0:
                for parameter in group["params"]:
                    parameter.grad = None
        super().on_before_optimizer_step(optimizer)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Log right after the step, so that the row is there when a callback saves a checkpoint."""
        super().optimizer_step(*arguments, **options)
        step = self.global_step + 1
        losses, self._losses = self._losses, []
        training = self.settings.training
        if not self.is_read(step):
            return
        loss = torch.stack(losses).mean(dim=0)  # (parts,)
        if self.trainer.world_size > 1:
            loss = self.all_gather(loss).mean(dim=0)
        optimizer: Any = self.optimizers()
        rates = {
            group["name"]: optimizers.effective_rate(group) for group in optimizer.param_groups if group["weight_decay"]
        }
        shown = [next(iter(rates)), list(rates)[-1]] if rates else []
        metrics = {f"loss/{name}": value for name, value in zip(self.LOSSES, loss.tolist(), strict=True)}
        metrics["gradient_norm"] = self.gradient_norm
        metrics |= {f"learning_rate/{name}": rates[name] for name in shown}
        (before, then), now = self._logged_at, time.monotonic()
        if before:
            count = (step - before) * training.batch_size * training.accumulate * self.trainer.world_size
            metrics["pictures_per_second"] = count / (now - then)
        self._logged_at = (step, now)
        for logger in self.loggers:
            logger.log_metrics(metrics, step)


def keep_statistics(module: nn.Module) -> None:
    """Leave batch norms as in inference."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


@torch.no_grad()
def outputs(recognizer: Recognizer, paths: Sequence[Path], batch: int = 16) -> dict[str, np.ndarray]:
    """Compute `logits` (N, C) and `embedding` (N, D), float32, of files through the network as it is now, in inference
    mode.
    """
    training = {part: part.training for part in recognizer.modules()}
    recognizer.eval()
    found: list[dict[Any, Tensor]] = []
    for start in range(0, len(paths), batch):
        found.append(recognizer.outputs([read_picture(path).image for path in paths[start : start + batch]]))
    for part, was in training.items():
        part.training = was
    return {name: torch.cat([one[name] for one in found]).float().cpu().numpy() for name in ("logits", "embedding")}


class EarlyStop(Callback):
    """Measures the log loss on pictures set aside every `every` steps; stops after `patience` checks without a lower
    one.

    The weights of the lowest loss (their average, where there is one) become the result. All of it is in the
    checkpoint: a run that is resumed after it has stopped stays stopped.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: np.ndarray,
        every: int,
        patience: int,
        average: averages.Average | None,
    ) -> None:
        self.paths, self.labels, self.every, self.patience = paths, labels, every, patience
        self.average = average
        self.best: float | None = None
        self.best_step, self.misses = 0, 0
        self.weights: dict[str, Tensor] = {}
        self._step = 0

    @property
    def stopped(self) -> bool:
        return self.misses >= self.patience

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % self.every and self._step < trainer.max_steps:
            return
        if self.average:
            with self.average.applied(pl_module):
                self._check(trainer, pl_module)
        else:
            self._check(trainer, pl_module)
        if self.stopped and self._step < trainer.max_steps:
            note(f"no lower loss on the pictures set aside since step {self.best_step}: stopping at step {self._step}")
            trainer.should_stop = True

    def _check(self, trainer: Trainer, module: Any) -> None:
        logits = outputs(module.recognizer, self.paths)["logits"]
        if not np.isfinite(logits).all():
            raise NotFiniteError(f"training: what the network says is NaN or infinite after step {self._step}")
        said: Labels = module.recognizer.labels
        loss = trainer.strategy.broadcast(
            float(multilabel.log_loss(said, said.probabilities(logits), self.labels).mean())
            if said.free
            else negative_log_likelihood(softmax(logits), self.labels)
        )
        for logger in trainer.loggers:
            logger.log_metrics({"loss/set_aside": loss}, self._step)
        if self.best is None or loss < self.best:
            self.best, self.best_step, self.misses = loss, self._step, 0
            self.weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
        else:
            self.misses += 1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "misses": self.misses, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.misses, self.weights = state_dict["misses"], state_dict["weights"]


def stopped_early(state: dict[str, Any], patience: int) -> bool:
    """Tell whether training had ended when the checkpoint that holds `state` was written."""
    return int(state["callbacks"][EarlyStop.__name__]["misses"]) >= patience


def load_result(module: Finetuner, state: dict[str, Any], settings: FinetuneSettings) -> int:
    """Put the result of training, from the `state` of its last checkpoint, into the module; returns the step it is of.

    With early stopping the weights of the lowest loss; else the last ones, or their average.
    """
    if settings.patience:
        early = state["callbacks"][EarlyStop.__name__]
        weights, step = early["weights"], int(early["best_step"])
    else:
        weights, step = averages.result(state, module), int(state["global_step"])
    module.load_state_dict(weights)
    return step


def preprocess_at(source: Preprocess, size: int | None) -> Preprocess:
    """Return the same preprocessing at another size."""
    from dataclasses import replace

    return source if size is None else replace(source, size=(size, size))
