"""DreamBooth (Ruiz et al., arXiv 2208.12242): the loss, and the module that trains with it.

    loss = mean over photos of w(t) |target - prediction|^2 + lambda * the same over class images        (eq. 2)

Each of the two means is over its own samples, so lambda means the same for every batch size, accumulation and
number of processes.

Photos hold more than their subject, and the identifier learns all of it. With `loss.background` "class" a loss mask
lets photos count only where the subject is, and a third of the class images that are sampled have the identifier in
their captions, count only in their background, and ask there for the teacher's prediction. The subject then comes from
the photos, and what is around it from the base.

With `prior.target` "photos" the second mean is over the photos themselves under captions of their class, and asks for
the teacher's prediction: no class images. They are sampled apart from those of the first mean: the expected gradient
is the same as with the same noise and timesteps, and twice as many timesteps are seen in a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..training import optimizers
from ..training.module import NumberedSteps
from . import adapter_layers, trainable
from .anchor import Anchor
from .families.family import Family
from .latents import MicroBatch
from .memory import peak_memory
from .settings import PersonalizeSettings
from .text_states import TextStates, can_be_kept

TERMS = ("instance", "prior")  # of the loss
BUCKETS = 4  # of timesteps, whose losses are logged apart


def sample_losses(prediction: Tensor, target: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Take the weighted mean squared error of each sample: (B, c, h, w), (B, c, h, w), (B,), (B, 1, h, w) -> (B,), in
    float32.
    """
    return weights * (mask * (prediction.float() - target.float()).square()).mean(dim=(1, 2, 3))


class DreamBooth(NumberedSteps):
    """Fine-tunes the networks of `model`, or parts of them, in place; the VAE takes no part.

    `token` is the identifier, or several with the class noun of each. `instance` and `prior` are what `prepare`
    returns, called once in every process before the first step.
    """

    def __init__(
        self,
        model: Family,
        settings: PersonalizeSettings,
        token: str | Mapping[str, str],
        prepare: Callable[..., Any],
    ) -> None:
        super().__init__(settings.training)
        self.strict_loading = False  # checkpoints hold only what trains; the rest comes from the base
        self.model, self.settings, self.prepare = model, settings, prepare
        nouns = {token: settings.photos.class_noun} if isinstance(token, str) else token
        model.process.refuse(settings.loss)
        model.loss = settings.loss
        trainable.select(model, settings, nouns)
        self.teacher = trainable.teacher(model, settings)
        held = self.teacher.trainable if self.teacher else {}
        self.anchor = Anchor(model.trainable, settings.prior.weights, held) if settings.prior.weights else None
        for name, network in model.trainable.items():  # the VAE and the teacher are no submodules
            self.add_module(name, network)
        self._gathered: list[tuple[int, Tensor, Tensor]] = []
        self._logged_at = (0, time.monotonic())

    def optimizer_groups(self) -> list[dict[str, Any]]:
        return trainable.optimizer_groups(self.model, self.settings)

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        self.model.to(device)
        with adapter_layers.switched_off(self.model):  # class images are the base's
            self.instance, self.prior = self.prepare(self.trainer)
        if "lora" in self.settings.train.parts:  # nor is the VAE written
            self.model.drop_encoder()
        self.model.vae.to("cpu")
        self.empty = self.model.no_prompt()  # what sampling guides away from
        if self.teacher:
            for network in self.teacher.trainable.values():
                network.to(device)

    def on_fit_start(self) -> None:
        """Encode the captions now where no text encoder trains: Lightning has moved everything to the device."""
        sets = [one.captions for one in (self.instance, self.prior) if one is not None]
        tokens = torch.cat([*sets, self.empty] if self.settings.photos.caption_dropout else sets)
        if not can_be_kept(self.model, tokens):
            return
        states = TextStates(self.model)
        states.keep(tokens, self.trainer.precision_plugin.forward_context)
        self.model.states = states
        if self.teacher:
            self.teacher.states = states
        if self.trainer.world_size == 1:  # several processes compare what they hold, on their devices
            states.leave()

    def on_fit_end(self) -> None:
        self.model.states = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}

    def training_step(self, micro_step: int) -> Tensor:
        training, prior = self.settings.training, self.settings.prior
        where = (training.seed, micro_step, self.global_rank, self.trainer.world_size)
        photos = self.instance.micro_batch(self.model, "instance", *where, training.batch_size)
        if dropout := self.settings.photos.caption_dropout:
            photos = photos.without_captions(dropout, self.empty, training.seed, micro_step, self.global_rank)
        parts = [photos]
        if self.prior is not None:
            parts.append(self.prior.micro_batch(self.model, "prior", *where, prior.batch_size or training.batch_size))
        batch, count = MicroBatch.cat(parts), len(parts[0])
        losses = self.losses(batch)
        buckets = self.model.process.buckets(batch.timesteps, BUCKETS)  # on the CPU
        self._gathered.append((count, losses.detach(), buckets))
        loss = losses[:count].mean()
        return loss + prior.weight * losses[count:].mean() if len(parts) > 1 else loss

    def losses(self, batch: MicroBatch) -> Tensor:
        """Compute the loss of each sample of a micro-batch (B,), weighted as `settings.loss` says."""
        process = self.model.process
        latents, noise, timesteps, mask = batch.on(self.device)
        dtype = self.model.denoiser.dtype  # of frozen weights
        noisy = process.add_noise(latents, noise, timesteps).to(dtype)  # (B, c, h, w)
        condition = self.model.framed(self.model.condition_once(batch.tokens), batch.framing)
        prediction = self.model.denoise(noisy, timesteps, condition)
        target = process.target(latents, noise, timesteps)
        taught = batch.taught.nonzero().flatten()  # on the CPU: no accelerator is waited for
        if self.teacher and len(taught):
            rows = taught.to(self.device, non_blocking=True)
            itself = self.teacher is self.model
            with torch.no_grad(), adapter_layers.switched_off(self.model) if itself else nullcontext():
                condition = self.teacher.condition_once(batch.tokens[taught])
                condition = self.teacher.framed(condition, batch.framing[taught])
                said = self.teacher.denoise(noisy[rows], timesteps[rows], condition)
            target = target.index_copy(0, rows, said.to(target.dtype))
        return sample_losses(prediction, target, process.weights(timesteps, self.settings.loss), mask)

    def read_losses(self) -> Tensor:
        """Sum the losses that micro-steps have gathered: (terms, BUCKETS, sum and count), float64 on the CPU.

        The only place where they leave the device they were computed on.
        """
        sums = torch.zeros(len(TERMS), BUCKETS, 2, dtype=torch.float64)
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return sums
        losses = iter(torch.cat([losses for _, losses, _ in gathered]).cpu().double())
        for count, _, buckets in gathered:
            for index, bucket in enumerate(buckets):
                sums[int(index >= count), bucket] += torch.stack([loss := next(losses), torch.ones_like(loss)])
        return sums

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Pull towards the base, and log the row right after the step, so that it is there when a callback saves a
        checkpoint.
        """
        super().optimizer_step(*arguments, **options)
        if self.anchor:
            self.anchor.pull(self.optimizers())
        step = self.global_step + 1
        if not self.is_read(step):
            self._gathered = []  # a row of the curve is of its step alone, so that resumed curves are the same
            return
        sums = self.read_losses()
        if self.trainer.world_size > 1:
            sums = self.all_gather(sums.float().to(self.device)).reshape(-1, *sums.shape).sum(dim=0).double().cpu()
        metrics = self._metrics(sums, step)
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def _metrics(self, sums: Tensor, step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for term, buckets in zip(TERMS, sums, strict=True):
            for bucket, (total, count) in enumerate(buckets.tolist()):
                if count:
                    metrics[f"{term}/{self.model.process.bucket_name(bucket, BUCKETS)}"] = total / count
            total, count = buckets.sum(dim=0).tolist()
            if count:
                metrics[f"loss/{term}"] = total / count
        metrics["loss/total"] = metrics["loss/instance"] + self.settings.prior.weight * metrics.get("loss/prior", 0.0)
        optimizer: Any = self.optimizers()
        metrics |= {
            f"learning_rate/{group['name']}": optimizers.effective_rate(group) for group in optimizer.param_groups
        }
        metrics["gradient_norm"] = self.gradient_norm
        (before, then), now = self._logged_at, time.monotonic()
        training = self.settings.training
        if before:
            photos = (step - before) * training.batch_size * training.accumulate * self.trainer.world_size
            metrics["photos_per_second"] = photos / (now - then)
        self._logged_at = (step, now)
        metrics["peak_memory_gib"] = peak_memory(self.device) / 2**30
        return metrics
